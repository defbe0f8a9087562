//! What an attacker may ask, as the threat model's access declares it. The only thing an attack ever sees.

use crate::plugin::fenv;
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
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Largest value of a cotangent. Beyond it a backward pass in f32 overflows, and the model would be blamed.
const LARGEST_COTANGENT: f32 = 1e30;

/// What an attack asked about one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gradients it asked for. One that is averaged over several draws counts once; one that the attack did not need, because the sample was
    /// misclassified and the loss had nothing left to gain, does not count.
    pub gradients: u64,
    /// Gradients that were zero in every pixel: the model's gradient was, or the attack's loss did not depend on the logits although the
    /// sample was still classified correctly (a saturated loss).
    pub zero_gradients: u64,
    /// Those of them where the loss did not depend on the logits.
    pub saturated: u64,
    /// Images whose label it asked for.
    pub queries: u64,
    /// Images that it asked anything about: logits, gradients or labels.
    pub asked: u64,
}

/// What all oracles of one cell share.
#[derive(Debug, Default)]
pub struct Meter {
    queries: AtomicU64,
    samples: Mutex<HashMap<u64, Counts>>,
}

impl Meter {
    /// What was asked about one sample so far.
    pub fn of(&self, id: u64) -> Counts {
        self.samples().get(&id).copied().unwrap_or_default()
    }

    /// Label queries so far, those of a threat model's preparation included.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
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

    fn count_queries(&self, ids: &[u64]) {
        let mut samples = self.samples();
        ids.iter().for_each(|id| samples.entry(*id).or_default().queries += 1);
    }

    fn count_asked(&self, ids: &[u64]) {
        let mut samples = self.samples();
        ids.iter().for_each(|id| samples.entry(*id).or_default().asked += 1);
    }

    /// Counts the gradients of one backward pass; `correct` says of each row whether it was still classified correctly.
    fn count_gradients(&self, ids: &[u64], correct: &[bool], cotangent: &Tensor, gradient: &Tensor) {
        let zero = |row: &[f32]| row.iter().all(|v| *v == 0.);
        let mut samples = self.samples();
        for (i, id) in ids.iter().enumerate() {
            let no_loss = zero(cotangent.row(i));
            if no_loss && !correct[i] {
                continue;
            }
            let counts = samples.entry(*id).or_default();
            counts.gradients += 1;
            counts.zero_gradients += u64::from(zero(gradient.row(i)));
            counts.saturated += u64::from(no_loss);
        }
    }

    fn samples(&self) -> MutexGuard<'_, HashMap<u64, Counts>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sees the images that an attack asks about, and the logits that it is given for them.
pub trait Watch: Send + Sync {
    /// `x [N,C,H,W]` under the attack's `ids`, and the mean logits `[N,K]` over the oracle's draws.
    fn seen(&self, ids: &[u64], x: &Tensor, logits: &Tensor);
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
    /// Ids by which samples are scored, by those the attack knows them by, where the attacker knows the draw that scores: every answer is
    /// then of that draw.
    pub known_ids: Option<Arc<BTreeMap<u64, u64>>>,
    /// Threads a plugin may use in one call.
    pub call_threads: usize,
    /// Bits of [`advae_abi::flags`] that every pass is made with.
    pub flags: u64,
    /// Shared by all oracles of the cell.
    pub meter: Arc<Meter>,
    /// Who sees what is asked, and what is answered; absent: nobody.
    pub watch: Option<Arc<dyn Watch>>,
    /// Stops the run.
    pub cancel: Cancel,
}

/// Access to everything, without a limit.
pub fn everything(target: Target) -> Access {
    Access {
        target,
        gradients: true,
        logits: true,
        labels: true,
        query_limit: None,
    }
}

impl Rules {
    /// The ids by which the target is shown samples that the attack calls `ids`.
    fn shown(&self, ids: &[u64]) -> Vec<u64> {
        match &self.known_ids {
            Some(known) => ids.iter().map(|id| known.get(id).copied().unwrap_or(*id)).collect(),
            None => ids.to_vec(),
        }
    }

    /// A call for a draw of the attacker's, or for the one that scores where it knows that.
    fn call<'a>(&self, shown: &'a [u64], draw: u64) -> Call<'a> {
        let call = match self.known_ids {
            Some(_) => Call::score(self.seed, shown),
            None => Call::craft(self.seed, shown).with_draw(draw),
        };
        call.with_threads(self.call_threads)
    }
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

/// The host's oracle for one batch.
pub struct Oracle {
    rules: Rules,
    /// True labels of the batch, by sample id.
    labels: BTreeMap<u64, u32>,
    state: Arc<OracleState>,
    ticker: Ticker,
}

/// What an attack asks about: as many images as ids.
struct Question {
    ids: Vec<u64>,
    /// Ids that the target is shown.
    shown: Vec<u64>,
    draw: u64,
    x: Tensor,
}

impl Oracle {
    /// An oracle about the samples `ids` with true labels `labels`, ready to be handed to an attack, and what the host keeps of it.
    pub fn boxed(rules: Rules, ids: &[u64], labels: &[u32], ticker: Ticker) -> (OracleBox, Arc<OracleState>) {
        let state = Arc::new(OracleState::default());
        let oracle = Self {
            rules,
            labels: ids.iter().copied().zip(labels.iter().copied()).collect(),
            state: state.clone(),
            ticker,
        };
        (AbiOracle_TO::from_value(oracle, TD_Opaque), state)
    }

    fn run<T>(&self, answer: impl FnOnce() -> Result<T, AbiError>) -> AbiResult<T> {
        answered(&self.rules, &self.state, answer)
    }

    fn grant(&self, granted: bool, what: &str) -> Result<(), AbiError> {
        if granted {
            return Ok(());
        }
        let text = format!("the threat model does not grant {what} to the attacker: choose another attack for it");
        Err(AbiError::new(ErrorCode::Denied, text))
    }

    /// Takes a question in, once and for all: the attack may change its own memory at any time.
    fn receive(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> Result<Question, AbiError> {
        let ids = ctx.sample_ids().to_vec();
        if let Some(id) = ids.iter().find(|id| !self.labels.contains_key(id)) {
            let text = format!(
                "the oracle was asked about sample {id}, which is none of the batch: ask with the sample ids that perturb is given"
            );
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        let x = images(x, &ids, &self.rules.target)?;
        self.state.rows.fetch_add(ids.len() as u64, Ordering::Relaxed);
        self.ticker.tick(ids.len() as u64);
        self.rules.meter.count_asked(&ids);
        let draw = ctx.get().draw;
        let shown = self.rules.shown(&ids);
        Ok(Question { ids, shown, draw, x })
    }

    /// The attack's call under the host's seed, phase and flags.
    fn call<'a>(&self, question: &'a Question, repetition: u64) -> Call<'a> {
        let draw = question.draw.wrapping_mul(self.rules.eot).wrapping_add(repetition);
        self.rules.call(&question.shown, draw).with_flags(self.rules.flags)
    }

    fn mean_logits(&self, question: &Question) -> Result<Tensor, AbiError> {
        let mut mean: Option<Tensor> = None;
        for repetition in 0..self.rules.eot {
            let call = self.call(question, repetition);
            let logits = self.rules.target.forward(&call, &question.x).map_err(to_abi)?;
            accumulate(&mut mean, logits);
        }
        let logits = scaled(mean, self.rules.eot)?;
        self.show(question, &logits);
        Ok(logits)
    }

    fn show(&self, question: &Question, logits: &Tensor) {
        if let Some(watch) = &self.rules.watch {
            watch.seen(&question.ids, &question.x, logits);
        }
    }

    fn mean_tape(&self, question: Question) -> Result<Taped, AbiError> {
        let (mut mean, mut draws) = (None, vec![]);
        for repetition in 0..self.rules.eot {
            let call = self.call(&question, repetition);
            let (logits, tape) = self.rules.target.forward_tape(&call, &question.x).map_err(to_abi)?;
            accumulate(&mut mean, logits);
            draws.push((tape, call.draw));
        }
        let logits = scaled(mean, self.rules.eot)?;
        self.show(&question, &logits);
        let label = |id: &u64| self.labels.get(id).copied();
        let predicted = logits.argmax().into_iter().map(Some);
        let tape = OracleTape {
            draws: Mutex::new(draws),
            correct: question
                .ids
                .iter()
                .map(label)
                .zip(predicted)
                .map(|(label, said)| label == said)
                .collect(),
            output: logits.shape.clone(),
            ids: question.ids,
            shown: question.shown,
            rules: self.rules.clone(),
            state: self.state.clone(),
        };
        let tape: TapeBox = AbiTape_TO::from_value(tape, TD_Opaque);
        Ok(Taped {
            y: logits.export()?,
            tape,
        })
    }
}

/// Runs the host's code for an attack: not at all where the run is cancelled, and under the host's floating-point state.
fn answered<T>(rules: &Rules, state: &OracleState, answer: impl FnOnce() -> Result<T, AbiError>) -> AbiResult<T> {
    let checked = || rules.cancel.check().and_then(|()| answer());
    state.remember(fenv::as_host(|| guard(checked)))
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
            let question = self.receive(ctx, x)?;
            self.mean_logits(&question)?.export()
        })
    }

    fn labels(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.run(|| {
            self.grant(self.rules.access.labels, "labels")?;
            let question = self.receive(ctx, x)?;
            let Rules {
                meter,
                access,
                labelled,
                ..
            } = &self.rules;
            meter.charge(question.ids.len() as u64, access.query_limit)?;
            meter.count_queries(&question.ids);
            let logits = labelled
                .forward(&self.call(&question, 0), &question.x)
                .map_err(to_abi)?;
            export_labels(&logits)
        })
    }

    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.run(|| {
            self.grant(self.rules.access.gradients, "gradients")?;
            let question = self.receive(ctx, x)?;
            self.mean_tape(question)
        })
    }
}

/// The way back through every draw.
struct OracleTape {
    // The tapes of plugins may be moved between threads but not shared.
    draws: Mutex<Vec<(PipelineTape, u64)>>,
    ids: Vec<u64>,
    shown: Vec<u64>,
    /// Which rows were classified correctly.
    correct: Vec<bool>,
    /// Shape of the logits.
    output: Vec<usize>,
    rules: Rules,
    state: Arc<OracleState>,
}

impl AbiTape for OracleTape {
    fn backward(&self, _: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        answered(&self.rules, &self.state, || self.mean_gradient(cotangent))
    }
}

impl OracleTape {
    fn mean_gradient(&self, cotangent: AbiTensorRef<'_>) -> Result<ROption<AbiTensor>, AbiError> {
        let cotangent = self.receive(cotangent)?;
        let mut mean = None;
        let draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        for (tape, draw) in draws.iter() {
            let call = self.rules.call(&self.shown, *draw);
            accumulate(&mut mean, tape.backward(&call, &cotangent).map_err(to_abi)?);
        }
        let gradient = scaled(mean, draws.len() as u64)?;
        let meter = &self.rules.meter;
        meter.count_gradients(&self.ids, &self.correct, &cotangent, &gradient);
        gradient.export().map(ROption::RSome)
    }

    fn receive(&self, cotangent: AbiTensorRef<'_>) -> Result<Tensor, AbiError> {
        let cotangent = Tensor::copy_from(cotangent, &self.output, "the cotangent given to the oracle's tape")?;
        let bad = |v: &f32| v.is_nan() || v.abs() > LARGEST_COTANGENT;
        let Some(at) = cotangent.data.iter().position(bad) else {
            return Ok(cotangent);
        };
        let text = format!(
            "the cotangent given to the oracle's tape is {:e} for sample {}: the loss must be finite, and its derivative \
             {LARGEST_COTANGENT:e} at most",
            cotangent.data[at],
            self.ids[at / cotangent.row_len()]
        );
        Err(AbiError::new(ErrorCode::Compute, text))
    }
}

/// The images of a question, a row a sample id: of the shape that the target takes, and finite. They may leave the bounds.
///
/// # Errors
/// Where they are not: whoever asks is at fault.
pub fn images(x: AbiTensorRef<'_>, ids: &[u64], target: &Pipeline) -> Result<Tensor, AbiError> {
    let rows = x.shape()?.first().copied().unwrap_or(0);
    if rows != ids.len() {
        let text = format!("the oracle was asked about {rows} images with {} sample ids", ids.len());
        return Err(AbiError::new(ErrorCode::Shape, text));
    }
    let [c, h, w] = target.input().map_err(to_abi)?;
    let x = Tensor::copy_from(x, &[rows, c, h, w], "what the oracle was asked about")?;
    match x.not_finite() {
        None => Ok(x),
        Some((row, value)) => {
            let text = format!(
                "the oracle was asked about an image that contains {value}, for sample {}",
                ids[row]
            );
            Err(AbiError::new(ErrorCode::Compute, text))
        }
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
    fn gradients_and_queries_are_counted_by_sample() {
        let meter = Meter::default();
        let cotangent = Tensor::new(vec![4, 1], vec![1., 0., 1., 0.]).unwrap();
        let gradient = Tensor::new(vec![4, 2], vec![0., 0., 0., 0., 1., 0., 0., 0.]).unwrap();
        meter.count_gradients(&[3, 5, 7, 9], &[true, true, false, false], &cotangent, &gradient);
        meter.count_gradients(&[7], &[true], &cotangent.select(&[2]), &gradient.select(&[2]));
        meter.count_queries(&[7, 7, 5]);
        let counts = |gradients, zero_gradients, saturated, queries| Counts {
            gradients,
            zero_gradients,
            saturated,
            queries,
            asked: 0,
        };
        assert_eq!(meter.of(3), counts(1, 1, 0, 0), "the model's gradient is zero");
        assert_eq!(
            meter.of(5),
            counts(1, 1, 1, 1),
            "the loss is saturated: correct, and nothing to gain"
        );
        assert_eq!(meter.of(7), counts(2, 0, 0, 2));
        assert_eq!(meter.of(9), counts(0, 0, 0, 0), "broken already: it asked for nothing");
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
