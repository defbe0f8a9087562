//! What the author of an advae plugin depends on.
//!
//! A plugin is one type that implements one of four traits over ordinary candle tensors, and one macro call:
//!
//! | trait | the author writes | the sdk adds |
//! |---|---|---|
//! | [`Classifier`] | `forward`: images to logits | tapes, gradients, training, weights |
//! | [`Purifier`] | `purify`: images to images, and backward rules | the same, and BPDA |
//! | [`Attack`] | `perturb(oracle, x, y)` | the oracle, per-sample randomness, and in [`attack`] what attacks share |
//! | [`ThreatModel`] | `access`: what the attacker is granted | the services of the host |
//!
//! ```
//! use advae_sdk::prelude::*;
//!
//! settings! {
//!     /// One step along the sign of the gradient.
//!     pub struct Step {
//!         /// Radius of the Linf ball; the host fills it in and enforces it.
//!         epsilon: f64 = 0.3,
//!     }
//! }
//!
//! struct SignAttack(Step);
//!
//! impl Attack for SignAttack {
//!     type Settings = Step;
//!
//!     fn new(settings: Step) -> Result<Self> {
//!         Ok(Self(settings))
//!     }
//!
//!     fn info(&self) -> AttackInfo {
//!         AttackInfo { epsilon: Some(self.0.epsilon), passes: 1, ..AttackInfo::new(Norm::Linf) }
//!     }
//!
//!     fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
//!         let gradient = oracle.gradient(x, |logits| nn::log_odds_against(logits, y))?.x;
//!         Ok(oracle.clip(&(x + (gradient.sign()? * self.0.epsilon)?)?)?.into())
//!     }
//! }
//!
//! export_plugin! { attack: SignAttack }
//! # // Logits z = (x, -x): for label 0 the loss falls with x, for label 1 with -x.
//! # let target = advae_sdk::testing::Testbed::linear([1, 1, 1], &[vec![1.], vec![-1.]], &[0., 0.])?;
//! # let x = Tensor::new(&[0.5f32, 0.125], &advae_sdk::candle_core::Device::Cpu)?.reshape((2, 1, 1, 1))?;
//! # let out = target.attack(&SignAttack(Step { epsilon: 0.25 }), &[7, 8], &x, &[0, 1])?;
//! # assert_eq!(out.x_adv.flatten_all()?.to_vec1::<f32>()?, [0.25, 0.375]);
//! # Result::Ok(())
//! ```
//!
//! # Layers
//!
//! [`nn`] has the layers of the networks under test; `N` images of `C` channels, `H` rows and `W` columns. Layers make their
//! parameters from [`Weights`], under the names that PyTorch gives them. The operators of candle may be used beside them; not all of
//! those have a right gradient, or one at all, and `doctor` compares the gradient with differences.
//!
//! | layer | shape in | shape out |
//! |---|---|---|
//! | [`Conv2d`](nn::Conv2d) | `[N, in, H, W]` | `[N, out, Hout, Wout]`: `ceil(H / stride)` for [`Padding::Same`](nn::Padding), `floor((H - kernel) / stride) + 1` for [`Padding::Valid`](nn::Padding), `floor((H + 2 zeros - kernel) / stride) + 1` for [`Padding::Zeros`](nn::Padding), PyTorch's |
//! | [`ConvTranspose2d`](nn::ConvTranspose2d) | `[N, in, H, W]` | `[N, out, Hout, Wout]`: `stride H` for `Same`, `stride (H - 1) + kernel` for `Valid` |
//! | [`Linear`](nn::Linear) | `[N, in]` | `[N, out]` |
//! | [`BatchNorm2d`](nn::BatchNorm2d) | `[N, C, H, W]` | the same |
//! | [`Dropout`](nn::Dropout) | `[N, ...]` | the same |
//! | [`relu`](nn::relu), [`leaky_relu`](nn::leaky_relu), [`sigmoid`](nn::sigmoid), [`clamp`](nn::clamp) | any | the same |
//! | [`max_pool2d`](nn::max_pool2d) by `k` | `[N, C, H, W]` | `[N, C, floor(H / k), floor(W / k)]` |
//! | [`avg_pool2d`](nn::avg_pool2d) by `k` | `[N, C, H, W]` | `[N, C, floor(H / k), floor(W / k)]` |
//! | [`global_avg_pool2d`](nn::global_avg_pool2d) | `[N, C, H, W]` | `[N, C, 1, 1]` |
//! | [`upsample_nearest2d`](nn::upsample_nearest2d) by `f` | `[N, C, H, W]` | `[N, C, f H, f W]` |
//! | [`flatten`](nn::flatten) | `[N, ...]` | `[N, the product of the rest]` |
//! | [`softmax`](nn::softmax), [`log_softmax`](nn::log_softmax) | `[..., K]` | the same |
//! | [`cross_entropy`](nn::cross_entropy), [`log_odds_against`](nn::log_odds_against), [`margin`](nn::margin) | logits `[N, K]`, labels `[N]` | `[N]` |
//! | [`custom_vjp`](nn::custom_vjp) | any | any, with a gradient of the author's own |
//!
//! A [`Net`](nn::Net), built by [`NetBuilder`](nn::NetBuilder) from these layers, runs as one operator and is the fastest way. It adds
//! `concat` (`[N, Ci, H, W]` to `[N, sum of Ci, H, W]`) and `add` (two of the same shape).
//!
//! # Iterations
//!
//! A purifier that iterates writes one step, and [`unrolled`] runs it: the gradient through all steps is exact, and their graph is never kept
//! as a whole. Steps down a gradient take it by [`energy_gradient`], since candle's own gradients cannot be differentiated again.
//!
//! # Errors
//!
//! Errors are candle's. Those of the host, such as an oracle's `Denied` or `Cancelled`, keep their code on the way through an
//! author's code if they are handed on with `?` or given a `context`.

#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

pub mod attack;
mod classifier;
mod convert;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod energy;
mod export;
mod goal;
mod model;
mod norm;
mod normalisation;
mod oracle;
mod purifier;
mod range;
mod remote;
mod settings;
mod teacher;
#[doc(hidden)]
pub mod testing;
mod threat;
mod train;
mod unroll;

extern crate self as advae_sdk;

pub use advae_abi as abi;
pub use advae_nn as nn;
pub use candle_core;
pub use serde;
pub use serde_json;

pub use advae_abi::info::{Access, AttackInfo, BackwardRule, Label, NormKind as Norm, Setting, Target, Threading};
pub use attack::{Attack, Perturbed};
pub use candle_core::{Result, Tensor};
pub use classifier::Classifier;
pub use energy::energy_gradient;
pub use goal::{Goal, Objective, select_rows};
pub use nn::{Pass, Weights};
pub use norm::Ball;
pub use normalisation::{Normalisation, PerChannel};
pub use oracle::{Gradient, Oracle};
pub use purifier::Purifier;
pub use range::in_range;
pub use remote::RemoteModel;
pub use settings::{InputFile, NoSettings, Settings, describe, read};
pub use teacher::{Learner, Lesson, Teacher, scalar};
pub use threat::{Services, ThreatModel};
pub use unroll::{unrolled, unrolled_by};

/// Everything a plugin's file usually needs.
pub mod prelude {
    pub use crate::{
        Access, Attack, AttackInfo, BackwardRule, Ball, Classifier, Goal, Gradient, InputFile, Label, Learner, Lesson,
        NoSettings, Norm, Normalisation, Objective, Oracle, Pass, PerChannel, Perturbed, Purifier, RemoteModel, Result,
        Services, Settings, Target, Teacher, Tensor, Threading, ThreatModel, Weights, energy_gradient, export_plugin,
        in_range, nn, select_rows, settings, unrolled, unrolled_by,
    };
}

/// What `export_plugin!` expands to; not for direct use.
#[doc(hidden)]
pub mod export_support {
    pub use crate::export::*;
}

/// Version of this crate, for the manifest.
#[doc(hidden)]
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether plugins of this build can run on CUDA devices: feature `cuda`.
pub const CUDA: bool = cfg!(feature = "cuda");
