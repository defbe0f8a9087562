//! Threat models: what the attacker knows, declared as data, and what it prepares before the attack.

use crate::{AbiResult, AbiTensor, AbiTensorRef, CtxRef, ModelBox};
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RStr, RString, Tuple2};

/// What the host offers to a threat model while it prepares a cell.
#[sabi_trait]
pub trait AbiServices: Send + Sync {
    /// A fresh, randomly initialised and trainable classifier of that plugin; an empty name asks for the
    /// architecture under attack.
    ///
    /// # Errors
    /// Where there is no such plugin, or it is no classifier.
    fn fresh_classifier(&self, name: RStr<'_>, seed: u64) -> AbiResult<ModelBox>;
    /// Images `[N,C,H,W]` and true labels `[N]` (`i64`) that are kept out of scoring.
    ///
    /// # Errors
    /// Where none were kept.
    fn seeds(&self) -> AbiResult<Tuple2<AbiTensor, AbiTensor>>;
    /// Labels `[N]` (`i64`) of the whole pipeline for images `[N,C,H,W]`; each image counts as one query.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`](crate::ErrorCode::Denied) without access to labels or beyond the limit of queries,
    /// [`ErrorCode::Cancelled`](crate::ErrorCode::Cancelled) where the run is to end; a model's own.
    #[sabi(last_prefix_field)]
    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
}

/// Owned services.
pub type ServicesBox = AbiServices_TO<'static, RBox<()>>;

/// A threat model.
#[sabi_trait]
pub trait AbiThreatModel: Send + Sync {
    /// An [`Access`](crate::info::Access) as JSON.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn access(&self) -> AbiResult<RString>;
    /// Called once a cell, before the attack. Where the access names the target `substitute`, returns that model.
    ///
    /// # Errors
    /// Those of the services, with their codes, and the threat model's own.
    #[sabi(last_prefix_field)]
    fn prepare(&self, ctx: CtxRef<'_>, services: &ServicesBox) -> AbiResult<ROption<ModelBox>>;
}

/// An owned threat model.
pub type ThreatModelBox = AbiThreatModel_TO<'static, RBox<()>>;
