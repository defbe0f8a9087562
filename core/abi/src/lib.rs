//! The binary contract between the advae host and its plugins, version 1.3.
//!
//! A plugin is one shared library that brings a classifier, a purifier, an attack or a threat model. It is built
//! without the host, perhaps by another compiler, and meets the host only through the types of this crate:
//!
//! * tensors cross as [DLPack](https://dmlc.github.io/dlpack/latest/) ([`AbiTensor`] owned, [`AbiTensorRef`] borrowed);
//! * models cross as "forward, then a tape that can be run backward" ([`AbiModel`], [`AbiTape`]);
//! * attacks cross as "perturb `x`, given an oracle" ([`AbiAttack`], [`AbiOracle`]);
//! * tensors may stay on a model's device during an attack ([`AbiDevice`], [`flags::DEVICE`]);
//! * a threat model declares what an attacker may ask ([`AbiThreatModel`], [`info::Access`]).
//!
//! The contract is **append-only**: methods and fields are only ever added at the end, as options or with defaults.
//! That is what makes the layout check in both directions ([`load::root_from_header`]) sound. Structured
//! descriptions cross as JSON, whose types are in [`info`]; unknown fields are ignored on reading.
//!
//! Authors of plugins normally depend on `advae-sdk`; this crate alone is enough for a plugin without candle.
#![allow(non_local_definitions)]
#![warn(clippy::missing_errors_doc, clippy::missing_panics_doc)]

mod attack;
mod context;
mod device;
mod error;
pub mod info;
pub mod load;
mod manifest;
mod model;
mod root;
mod tensor;
mod threat;

pub use abi_stable;
pub use attack::*;
pub use context::*;
pub use device::*;
pub use error::*;
pub use manifest::*;
pub use model::*;
pub use root::*;
pub use serde_json;
pub use tensor::*;
pub use threat::*;

/// Major version of the contract: a plugin of another major is refused.
pub const CONTRACT_MAJOR: u32 = 1;
/// Minor version of the contract: grows when methods or fields are appended; any minor works with any other.
pub const CONTRACT_MINOR: u32 = 3;
/// The compiler that built this copy of the contract, as `rustc --version` prints it.
pub const RUSTC_VERSION: &str = env!("ADVAE_RUSTC_VERSION");
