//! Attacks: perturb `x`, given an oracle.

use crate::{AbiResult, AbiTensor, AbiTensorRef, CtxRef, Taped};
use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, RString, RVec};

/// What an attacker may ask of its target. The host builds it from the threat model's declaration; what is not
/// granted is refused with [`ErrorCode::Denied`](crate::ErrorCode::Denied).
///
/// The sample ids of a question are some of those that `perturb` is given, in any order and as often as images are asked about. Images are
/// finite, and may leave the bounds; a cotangent is finite, and within 1e30.
///
/// Where `info` names a device, images and cotangents may lie there in a call with [`flags::DEVICE`](crate::flags::DEVICE), and logits and gradients
/// lie there then; in a call without it they cross by the CPU. Labels always do.
///
/// # Errors
/// Every question may answer [`ErrorCode::Denied`](crate::ErrorCode::Denied), [`ErrorCode::Cancelled`](crate::ErrorCode::Cancelled)
/// where the run is to end, [`ErrorCode::Shape`](crate::ErrorCode::Shape) where the images are not of the shape that `info` names, and
/// the model's own error. An attack hands such an error on, with its code.
#[sabi_trait]
pub trait AbiOracle: Send + Sync {
    /// An [`OracleInfo`](crate::info::OracleInfo) as JSON.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn info(&self) -> AbiResult<RString>;
    /// Logits `[N,K]` of images `[N,C,H,W]`.
    ///
    /// # Errors
    /// Those of the trait.
    fn logits(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
    /// Labels `[N]` (`i64`) of images `[N,C,H,W]`; each image counts as one query.
    ///
    /// # Errors
    /// Those of the trait; [`ErrorCode::Denied`](crate::ErrorCode::Denied) also beyond the limit of queries.
    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
    /// Logits `[N,K]` of images `[N,C,H,W]`, and the way back to the input.
    ///
    /// # Errors
    /// Those of the trait.
    #[sabi(last_prefix_field)]
    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped>;
}

/// An owned oracle.
pub type OracleBox = AbiOracle_TO<'static, RBox<()>>;

/// What an attack returns. The host measures every image itself.
#[repr(C)]
#[derive(StableAbi)]
pub struct Perturbed {
    /// `[N,C,H,W]`, one image a sample.
    pub x_adv: AbiTensor,
    /// Per sample: 1 where the attack holds that it succeeded, 0 where it found nothing (the host then scores the
    /// clean image). Empty: the attack does not say, every image is scored as it is.
    pub found: RVec<u8>,
    /// Target labels of a targeted attack; empty for an untargeted one.
    pub targets: RVec<u32>,
}

/// An attack.
#[sabi_trait]
pub trait AbiAttack: Send + Sync {
    /// An [`AttackInfo`](crate::info::AttackInfo) as JSON.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn info(&self) -> AbiResult<RString>;
    /// Perturbs clean images `x [N,C,H,W]` with true labels `y [N]` (`i64`). It must not write into what it is lent. With
    /// [`flags::DEVICE`](crate::flags::DEVICE) the images lie on the device that the oracle names, and what is returned may lie there; the
    /// labels are on the CPU. The host asks so only of an attack whose info says that it takes such images.
    ///
    /// # Errors
    /// Those of the oracle, with their codes, and the attack's own.
    #[sabi(last_prefix_field)]
    fn perturb(
        &self,
        ctx: CtxRef<'_>,
        oracle: &OracleBox,
        x: AbiTensorRef<'_>,
        y: AbiTensorRef<'_>,
    ) -> AbiResult<Perturbed>;
}

/// An owned attack.
pub type AttackBox = AbiAttack_TO<'static, RBox<()>>;
