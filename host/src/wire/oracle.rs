//! What an attacker may ask, as the threat model's access declares it. The only thing an attack ever sees.

use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Ticker;
use crate::wire::pipeline::{Pipeline, PipelineTape};
use crate::wire::tensor::{Call, Tensor};
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RErr, ROption, RString};
use advae_abi::info::{Access, OracleInfo, Target};
use advae_abi::{
    AbiError, AbiOracle, AbiResult, AbiTape, AbiTensor, AbiTensorRef, CtxRef, ErrorCode, OracleBox, TapeBox, Taped,
};
use advae_abi::{AbiOracle_TO, AbiTape_TO, guard};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What an attack asked about one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Input gradients.
    pub gradients: u64,
    /// Those of them that were zero, or asked for by a loss that did not depend on the logits any more.
    pub zero_gradients: u64,
    /// Labels.
    pub queries: u64,
}

/// What all oracles of one cell share.
#[derive(Debug, Default)]
pub struct Meter {
    queries: AtomicU64,
    samples: Mutex<HashMap<u64, Counts>>,
}

impl Meter {
    /// Label queries so far.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// What was asked about one sample, by the id that the attack knows it by.
    pub fn of(&self, id: u64) -> Counts {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.get(&id).copied().unwrap_or_default()
    }

    /// Counts `images` queries.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`] where that exceeds the limit.
    pub fn charge(&self, images: u64, limit: Option<u64>) -> Result<(), AbiError> {
        let before = self.queries.fetch_add(images, Ordering::Relaxed);
        match limit {
            Some(limit) if before + images > limit => Err(AbiError::new(
                ErrorCode::Denied,
                format!(
                    "the threat model grants {limit} label queries, {} were asked",
                    before + images
                ),
            )),
            _ => Ok(()),
        }
    }

    fn count(&self, ids: &[u64], add: impl Fn(usize, &mut Counts)) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        (ids.iter().enumerate()).for_each(|(i, id)| add(i, samples.entry(*id).or_default()));
    }

    fn count_gradients(&self, ids: &[u64], gradient: &Tensor) {
        self.count(ids, |i, counts| {
            counts.gradients += 1;
            counts.zero_gradients += u64::from(gradient.row(i).iter().all(|v| *v == 0.));
        });
    }
}

/// What an oracle answers from, and by which rules.
#[derive(Clone)]
pub struct Rules {
    /// Answers for logits and gradients.
    pub target: Pipeline,
    /// Answers for labels.
    pub labelled: Pipeline,
    /// What is granted.
    pub access: Access,
    /// Seed of the experiment, which an attack cannot change.
    pub seed: u64,
    /// Draws that logits and gradients are averaged over.
    pub eot: u64,
    /// Whether decided samples may be left alone.
    pub early_stop: bool,
    /// Threads a plugin may use in one call.
    pub call_threads: usize,
    /// Bits of [`advae_abi::flags`] that every pass is made with.
    pub flags: u64,
    /// Shared by all oracles of the cell.
    pub meter: Arc<Meter>,
    /// Stops the run.
    pub cancel: Cancel,
}

/// What became of one oracle.
#[derive(Debug, Default)]
pub struct OracleState {
    error: Mutex<Option<AbiError>>,
    rows: AtomicU64,
}

impl OracleState {
    /// The first call that failed, whether or not the attack told of it.
    pub fn first_error(&self) -> Option<AbiError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Images that went through forward passes.
    pub fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    fn remember<T>(&self, result: AbiResult<T>) -> AbiResult<T> {
        if let RErr(error) = &result {
            let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
        result
    }
}

/// The host's oracle.
pub struct Oracle {
    rules: Rules,
    state: Arc<OracleState>,
    ticker: Ticker,
}

impl Oracle {
    /// An oracle ready to be handed to an attack, and what the host keeps of it.
    pub fn boxed(rules: Rules, ticker: Ticker) -> (OracleBox, Arc<OracleState>) {
        let state = Arc::new(OracleState::default());
        let oracle = Self {
            rules,
            state: state.clone(),
            ticker,
        };
        (AbiOracle_TO::from_value(oracle, TD_Opaque), state)
    }

    fn run<T>(&self, answer: impl FnOnce() -> Result<T, AbiError>) -> AbiResult<T> {
        let checked = || self.rules.cancel.check().and_then(|()| answer());
        self.state.remember(guard(checked))
    }

    fn grant(&self, granted: bool, what: &str) -> Result<(), AbiError> {
        if granted {
            return Ok(());
        }
        let text = format!("the threat model does not grant {what} to the attacker: choose another attack for it");
        Err(AbiError::new(ErrorCode::Denied, text))
    }

    /// The images of a call; context ids and images must be as many.
    fn receive(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> Result<Tensor, AbiError> {
        let (x, ids) = (Tensor::copy_from(x)?, ctx.sample_ids());
        if x.rows() != ids.len() {
            let text = format!(
                "the oracle was asked about {} images with {} sample ids",
                x.rows(),
                ids.len()
            );
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        self.state.rows.fetch_add(ids.len() as u64, Ordering::Relaxed);
        self.ticker.tick(ids.len() as u64);
        Ok(x)
    }

    /// The attack's call under the host's seed, phase and flags.
    fn call<'a>(&self, ctx: CtxRef<'a>, repetition: u64) -> Call<'a> {
        let call = Call::craft(self.rules.seed, ctx.sample_ids())
            .with_threads(self.rules.call_threads)
            .with_flags(self.rules.flags);
        call.with_draw(ctx.get().draw * self.rules.eot + repetition)
    }

    fn mean_logits(&self, ctx: CtxRef<'_>, x: &Tensor) -> Result<Tensor, AbiError> {
        let mut mean: Option<Tensor> = None;
        for repetition in 0..self.rules.eot {
            let logits = self
                .rules
                .target
                .forward(&self.call(ctx, repetition), x)
                .map_err(to_abi)?;
            accumulate(&mut mean, logits);
        }
        scaled(mean, self.rules.eot)
    }

    fn mean_tape(&self, ctx: CtxRef<'_>, x: &Tensor) -> Result<Taped, AbiError> {
        let (mut mean, mut draws) = (None, vec![]);
        for repetition in 0..self.rules.eot {
            let call = self.call(ctx, repetition);
            let (logits, tape) = self.rules.target.forward_tape(&call, x).map_err(to_abi)?;
            accumulate(&mut mean, logits);
            draws.push((tape, call.draw));
        }
        let tape = OracleTape {
            draws: Mutex::new(draws),
            ids: ctx.sample_ids().to_vec(),
            rules: self.rules.clone(),
            state: self.state.clone(),
        };
        let tape: TapeBox = AbiTape_TO::from_value(tape, TD_Opaque);
        Ok(Taped {
            y: scaled(mean, self.rules.eot)?.export()?,
            tape,
        })
    }
}

impl AbiOracle for Oracle {
    fn info(&self) -> AbiResult<RString> {
        self.run(|| {
            let target = &self.rules.target;
            let info = OracleInfo {
                input: target.input().map_err(to_abi)?,
                classes: target.classes(),
                bounds: target.classifier.info().bounds,
                early_stop: self.rules.early_stop,
            };
            serde_json::to_string(&info)
                .map(RString::from)
                .map_err(|e| AbiError::from_error(ErrorCode::Compute, &e))
        })
    }

    fn logits(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.run(|| {
            self.grant(self.rules.access.logits || self.rules.access.gradients, "logits")?;
            let x = self.receive(ctx, x)?;
            self.mean_logits(ctx, &x)?.export()
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.run(|| {
            self.grant(self.rules.access.labels, "labels")?;
            let x = self.receive(ctx, x)?;
            self.rules
                .meter
                .charge(x.rows() as u64, self.rules.access.query_limit)?;
            self.rules
                .meter
                .count(ctx.sample_ids(), |_, counts| counts.queries += 1);
            let logits = self.rules.labelled.forward(&self.call(ctx, 0), &x).map_err(to_abi)?;
            export_labels(&logits)
        })
    }

    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.run(|| {
            self.grant(self.rules.access.gradients, "gradients")?;
            let x = self.receive(ctx, x)?;
            self.mean_tape(ctx, &x)
        })
    }
}

/// The way back through every draw.
struct OracleTape {
    // The tapes of plugins may be moved between threads but not shared.
    draws: Mutex<Vec<(PipelineTape, u64)>>,
    ids: Vec<u64>,
    rules: Rules,
    state: Arc<OracleState>,
}

impl AbiTape for OracleTape {
    fn backward(&self, _: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        let checked = || self.rules.cancel.check().and_then(|()| self.mean_gradient(cotangent));
        self.state.remember(guard(checked))
    }
}

impl OracleTape {
    fn mean_gradient(&self, cotangent: AbiTensorRef<'_>) -> Result<ROption<AbiTensor>, AbiError> {
        let cotangent = Tensor::copy_from(cotangent)?;
        let mut mean = None;
        let draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        for (tape, draw) in draws.iter() {
            let call = Call::craft(self.rules.seed, &self.ids)
                .with_draw(*draw)
                .with_threads(self.rules.call_threads);
            accumulate(&mut mean, tape.backward(&call, &cotangent).map_err(to_abi)?);
        }
        let gradient = scaled(mean, draws.len() as u64)?;
        self.rules.meter.count_gradients(&self.ids, &gradient);
        gradient.export().map(ROption::RSome)
    }
}

/// Whom the oracle answers for, given what the threat model prepared.
///
/// # Errors
/// Where the access names a substitute and none was prepared.
pub fn target(access: &Access, pipeline: &Pipeline, substitute: Option<Pipeline>) -> anyhow::Result<Pipeline> {
    match access.target {
        Target::Pipeline => Ok(pipeline.clone()),
        Target::Classifier => Ok(Pipeline::undefended(pipeline.classifier.clone())),
        Target::Substitute => substitute
            .ok_or_else(|| anyhow::anyhow!("the threat model names a substitute as the target but prepared none")),
    }
}

/// Labels `[N]` of logits `[N,K]`, as they cross.
pub fn export_labels(logits: &Tensor) -> Result<AbiTensor, AbiError> {
    let labels: Vec<i64> = logits.argmax().into_iter().map(i64::from).collect();
    let shape = [labels.len()];
    AbiTensor::from_vec(labels, &shape)
}

/// An error of the host as it crosses; the code of a plugin's own error is kept.
pub fn to_abi(error: anyhow::Error) -> AbiError {
    let code = error
        .downcast_ref::<AbiError>()
        .map_or(ErrorCode::Compute as u32, |e| e.code);
    let mut crossing = AbiError::new(ErrorCode::Compute, format!("{error:#}"));
    crossing.code = code;
    crossing
}

fn accumulate(sum: &mut Option<Tensor>, term: Tensor) {
    match sum {
        Some(sum) => sum.add(&term),
        None => *sum = Some(term),
    }
}

fn scaled(sum: Option<Tensor>, n: u64) -> Result<Tensor, AbiError> {
    let mut sum = sum.ok_or_else(|| AbiError::new(ErrorCode::Compute, "no draw was made"))?;
    if n > 1 {
        sum.scale(1. / n as f32);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_abi::abi_stable::std_types::ROk;

    #[test]
    fn queries_are_metered() {
        let meter = Meter::default();
        assert!(meter.charge(3, Some(4)).is_ok());
        let error = meter.charge(2, Some(4)).unwrap_err();
        assert!(
            error.is(ErrorCode::Denied) && error.message.contains("4 label queries, 5 were asked"),
            "{error}"
        );
        assert!(meter.charge(1000, None).is_ok());
    }

    #[test]
    fn gradients_are_counted_by_sample() {
        let meter = Meter::default();
        let gradient = Tensor::new(vec![3, 2], vec![0., 0., 0., 0., 1., 0.]).unwrap();
        meter.count_gradients(&[4, 9, 4], &gradient);
        let counts = |id| (meter.of(id).gradients, meter.of(id).zero_gradients);
        assert_eq!([counts(4), counts(9), counts(1)], [(2, 1), (1, 1), (0, 0)]);
    }

    #[test]
    fn the_first_error_is_remembered() {
        let state = OracleState::default();
        let _ = state.remember::<()>(ROk(()));
        assert!(state.first_error().is_none());
        for text in ["first", "second"] {
            let _ = state.remember::<()>(RErr(AbiError::new(ErrorCode::Denied, text)));
        }
        assert_eq!(state.first_error().unwrap().message.as_str(), "first");
    }

    #[test]
    fn the_code_of_a_plugins_error_survives() {
        let error = anyhow::anyhow!(AbiError::new(ErrorCode::Cancelled, "stop")).context("classifier 'm'");
        let crossing = to_abi(error);
        assert!(crossing.is(ErrorCode::Cancelled));
        assert_eq!(crossing.to_string(), "classifier 'm': stop");
    }
}
