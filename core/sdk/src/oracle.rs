//! The attacker's view of the target.

use crate::convert::{check_images, export, import, to_candle, variable};
use advae_abi::abi_stable::std_types::{RResult, RSome};
use advae_abi::info::OracleInfo;
use advae_abi::{AbiError, CallCtx, CallPhase, CtxRef, OracleBox};
use advae_nn::{Pass, Phase};
use candle_core::{Result, Tensor};

/// What an attack may ask of its target, as far as the threat model grants it. Every answer is per sample.
#[derive(Clone)]
pub struct Oracle<'a> {
    inner: &'a OracleBox,
    info: OracleInfo,
    pass: Pass,
}

/// A gradient, and what fell off on the way.
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

    /// The oracle for some samples of the batch. Random defences need to know which image is whose.
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

    /// Maps images into the bounds.
    pub fn clip(&self, x: &Tensor) -> Result<Tensor> {
        let (low, high) = self.bounds();
        x.clamp(low, high)
    }

    /// Logits `[N,K]` of images `[N,C,H,W]`.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.ask(x, |oracle, ctx, x| oracle.logits(ctx, x))
            .and_then(|y| import(y.view(), false).map_err(to_candle))
    }

    /// Labels `[N]` (`i64`) of images; each image is a query and is metered.
    pub fn labels(&self, x: &Tensor) -> Result<Tensor> {
        self.ask(x, |oracle, ctx, x| oracle.labels(ctx, x))
            .and_then(|y| import(y.view(), false).map_err(to_candle))
    }

    /// Gradient of a loss with respect to the images. `loss` maps logits `[N,K]` to per-sample losses `[N]`, with
    /// ordinary differentiable tensor operations.
    pub fn gradient(&self, x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Gradient> {
        let taped = self.ask(x, |oracle, ctx, x| oracle.forward_tape(ctx, x))?;
        let logits = variable(&import(taped.y.view(), false).map_err(to_candle)?)?;
        let losses = loss(&logits)?;
        if losses.dims() != [logits.dim(0)?] {
            candle_core::bail!(
                "the loss has shape {:?}, expected one value a sample [{}]",
                losses.dims(),
                logits.dim(0)?
            )
        }
        let ones = losses.ones_like()?;
        let Some(cotangent) = advae_nn::vjp(&logits, &losses, &ones)?.0 else {
            candle_core::bail!("the loss does not depend on the logits")
        };
        let cotangent = export(&cotangent)?;
        let context = self.context();
        let back = taped
            .tape
            .backward(context.lend(&self.pass.sample_ids), cotangent.view());
        let RResult::ROk(RSome(gradient)) = back else {
            return Err(match back {
                RResult::RErr(error) => to_candle(error),
                _ => candle_core::Error::Msg("the oracle's tape gave no gradient".into()),
            });
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
        let images = export(x)?;
        let context = self.context();
        call(self.inner, context.lend(&self.pass.sample_ids), images.view())
            .into_result()
            .map_err(to_candle)
    }
}
