//! The MNIST networks of the AdvAE paper (Li et al. 2019): classifiers X, A, B, C, D of its Tables 1 and 2, and the
//! auto-encoder. Every `.so` is a few lines over one of them.

mod auto_encoder;
mod classifiers;

pub use auto_encoder::{AutoEncoder, AutoEncoderSettings};
pub use classifiers::{ModelA, ModelB, ModelC, ModelD, ModelX};

/// Shape of an MNIST image.
pub const INPUT: [usize; 3] = [1, 28, 28];
/// Number of digits.
pub const CLASSES: usize = 10;
