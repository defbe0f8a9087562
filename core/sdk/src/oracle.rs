//! The attacker's view of the target.

use crate::convert::{check_images, import, lend, to_candle, variable};
use advae_abi::abi_stable::std_types::RSome;
use advae_abi::info::OracleInfo;
use advae_abi::{AbiError, CallCtx, CallPhase, CtxRef, OracleBox, Taped};
use advae_nn::{Pass, Phase};
use candle_core::{Result, Tensor};

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
        let info = serde_json::from_str(&text).map_err(|e| {
            AbiError::new(
                advae_abi::ErrorCode::Compute,
                format!("the oracle's description is not readable: {e}"),
            )
        })?;
        let pass = Pass {
            phase: Phase::Craft,
            ..crate::convert::pass(&ctx.get(), ctx.sample_ids())
        };
        Ok(Self { inner, info, pass })
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
            inner: self.inner,
            info: self.info.clone(),
            pass: Pass {
                draw,
                ..self.pass.clone()
            },
        }
    }

    /// The oracle for some samples of the batch, by their places in it. Random defences need to know which image is whose.
    ///
    /// # Panics
    /// If an index is not below [`samples`](Self::samples).
    pub fn select(&self, indices: &[usize]) -> Oracle<'a> {
        let ids: Vec<u64> = indices.iter().map(|i| self.pass.sample_ids[*i]).collect();
        Self {
            inner: self.inner,
            info: self.info.clone(),
            pass: Pass {
                sample_ids: ids.into(),
                ..self.pass.clone()
            },
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
            .and_then(|y| import(y.view(), false).map_err(to_candle))
    }

    /// Labels `[N]` (`i64`) of images `[N,C,H,W]`; each image is a query and is metered.
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
        let logits = variable(&import(taped.y.view(), false).map_err(to_candle)?)?;
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
        let context = self.context();
        let ctx = context.lend(&self.pass.sample_ids);
        let RSome(gradient) = lend(&cotangent, |cotangent| taped.tape.backward(ctx, cotangent))? else {
            candle_core::bail!("the oracle's tape gave no gradient")
        };
        let gradient = import(gradient.view(), false).map_err(to_candle)?;
        Ok(Gradient {
            x: gradient,
            loss: losses.detach(),
            logits: logits.detach(),
        })
    }

    fn context(&self) -> CallCtx {
        let mut ctx = CallCtx::new(self.pass.seed, CallPhase::Craft, &self.pass.sample_ids);
        ctx.draw = self.pass.draw;
        ctx
    }

    fn ask<T>(
        &self,
        x: &Tensor,
        call: impl FnOnce(&OracleBox, CtxRef<'_>, advae_abi::AbiTensorRef<'_>) -> advae_abi::AbiResult<T>,
    ) -> Result<T> {
        check_images(x, &self.info)?;
        if x.dim(0)? != self.samples() {
            candle_core::bail!(
                "{} images for {} samples: use Oracle::select",
                x.dim(0)?,
                self.samples()
            )
        }
        let context = self.context();
        lend(x, |x| call(self.inner, context.lend(&self.pass.sample_ids), x))
    }
}
