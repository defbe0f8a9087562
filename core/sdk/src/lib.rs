//! What the author of an advae plugin depends on.
//!
//! A plugin is one type that implements one of four traits over ordinary candle tensors, and one macro call:
//!
//! | trait | the author writes | the sdk adds |
//! |---|---|---|
//! | [`Classifier`] | `forward`: images to logits | tapes, gradients, training, weights |
//! | [`Purifier`] | `purify`: images to images, and backward rules | the same, and BPDA |
//! | [`Attack`] | `perturb(oracle, x, y)` | the oracle, per-sample randomness |
//! | [`ThreatModel`] | `access`: what the attacker is granted | the services of the host |
//!
//! ```
//! use advae_sdk::prelude::*;
//!
//! settings! {
//!     /// One step along the sign of the gradient.
//!     pub struct Step {
//!         /// Radius of the Linf ball.
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
//!         let gradient = oracle.gradient(x, |logits| nn::cross_entropy(logits, y))?.x;
//!         let x_adv = (x + (gradient.sign()? * self.0.epsilon)?)?;
//!         Ok(oracle.clip(&x_adv)?.into())
//!     }
//! }
//!
//! export_plugin! { attack: SignAttack }
//! ```

mod attack;
mod classifier;
mod convert;
mod export;
mod goal;
mod model;
mod norm;
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
pub use goal::{Goal, Objective, select_rows};
pub use nn::{Pass, Weights};
pub use norm::Ball;
pub use oracle::{Gradient, Oracle};
pub use purifier::Purifier;
pub use range::in_range;
pub use remote::RemoteModel;
pub use settings::{NoSettings, Settings, describe, read};
pub use teacher::{Learner, Lesson, Teacher, scalar};
pub use threat::{Services, ThreatModel};

/// Everything a plugin's file usually needs.
pub mod prelude {
    pub use crate::{
        Access, Attack, AttackInfo, BackwardRule, Ball, Classifier, Goal, Gradient, Label, Learner, Lesson, NoSettings,
        Norm, Objective, Oracle, Pass, Perturbed, Purifier, RemoteModel, Result, Services, Settings, Target, Teacher,
        Tensor, Threading, ThreatModel, Weights, export_plugin, in_range, nn, select_rows, settings,
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
