//! Datasets for advae: embedded samples of MNIST and CIFAR-10, IDX files, CIFAR-10's batches, parquet files, npz, folders of images.
//!
//! ```
//! let test = advae_data::load("mnist-1k", None)?;
//! assert_eq!((test.len(), test.shape, test.classes), (1000, [1, 28, 28], 10));
//! # Ok::<(), advae_data::DataError>(())
//! ```
//!
//! - [`load`] gives a [`Dataset`] by name or by path; [`sets()`] lists the names, each with what is known of it.
//! - A [`Set`] is a known dataset as a value, a [`Family`] the sets of one name: shape, classes, customary budgets.
//! - [`idx`] reads any other pair of IDX files, raw or gzip; [`cifar_binary`] any file of CIFAR-10's binary version.
//! - [`npz`] saves adversarial images for `numpy.load`, and reads them back.

mod catalog;
mod choice;
pub mod cifar10_1k;
pub mod cifar_binary;
mod dataset;
mod error;
mod hugging_face;
pub mod idx;
pub mod mnist_1k;
pub mod npz;
mod pictures;
mod sets;

pub use catalog::{DATA_DIR, DEFAULT, Found, find, load, sets};
pub use dataset::Dataset;
pub use error::DataError;
pub use sets::{CIFAR10, Conventions, FASHION_MNIST, Family, MNIST, Set, sample_for};
