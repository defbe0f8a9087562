//! A target in the same process, for the tests of attacks.

use crate::convert::{export, import, json, run, to_candle};
use crate::{Attack, Oracle, Perturbed};
use advae_abi::abi_stable::sabi_trait::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RSome, RString};
use advae_abi::info::OracleInfo;
use advae_abi::{
    AbiError, AbiOracle, AbiOracle_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, CallCtx, CallPhase,
    CtxRef, ErrorCode, OracleBox, Taped,
};
use advae_nn::{Linear, Pass, Weights, relu};
use candle_core::{D, Device, Result, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub mod toy;

type Forward = dyn Fn(&Pass, &Tensor) -> Result<Tensor> + Send + Sync;

/// A model given as a closure, with everything granted, and a count of what was asked.
#[derive(Clone)]
pub struct Testbed {
    forward: Arc<Forward>,
    info: OracleInfo,
    gradients: bool,
    asked: Arc<AtomicUsize>,
}

impl Testbed {
    /// Images `[N,C,H,W]` of this shape to logits `[N,K]`.
    pub fn new(
        input: [usize; 3],
        classes: usize,
        forward: impl Fn(&Pass, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
    ) -> Self {
        let info = OracleInfo {
            input,
            classes,
            bounds: [0., 1.],
            early_stop: true,
            device: None,
        };
        Self {
            forward: Arc::new(forward),
            info,
            gradients: true,
            asked: Arc::default(),
        }
    }

    /// Logits `z = W x + b`, with the rows of `W` over flattened images.
    ///
    /// # Errors
    /// Where the rows differ in length.
    pub fn linear(input: [usize; 3], weight: &[Vec<f32>], bias: &[f32]) -> Result<Self> {
        let device = &Device::Cpu;
        let columns = Tensor::new(weight.concat(), device)?
            .reshape((weight.len(), ()))?
            .t()?
            .contiguous()?;
        let bias = Tensor::new(bias, device)?;
        // Row by row: a sum must not depend on the batch.
        let row = move |x: &Tensor| {
            x.flatten_all()?
                .unsqueeze(1)?
                .broadcast_mul(&columns)?
                .sum(0)?
                .broadcast_add(&bias)
        };
        Ok(Self::new(input, weight.len(), move |_, x| {
            Tensor::stack(&(0..x.dim(0)?).map(|i| row(&x.get(i)?)).collect::<Result<Vec<_>>>()?, 0)
        }))
    }

    /// Two linear layers with a ReLU between them, randomly initialised.
    ///
    /// # Errors
    /// Where there is no hidden unit or class.
    pub fn mlp(input: [usize; 3], hidden: usize, classes: usize, seed: u64) -> Result<Self> {
        let weights = Weights::init(seed);
        let first = Linear::new(&weights.pp("first"), input.iter().product(), hidden)?;
        let second = Linear::new(&weights.pp("second"), hidden, classes)?;
        Ok(Self::new(input, classes, move |pass, x| {
            second.forward(pass, &relu(&first.forward(pass, &x.flatten_from(1)?)?)?)
        }))
    }

    /// The same target with another answer to [`Oracle::early_stop`].
    pub fn with_early_stop(&self, early_stop: bool) -> Self {
        Self {
            info: OracleInfo {
                early_stop,
                ..self.info.clone()
            },
            ..self.clone()
        }
    }

    /// The same target, refusing gradients.
    pub fn without_gradients(&self) -> Self {
        Self {
            gradients: false,
            ..self.clone()
        }
    }

    /// How many images were shown to the target so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Runs an attack against samples with these ids; labels come to it as the host gives them, int64.
    ///
    /// # Errors
    /// The attack's.
    pub fn attack<A: Attack>(&self, attack: &A, ids: &[u64], x: &Tensor, y: &[u32]) -> Result<Perturbed> {
        let y: Vec<i64> = y.iter().map(|label| i64::from(*label)).collect();
        self.with_oracle(ids, |oracle| attack.perturb(oracle, x, &Tensor::new(y, &Device::Cpu)?))
    }

    /// Runs `f` with an oracle for these samples.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn with_oracle<T>(&self, ids: &[u64], f: impl FnOnce(&Oracle) -> Result<T>) -> Result<T> {
        let inner: OracleBox = AbiOracle_TO::from_value(self.clone(), TD_Opaque);
        let ctx = CallCtx::new(7, CallPhase::Craft, ids);
        f(&Oracle::new(&inner, ctx.lend(ids)).map_err(to_candle)?)
    }

    /// Predicted labels `[N]`.
    ///
    /// # Errors
    /// The model's.
    pub fn predict(&self, x: &Tensor) -> Result<Vec<u32>> {
        (self.forward)(&Pass::eval(), x)?.argmax(D::Minus1)?.to_vec1()
    }
}

impl AbiOracle for Testbed {
    fn info(&self) -> AbiResult<RString> {
        json(|| &self.info)
    }

    fn logits(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        run(ctx, |pass| {
            self.asked.fetch_add(ctx.sample_ids().len(), Ordering::Relaxed);
            export(&(self.forward)(&pass, &import(x, false).map_err(to_candle)?)?)
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        run(ctx, |_| {
            self.asked.fetch_add(ctx.sample_ids().len(), Ordering::Relaxed);
            let labels = self.predict(&import(x, false).map_err(to_candle)?)?;
            export(&Tensor::new(
                labels.into_iter().map(i64::from).collect::<Vec<_>>(),
                &Device::Cpu,
            )?)
        })
    }

    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        if !self.gradients {
            let error = AbiError::new(
                ErrorCode::Denied,
                "the threat model does not grant gradients to the attacker",
            );
            return advae_abi::guard(|| Err(error));
        }
        run(ctx, |pass| {
            self.asked.fetch_add(ctx.sample_ids().len(), Ordering::Relaxed);
            let x = import(x, true).map_err(to_candle)?;
            let y = (self.forward)(&pass, &x)?;
            Ok(Taped {
                y: export(&y)?,
                tape: AbiTape_TO::from_value(Tape { x, y }, TD_Opaque),
            })
        })
    }
}

struct Tape {
    x: Tensor,
    y: Tensor,
}

impl AbiTape for Tape {
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        run(ctx, |_| {
            let cotangent = import(cotangent, false).map_err(to_candle)?;
            let gradient = advae_nn::vjp(&self.x, &self.y, &cotangent)?.0;
            Ok(RSome(export(&gradient.map_or_else(|| self.x.zeros_like(), Ok)?)?))
        })
    }
}
