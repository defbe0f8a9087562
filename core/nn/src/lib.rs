//! Audited differentiable layers and CPU kernels for candle.
//!
//! candle supplies tensors, storage and the tape; this crate supplies the operators of the networks
//! under test, because some of candle's own gradients are wrong (max pooling, upsampling, `relu` at
//! zero, `clamp` at its bounds) and an attack is only as good as the gradient it follows. Every operator
//! here is checked against central differences in `f64`, see [`gradcheck()`].
//!
//! - [`Pass`] says how one forward pass is made: training or not, which random numbers, which gradients.
//! - [`Weights`] hands out named [`Param`]s, from a safetensors file or a seeded initialisation.
//! - [`Conv2d`], [`ConvTranspose2d`], [`Linear`], [`BatchNorm2d`], [`Dropout`] are layers; [`conv2d`], [`relu`],
//!   [`max_pool2d`], [`cross_entropy`], ... are plain functions of tensors.
//! - [`vjp()`] runs a tape backward from a cotangent, [`custom_vjp()`] gives a function a gradient of its own; [`Adam`] updates parameters
//!   in place.
//!
//! Results depend neither on the batch a sample is in, nor on its place there, nor on the number of
//! threads ([`with_threads`]): the order of every sum is fixed.

#![warn(clippy::missing_errors_doc)]

pub mod adam;
pub mod gradcheck;
mod kernels;
mod key_map;
pub mod layers;
#[doc(hidden)]
pub mod measure;
pub mod net;
pub mod ops;
pub mod param;
pub mod pass;
pub mod threads;
pub mod vjp;
pub mod weights;

pub use adam::Adam;
pub use gradcheck::{GradcheckOptions, GradcheckReport, gradcheck};
pub use kernels::vector::{Kernels, kernels, with_kernels};
pub use key_map::{KeyMap, Rule};
pub use layers::{BatchNorm2d, Conv2d, ConvTranspose2d, Dropout, Linear};
pub use net::{Net, NetBuilder};
pub use ops::*;
pub use param::{Param, pack, save_safetensors, save_safetensors_f16, unpack};
pub use pass::{Pass, Phase, key_rng};
pub use threads::{threads, with_threads};
pub use vjp::{custom_vjp, vjp};
pub use weights::{Init, Weights};

/// Tensor, and result of every fallible function of this crate.
pub use candle_core::{Result, Tensor};
