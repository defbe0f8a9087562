//! Datasets for advae: the embedded mnist-1k sample, IDX files, npz.
//!
//! ```
//! let test = advae_data::load("mnist-1k", None)?;
//! assert_eq!((test.len(), test.shape, test.classes), (1000, [1, 28, 28], 10));
//! # Ok::<(), advae_data::DataError>(())
//! ```
//!
//! - [`load`] gives a [`Dataset`] by name; [`names`] lists them.
//! - [`idx`] reads any other pair of IDX files, raw or gzip.
//! - [`npz`] saves adversarial images for `numpy.load`, and reads them back.

mod catalog;
mod choice;
mod dataset;
mod error;
pub mod idx;
pub mod mnist_1k;
pub mod npz;

pub use catalog::{DATA_DIR, is_test_set, load, names};
pub use dataset::Dataset;
pub use error::DataError;
