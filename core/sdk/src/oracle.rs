//! The attacker's view of the target.

use crate::convert::{check_images, import, import_to, lend, lend_in_place, to_candle};
use advae_abi::abi_stable::std_types::RSome;
use advae_abi::info::OracleInfo;
use advae_abi::{AbiError, AbiResult, AbiTensorRef, CallCtx, CallPhase, CtxRef, OracleBox, Taped};
use advae_nn::{Pass, Phase};
use candle_core::{Device, Result, Tensor};

/// What an attack may ask of its target, as far as the threat model grants it. Every answer is per sample.
///
/// # Errors
/// Every question may fail with the codes of [`ErrorCode`](advae_abi::ErrorCode): `Denied` where the threat model does not grant the
/// answer, `Cancelled` where the run is to end, `Shape` where `x` is not `[N,C,H,W]` (`f32`) for the oracle's samples and image
/// shape, and the target's own. Hand such an error on with `?` or `context`: it keeps its code. `Error::wrap` and `Error::msg` of
/// candle keep its text alone.
#[derive(Clone)]
pub struct Oracle<'a> {
    inner: &'a OracleBox,
    info: OracleInfo,
    pass: Pass,
    /// Where it takes and gives tensors without a detour.
    device: Device,
}

/// Input gradient, with the loss and logits of the same pass.
pub struct Gradient {
    /// Gradient of the summed losses with respect to the images, `[N,C,H,W]`: row `i` is that of sample `i` alone.
    pub x: Tensor,
    /// Loss of every sample, `[N]`.
    pub loss: Tensor,
    /// Logits, `[N,K]`.
    pub logits: Tensor,
}

impl<'a> Oracle<'a> {
    pub(crate) fn new(inner: &'a OracleBox, ctx: CtxRef<'_>) -> std::result::Result<Self, AbiError> {
        let text = inner.info().into_result()?;
        let info: OracleInfo = serde_json::from_str(&text).map_err(|e| {
            AbiError::new(
                advae_abi::ErrorCode::Compute,
                format!("the oracle's description is not readable: {e}"),
            )
        })?;
        let pass = Pass {
            phase: Phase::Craft,
            ..crate::convert::pass(&ctx.get(), ctx.sample_ids())
        };
        let device = match &info.device {
            Some(name) if crate::CUDA => crate::convert::device(name)?,
            _ => Device::Cpu,
        };
        Ok(Self {
            inner,
            info,
            pass,
            device,
        })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.info.classes
    }

    /// Range of the pixels.
    pub fn bounds(&self) -> (f64, f64) {
        (f64::from(self.info.bounds[0]), f64::from(self.info.bounds[1]))
    }

    /// Whether a sample that was misclassified once may be left alone: the oracle is the scored, deterministic
    /// pipeline, so stopping cannot flatter the defence. Where it is false, run every step and return the last image.
    pub fn early_stop(&self) -> bool {
        self.info.early_stop
    }

    /// Where questions cost no copy between devices: the GPU of the target, if the host lets tensors stay there, else the CPU. The images
    /// that [`Attack::perturb`](crate::Attack::perturb) is given lie there. Answers lie where the images of the question do.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of samples in the batch.
    pub fn samples(&self) -> usize {
        self.pass.sample_ids.len()
    }

    /// Keys of the attack's own randomness; see [`Pass::rng`].
    pub fn pass(&self) -> &Pass {
        &self.pass
    }

    /// The same oracle for another restart or repetition: its randomness differs.
    pub fn draw(&self, draw: u64) -> Oracle<'a> {
        Self {
            pass: Pass {
                draw,
                ..self.pass.clone()
            },
            ..self.clone()
        }
    }

    /// The oracle for some samples of the batch, by their places in it. Random defences need to know which image is whose.
    ///
    /// # Panics
    /// If an index is not below [`samples`](Self::samples).
    pub fn select(&self, indices: &[usize]) -> Oracle<'a> {
        let ids: Vec<u64> = indices.iter().map(|i| self.pass.sample_ids[*i]).collect();
        Self {
            pass: Pass {
                sample_ids: ids.into(),
                ..self.pass.clone()
            },
            ..self.clone()
        }
    }

    /// Maps images, of any shape, into the bounds.
    ///
    /// # Errors
    /// Where `x` is not `f32`.
    pub fn clip(&self, x: &Tensor) -> Result<Tensor> {
        let (low, high) = self.bounds();
        x.clamp(low, high)
    }

    /// Logits `[N,K]` of images `[N,C,H,W]`.
    ///
    /// # Errors
    /// Those of every question, see [`Oracle`].
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.ask(x, |oracle, ctx, x| oracle.logits(ctx, x))
            .and_then(|y| import_to(x.device(), y.view(), false))
    }

    /// Labels `[N]` (`i64`, on the CPU) of images `[N,C,H,W]`; each image is a query and is metered.
    ///
    /// # Errors
    /// Those of every question, see [`Oracle`]; `Denied` also beyond the limit of queries.
    pub fn labels(&self, x: &Tensor) -> Result<Tensor> {
        self.ask(x, |oracle, ctx, x| oracle.labels(ctx, x))
            .and_then(|y| import(y.view(), false).map_err(to_candle))
    }

    /// Gradient of a loss with respect to the images `x` `[N,C,H,W]`. `loss` maps logits `[N,K]` to per-sample losses `[N]`, with
    /// ordinary differentiable tensor operations.
    ///
    /// # Errors
    /// Those of every question, see [`Oracle`]; `loss`'s own; a loss of another shape, or that does not depend on the logits.
    pub fn gradient(&self, x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Gradient> {
        let mut gradients = self.gradients(x, |logits| Ok(vec![loss(logits)?]))?;
        gradients
            .pop()
            .ok_or_else(|| candle_core::Error::msg("the oracle gave no gradient"))
    }

    /// Gradients of several losses at the same images `x` `[N,C,H,W]`, in their order: one pass forward, and one backward for each.
    ///
    /// # Errors
    /// Those of [`gradient`](Self::gradient).
    pub fn gradients(&self, x: &Tensor, losses: impl Fn(&Tensor) -> Result<Vec<Tensor>>) -> Result<Vec<Gradient>> {
        let taped = self.ask(x, |oracle, ctx, x| oracle.forward_tape(ctx, x))?;
        let logits = import_to(x.device(), taped.y.view(), true)?;
        let losses = losses(&logits)?;
        losses.iter().map(|loss| self.backward(&taped, &logits, loss)).collect()
    }

    fn backward(&self, taped: &Taped, logits: &Tensor, losses: &Tensor) -> Result<Gradient> {
        if losses.dims() != [logits.dim(0)?] {
            candle_core::bail!(
                "the loss has shape {:?}, expected one value a sample [{}]",
                losses.dims(),
                logits.dim(0)?
            )
        }
        let ones = losses.ones_like()?;
        let Some(cotangent) = advae_nn::vjp(logits, losses, &ones)?.0 else {
            candle_core::bail!("the loss does not depend on the logits")
        };
        let gradient = self.lend(&cotangent, |ctx, cotangent| taped.tape.backward(ctx, cotangent))?;
        let RSome(gradient) = gradient else {
            candle_core::bail!("the oracle's tape gave no gradient")
        };
        Ok(Gradient {
            x: import_to(logits.device(), gradient.view(), false)?,
            loss: losses.detach(),
            logits: logits.detach(),
        })
    }

    /// Lends a tensor for a call: as it is where the oracle takes tensors of its device, else on the CPU.
    fn lend<T>(&self, tensor: &Tensor, call: impl FnOnce(CtxRef<'_>, AbiTensorRef<'_>) -> AbiResult<T>) -> Result<T> {
        let mut context = CallCtx::new(self.pass.seed, CallPhase::Craft, &self.pass.sample_ids);
        context.draw = self.pass.draw;
        if tensor.device().is_cuda() && tensor.device().same_device(&self.device) {
            let context = context.on_device();
            return lend_in_place(tensor, |tensor| call(context.lend(&self.pass.sample_ids), tensor));
        }
        lend(tensor, |tensor| call(context.lend(&self.pass.sample_ids), tensor))
    }

    fn ask<T>(
        &self,
        x: &Tensor,
        call: impl FnOnce(&OracleBox, CtxRef<'_>, AbiTensorRef<'_>) -> AbiResult<T>,
    ) -> Result<T> {
        check_images(x, &self.info)?;
        if x.dim(0)? != self.samples() {
            candle_core::bail!(
                "{} images for {} samples: use Oracle::select",
                x.dim(0)?,
                self.samples()
            )
        }
        self.lend(x, |ctx, x| call(self.inner, ctx, x))
    }
}
