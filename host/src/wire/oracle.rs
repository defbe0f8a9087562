//! What an attacker may ask, as the threat model's access declares it. The only thing an attack ever sees.

use crate::plugin::fenv;
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Ticker;
use crate::wire::device::{Copies, DeviceTape, DeviceTensor};
use crate::wire::on_device::OnDevice;
use crate::wire::pipeline::{Pipeline, PipelineTape};
use crate::wire::tensor::{Call, Tensor};
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RErr, ROption, RString};
use advae_abi::info::{Access, OracleInfo, Target};
use advae_abi::tally::{IMAGES, LARGEST_COTANGENT, LOGITS};
use advae_abi::{
    AbiError, AbiOracle, AbiResult, AbiTape, AbiTensor, AbiTensorRef, CtxRef, DLDevice, ErrorCode, OracleBox, TapeBox,
    Taped,
};
use advae_abi::{AbiOracle_TO, AbiTape_TO, guard};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use crate::wire::boundary::to_abi;
pub use crate::wire::meter::{Counts, Meter};

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
#[derive(Default)]
pub struct OracleState {
    error: Mutex<Option<AbiError>>,
    rows: AtomicU64,
    device: Option<Arc<OnDevice>>,
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

    /// Reads what was counted on a device, now that the attack has ended: into the meter, or as the error that it is.
    pub fn settle(&self, meter: &Meter) {
        if let Some(device) = &self.device {
            let _ = self.remember(device.settle(meter).into());
        }
    }

    /// What it has on a device; none where the attack is answered on the CPU.
    pub(super) fn device(&self) -> Option<&OnDevice> {
        self.device.as_deref()
    }

    /// What was copied to and from a device; none where the attack was answered on the CPU.
    pub fn copies(&self) -> Option<Copies> {
        Some(self.device.as_ref()?.pipeline.copies())
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
struct Question<X> {
    ids: Vec<u64>,
    /// Ids that the target is shown.
    shown: Vec<u64>,
    draw: u64,
    x: X,
}

/// Images on the device: the attack's for as long as it asks, or a copy of what it has on the CPU.
enum Held<'a> {
    Lent(AbiTensorRef<'a>),
    Own(DeviceTensor),
}

impl Held<'_> {
    fn view(&self) -> AbiTensorRef<'_> {
        match self {
            Self::Lent(view) => *view,
            Self::Own(tensor) => tensor.view(),
        }
    }
}

impl Oracle {
    /// An oracle about the samples `ids` with true labels `labels`, ready to be handed to an attack, and what the host keeps of it.
    pub fn boxed(rules: Rules, ids: &[u64], labels: &[u32], ticker: Ticker) -> (OracleBox, Arc<OracleState>) {
        Self::boxed_on(None, rules, ids, labels, ticker)
    }

    /// The same, whose target answers [on its device](OnDevice).
    pub fn boxed_on(
        device: Option<OnDevice>,
        rules: Rules,
        ids: &[u64],
        labels: &[u32],
        ticker: Ticker,
    ) -> (OracleBox, Arc<OracleState>) {
        let state = Arc::new(OracleState {
            device: device.map(Arc::new),
            ..OracleState::default()
        });
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
    fn receive(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> Result<Question<Tensor>, AbiError> {
        self.take(ctx, |ids| match &self.state.device {
            Some(device) if x.device() != DLDevice::CPU => {
                let shape = image_shape(x, ids, &self.rules.target)?;
                device.pipeline.check(x, &shape, ASKED)?;
                finite(device.pipeline.download(x, &shape).map_err(to_abi)?, ids)
            }
            _ => images(x, ids, &self.rules.target),
        })
    }

    /// Takes a question in that is answered on the device. Images that lie there are not copied: no plugin may write into them.
    fn receive_on<'a>(
        &self,
        device: &OnDevice,
        ctx: CtxRef<'_>,
        x: AbiTensorRef<'a>,
    ) -> Result<Question<Held<'a>>, AbiError> {
        self.take(ctx, |ids| {
            if x.device() == DLDevice::CPU {
                let x = images(x, ids, &self.rules.target)?;
                return device.pipeline.upload(&x).map(Held::Own).map_err(to_abi);
            }
            let shape = image_shape(x, ids, &self.rules.target)?;
            device.pipeline.check(x, &shape, ASKED)?;
            device.tally.look(IMAGES, &device.slots(ids), x).map_err(to_abi)?;
            Ok(Held::Lent(x))
        })
    }

    /// Checks and counts the samples of a question; `take` takes its images in.
    fn take<X>(
        &self,
        ctx: CtxRef<'_>,
        take: impl FnOnce(&[u64]) -> Result<X, AbiError>,
    ) -> Result<Question<X>, AbiError> {
        let ids = ctx.sample_ids().to_vec();
        if let Some(id) = ids.iter().find(|id| !self.labels.contains_key(id)) {
            let text = format!(
                "the oracle was asked about sample {id}, which is none of the batch: ask with the sample ids that perturb is given"
            );
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        let x = take(&ids)?;
        self.state.rows.fetch_add(ids.len() as u64, Ordering::Relaxed);
        self.ticker.tick(ids.len() as u64);
        self.rules.meter.count_asked(&ids);
        let draw = ctx.get().draw;
        let shown = self.rules.shown(&ids);
        Ok(Question { ids, shown, draw, x })
    }

    /// The attack's call under the host's seed, phase and flags.
    fn call<'a, X>(&self, question: &'a Question<X>, repetition: u64) -> Call<'a> {
        let draw = question.draw.wrapping_mul(self.rules.eot).wrapping_add(repetition);
        self.rules.call(&question.shown, draw).with_flags(self.rules.flags)
    }

    fn mean_logits(&self, question: &Question<Tensor>) -> Result<Tensor, AbiError> {
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

    fn show(&self, question: &Question<Tensor>, logits: &Tensor) {
        if let Some(watch) = &self.rules.watch {
            watch.seen(&question.ids, &question.x, logits);
        }
    }

    fn mean_tape(&self, question: Question<Tensor>) -> Result<Taped, AbiError> {
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

impl Oracle {
    fn logits_on(&self, device: &OnDevice, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> Result<AbiTensor, AbiError> {
        let question = self.receive_on(device, ctx, x)?;
        let draw = |repetition| {
            device
                .pipeline
                .forward(&self.call(&question, repetition), question.x.view())
        };
        let draws = (0..self.rules.eot).map(draw).collect::<anyhow::Result<_>>();
        let logits = draws.and_then(|draws| device.pipeline.mean(draws)).map_err(to_abi)?;
        let slots = device.slots(&question.ids);
        device.tally.look(LOGITS, &slots, logits.view()).map_err(to_abi)?;
        device.give(ctx, Arc::new(logits)).map_err(to_abi)
    }

    fn tape_on(&self, device: &Arc<OnDevice>, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> Result<Taped, AbiError> {
        let question = self.receive_on(device, ctx, x)?;
        let draw = |repetition| {
            let call = self.call(&question, repetition);
            let (logits, tape) = device.pipeline.forward_tape(&call, question.x.view())?;
            Ok((logits, (tape, call.draw)))
        };
        let draws = (0..self.rules.eot).map(draw).collect::<anyhow::Result<Vec<_>>>();
        let (logits, draws): (Vec<_>, Vec<_>) = draws.map_err(to_abi)?.into_iter().unzip();
        let logits = Arc::new(device.pipeline.mean(logits).map_err(to_abi)?);
        let label = |id: &u64| self.labels.get(id).map_or(-1, |label| i64::from(*label));
        let tape = DeviceOracleTape {
            draws: Mutex::new(draws),
            slots: device.slots(&question.ids),
            labels: question.ids.iter().map(label).collect(),
            logits: logits.clone(),
            ids: question.ids,
            shown: question.shown,
            rules: self.rules.clone(),
            state: self.state.clone(),
            device: device.clone(),
        };
        Ok(Taped {
            y: device.give(ctx, logits).map_err(to_abi)?,
            tape: AbiTape_TO::from_value(tape, TD_Opaque),
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
                device: (self.state.device.as_ref()).map(|device| device.pipeline.id().to_string()),
            };
            serde_json::to_string(&info)
                .map(RString::from)
                .map_err(|e| AbiError::from_error(ErrorCode::Compute, &e))
        })
    }

    fn logits(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        self.run(|| {
            self.grant(self.rules.access.logits || self.rules.access.gradients, "logits")?;
            match &self.state.device {
                Some(device) => self.logits_on(device, ctx, x),
                None => self.mean_logits(&self.receive(ctx, x)?)?.export(),
            }
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
            match &self.state.device {
                Some(device) => self.tape_on(device, ctx, x),
                None => self.mean_tape(self.receive(ctx, x)?),
            }
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
        let cotangent = checked_cotangent(cotangent, &self.output, &self.ids)?;
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
}

/// The same on the device, where the cotangent lies or is copied to.
struct DeviceOracleTape {
    draws: Mutex<Vec<(DeviceTape, u64)>>,
    ids: Vec<u64>,
    shown: Vec<u64>,
    /// Places of the samples in the tally.
    slots: Vec<u32>,
    labels: Vec<i64>,
    logits: Arc<DeviceTensor>,
    rules: Rules,
    state: Arc<OracleState>,
    device: Arc<OnDevice>,
}

impl AbiTape for DeviceOracleTape {
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        answered(&self.rules, &self.state, || {
            let cotangent = self.receive(cotangent)?;
            let gradient = self.mean_gradient(cotangent.view()).map_err(to_abi)?;
            self.device.give(ctx, gradient).map(ROption::RSome).map_err(to_abi)
        })
    }
}

impl DeviceOracleTape {
    fn receive<'a>(&self, cotangent: AbiTensorRef<'a>) -> Result<Held<'a>, AbiError> {
        let (pipeline, output) = (&self.device.pipeline, self.logits.shape());
        if cotangent.device() == DLDevice::CPU {
            let cotangent = checked_cotangent(cotangent, output, &self.ids)?;
            return pipeline.upload(&cotangent).map(Held::Own).map_err(to_abi);
        }
        pipeline.check(cotangent, output, COTANGENT)?;
        Ok(Held::Lent(cotangent))
    }

    fn mean_gradient(&self, cotangent: AbiTensorRef<'_>) -> anyhow::Result<Arc<DeviceTensor>> {
        let OnDevice { pipeline, tally, .. } = &*self.device;
        let draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        let back =
            |(tape, draw): &(DeviceTape, u64)| pipeline.backward(tape, &self.rules.call(&self.shown, *draw), cotangent);
        let gradients = draws.iter().map(back).collect::<anyhow::Result<_>>()?;
        let gradient = pipeline.mean(gradients)?;
        tally.count(
            &self.slots,
            &self.labels,
            [self.logits.view(), cotangent, gradient.view()],
        )?;
        Ok(Arc::new(gradient))
    }
}

/// What messages call the cotangent of an attack.
const COTANGENT: &str = "the cotangent given to the oracle's tape";

/// The cotangent of an attack, of the shape of the logits: finite, and within [`LARGEST_COTANGENT`].
fn checked_cotangent(cotangent: AbiTensorRef<'_>, output: &[usize], ids: &[u64]) -> Result<Tensor, AbiError> {
    let cotangent = Tensor::copy_from(cotangent, output, COTANGENT)?;
    let bad = |v: &f32| v.is_nan() || v.abs() > LARGEST_COTANGENT;
    let Some(at) = cotangent.data.iter().position(bad) else {
        return Ok(cotangent);
    };
    let text = format!(
        "{COTANGENT} is {:e} for sample {}: the loss must be finite, and its derivative {LARGEST_COTANGENT:e} at most",
        cotangent.data[at],
        ids[at / cotangent.row_len()]
    );
    Err(AbiError::new(ErrorCode::Compute, text))
}

/// The images of a question, a row a sample id: of the shape that the target takes, and finite. They may leave the bounds.
///
/// # Errors
/// Where they are not: whoever asks is at fault.
pub fn images(x: AbiTensorRef<'_>, ids: &[u64], target: &Pipeline) -> Result<Tensor, AbiError> {
    let shape = image_shape(x, ids, target)?;
    finite(Tensor::copy_from(x, &shape, ASKED)?, ids)
}

/// What messages call the images of a question.
const ASKED: &str = "what the oracle was asked about";

/// The shape that the images of a question have to have, as many as there are ids.
fn image_shape(x: AbiTensorRef<'_>, ids: &[u64], target: &Pipeline) -> Result<[usize; 4], AbiError> {
    let rows = x.shape()?.first().copied().unwrap_or(0);
    if rows != ids.len() {
        let text = format!("the oracle was asked about {rows} images with {} sample ids", ids.len());
        return Err(AbiError::new(ErrorCode::Shape, text));
    }
    let [c, h, w] = target.input().map_err(to_abi)?;
    Ok([rows, c, h, w])
}

fn finite(x: Tensor, ids: &[u64]) -> Result<Tensor, AbiError> {
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
