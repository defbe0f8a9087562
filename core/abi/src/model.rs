//! Classifiers and purifiers: forward, then a tape that can be run backward.

use crate::{AbiError, AbiResult, AbiTensor, AbiTensorRef, CtxRef, DeviceBox, ErrorCode};
use abi_stable::StableAbi;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, RErr, ROk, ROption, RResult, RSlice, RStr, RString, RVec};

/// What a forward pass left behind for its backward pass. It owns its workspace and frees it when dropped.
#[sabi_trait]
pub trait AbiTape: Send {
    /// Vector-Jacobian product: the cotangent `[like y]` pulled back to the input `[like x]`. May be called again.
    ///
    /// Where the pass was made with [`flags::ACCUMULATE_PARAMS`](crate::flags::ACCUMULATE_PARAMS), parameter
    /// gradients are added to the trainable's sums, and the input gradient may be absent.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] where the cotangent has not the shape of the output; a computation's own.
    #[sabi(last_prefix_field)]
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>>;
}

/// An owned tape.
pub type TapeBox = AbiTape_TO<'static, RBox<()>>;

/// Output of a forward pass, and its tape.
#[repr(C)]
#[derive(StableAbi)]
pub struct Taped {
    /// The output.
    pub y: AbiTensor,
    /// The way back.
    pub tape: TapeBox,
}

/// The parameters of a model under training, shared with the model they were asked from.
#[sabi_trait]
pub trait AbiTrainable: Send + Sync {
    /// One step of the optimiser along the summed gradients, which are then zero again. An error while a tape of the
    /// model lives, since the tape's weights would change under it.
    ///
    /// # Errors
    /// Where a tape lives, or no gradient was summed.
    fn step(&self, learning_rate: f64) -> AbiResult<()>;
    /// Forgets the summed gradients.
    ///
    /// # Errors
    /// Only where the plugin panics.
    fn zero_gradients(&self) -> AbiResult<()>;
    /// The weights as a safetensors blob: what the plugin's constructor reads.
    ///
    /// # Errors
    /// Where a weight is not finite.
    fn save_weights(&self) -> AbiResult<RVec<u8>>;
    /// Replaces the weights.
    ///
    /// # Errors
    /// Where the blob lacks a weight, or one has another shape.
    fn load_weights(&self, blob: RSlice<'_, u8>) -> AbiResult<()>;
    /// The optimiser's moments and step count, for an exact resume.
    ///
    /// # Errors
    /// Where a moment is not finite.
    fn save_state(&self) -> AbiResult<RVec<u8>>;
    /// Restores what [`save_state`](Self::save_state) wrote.
    ///
    /// # Errors
    /// Where the blob is of another optimiser or model.
    #[sabi(last_prefix_field)]
    fn load_state(&self, blob: RSlice<'_, u8>) -> AbiResult<()>;
    // What later versions append, each with a default.
    /// One update by an objective of the plugin's own ([`TrainSettings::own`](crate::info::TrainSettings::own)): what it
    /// measured as JSON, names to numbers, `loss` among them. Since 1.2.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] where there is no such objective; a computation's own.
    fn learn(&self, ctx: CtxRef<'_>, lesson: Lesson<'_>) -> AbiResult<RString> {
        let _ = (ctx, lesson);
        RErr(AbiError::new(
            ErrorCode::Unsupported,
            "this plugin has no objective of its own",
        ))
    }
    // End of AbiTrainable.
}

/// What an objective of the plugin's own learns from.
#[repr(C)]
#[derive(StableAbi)]
pub struct Lesson<'a> {
    /// Images `[N,C,H,W]`.
    pub clean: AbiTensorRef<'a>,
    /// Adversarial images of the same samples, where the recipe names an attack.
    pub adversarial: ROption<AbiTensorRef<'a>>,
    /// True labels `[N]` (`i64`).
    pub labels: AbiTensorRef<'a>,
    /// The optimisers' rate.
    pub learning_rate: f64,
}

/// An owned trainable.
pub type TrainableBox = AbiTrainable_TO<'static, RBox<()>>;

/// A classifier (`x [N,C,H,W]` to logits `[N,K]`) or a purifier (`x` to `x`), all `f32`.
#[sabi_trait]
pub trait AbiModel: Send + Sync {
    /// A [`ModelInfo`](crate::info::ModelInfo) as JSON.
    ///
    /// # Errors
    /// Where it cannot be written.
    fn info(&self) -> AbiResult<RString>;
    /// Output alone: `x [N,C,H,W]` to `[N,K]`, or to `[N,C,H,W]`.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] where the images are not of the shape that `info` names; a computation's own.
    fn forward(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor>;
    /// Output, as of `forward`, and tape.
    ///
    /// # Errors
    /// Those of `forward`.
    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped>;
    /// The model's parameters, to be trained; settings as JSON ([`TrainSettings`](crate::info::TrainSettings)).
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] where there is nothing to train, [`ErrorCode::Config`] for settings it does not know.
    #[sabi(last_prefix_field)]
    fn trainable(&self, settings: RStr<'_>) -> AbiResult<TrainableBox>;
    // The contract is append-only: every method from here on has a default.
    /// Activations of the penultimate layer, flattened, `[N,F]`.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] where the model exposes none; those of `forward`.
    fn features(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        let _ = (ctx, x);
        RErr(AbiError::new(ErrorCode::Unsupported, "this model exposes no features"))
    }
    /// The same, and the way back to the input.
    ///
    /// # Errors
    /// Those of `features`.
    fn features_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        let _ = (ctx, x);
        RErr(AbiError::new(
            ErrorCode::Unsupported,
            "this model exposes no features to be differentiated",
        ))
    }
    /// The device that the model computes on, where calls with [`flags::DEVICE`](crate::flags::DEVICE) leave their tensors there. None: on
    /// the CPU, or where tensors cross by the CPU only. Since 1.3.
    ///
    /// # Errors
    /// Where the device fails.
    fn device(&self) -> AbiResult<ROption<DeviceBox>> {
        ROk(ROption::RNone)
    }
    // End of AbiModel.
}

/// An owned model.
pub type ModelBox = AbiModel_TO<'static, RBox<()>>;

/// The answer of a model that has nothing to train.
///
/// # Errors
/// Always [`ErrorCode::Unsupported`].
pub fn not_trainable<T>() -> AbiResult<T> {
    RResult::RErr(AbiError::new(
        ErrorCode::Unsupported,
        "this plugin has no trainable parameters",
    ))
}
