//! A model of another plugin, as a threat model receives it from the host.

use crate::convert::{import, lend, to_candle};
use advae_abi::abi_stable::std_types::ROption;
use advae_abi::info::{ModelInfo, TrainSettings};
use advae_abi::{CallCtx, CallPhase, ModelBox, TrainableBox, flags};
use candle_core::{Result, Tensor};

/// A trainable classifier behind the contract.
pub struct RemoteModel {
    model: ModelBox,
    trainable: TrainableBox,
}

impl RemoteModel {
    pub(crate) fn new(model: ModelBox) -> Result<Self> {
        let text = serde_json::to_string(&TrainSettings::adam()).map_err(candle_core::Error::wrap)?;
        let trainable = model.trainable(text.as_str().into()).into_result().map_err(to_candle)?;
        Ok(Self { model, trainable })
    }

    pub(crate) fn into_inner(self) -> ModelBox {
        self.model
    }

    /// What the model says of itself.
    ///
    /// # Errors
    /// Where the description is not readable.
    pub fn info(&self) -> Result<ModelInfo> {
        let text = self.model.info().into_result().map_err(to_candle)?;
        serde_json::from_str(&text).map_err(candle_core::Error::wrap)
    }

    /// Logits `[N,K]` of images `[N,C,H,W]` in evaluation mode.
    ///
    /// # Errors
    /// The model's, with their code.
    pub fn logits(&self, x: &Tensor) -> Result<Tensor> {
        let mut ctx = CallCtx::new(0, CallPhase::Craft, &[]);
        ctx.threads = advae_nn::threads() as u32;
        let y = lend(x, |x| self.model.forward(ctx.lend(&[]), x))?;
        import(y.view(), false).map_err(to_candle)
    }

    /// Gradient of a loss on the logits (`[N,K]` to `[N]`) with respect to the images, both `[N,C,H,W]`, in evaluation mode.
    ///
    /// # Errors
    /// The model's, with their code; `loss`'s own; a loss that does not depend on the logits.
    pub fn gradient(&self, x: &Tensor, loss: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        match self.taped(x, 0, 0, loss)?.1 {
            Some(gradient) => Ok(gradient),
            None => candle_core::bail!("the model's tape gave no gradient"),
        }
    }

    /// One step of Adam on the mean of a loss (`[N,K]` to `[N]`) over images `[N,C,H,W]`, in training mode. Returns the mean loss.
    ///
    /// # Errors
    /// As for [`gradient`](Self::gradient).
    pub fn train_step(
        &self,
        x: &Tensor,
        seed: u64,
        rate: f64,
        loss: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<f32> {
        let (losses, _) = self.taped(x, seed, flags::TRAIN | flags::ACCUMULATE_PARAMS, |logits| {
            loss(logits)?.affine(1. / x.dim(0)? as f64, 0.)
        })?;
        self.trainable.step(rate).into_result().map_err(to_candle)?;
        losses.sum_all()?.to_scalar()
    }

    fn taped(
        &self,
        x: &Tensor,
        seed: u64,
        flags: u64,
        loss: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let ids: Vec<u64> = (0..x.dim(0)? as u64).collect();
        let mut ctx = CallCtx::new(seed, CallPhase::Craft, &ids);
        (ctx.flags, ctx.threads) = (flags, advae_nn::threads() as u32);
        let taped = lend(x, |x| self.model.forward_tape(ctx.lend(&ids), x))?;
        let logits = crate::convert::variable(&import(taped.y.view(), false).map_err(to_candle)?)?;
        let losses = loss(&logits)?;
        let Some(cotangent) = advae_nn::vjp(&logits, &losses, &losses.ones_like()?)?.0 else {
            candle_core::bail!("the loss does not depend on the logits")
        };
        let back = lend(&cotangent, |cotangent| taped.tape.backward(ctx.lend(&ids), cotangent))?;
        let gradient = match back {
            ROption::RSome(gradient) => Some(import(gradient.view(), false).map_err(to_candle)?),
            ROption::RNone => None,
        };
        Ok((losses.detach(), gradient))
    }
}
