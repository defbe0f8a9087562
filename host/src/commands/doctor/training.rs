//! Trainable models: the tape guards the weights, and weights come back as they went.

use super::checklist::{Checklist, Finding};
use super::patient::Patient;
use super::sample::{IDS, images, input, signed};
use crate::terminal::console;
use crate::wire::model::{Model, Trainable};
use crate::wire::tensor::{Call, Tensor, difference, moved};
use advae_abi::info::{Construct, TrainSettings, WeightSource};
use advae_abi::{AbiError, ErrorCode, flags};
use anyhow::Result;

/// A model that may be changed, and its parameters.
struct Pupil {
    model: Model,
    trainable: Trainable,
}

/// Takes one step of training and takes it back.
pub fn examine(list: &mut Checklist, patient: &Patient) -> Result<()> {
    let mut pupil = None;
    list.check("training", || {
        let model = Model::construct(&patient.plugin, &patient.request)?;
        match trainable(&model) {
            Ok(trainable) => {
                pupil = Some(Pupil { model, trainable });
                Ok(Finding::Pass("the model has parameters to train".into()))
            }
            Err(error) if is_unsupported(&error) => Ok(Finding::Pass("nothing to train".into())),
            Err(error) => Err(error),
        }
    })?;
    let Some(pupil) = pupil else { return Ok(()) };
    list.check("weights", || round_trip(patient, &pupil))?;
    let learner = learner(patient);
    let own = learner.is_ok() || !patient.plugin.description.own.is_empty();
    list.check("step", || step(&pupil, own))?;
    if own {
        list.check("own objective", || lesson(&learner?))?;
    }
    Ok(())
}

/// A model that its own objective trains, with its defaults.
fn learner(patient: &Patient) -> Result<Pupil> {
    let model = Model::construct(&patient.plugin, &patient.request)?;
    let settings = TrainSettings {
        own: Some(Default::default()),
        ..TrainSettings::adam()
    };
    let trainable = model.trainable(&settings)?;
    Ok(Pupil { model, trainable })
}

fn trainable(model: &Model) -> Result<Trainable> {
    model.trainable(&TrainSettings::adam())
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    is_any(error, &[ErrorCode::Unsupported])
}

fn is_any(error: &anyhow::Error, codes: &[ErrorCode]) -> bool {
    let cause = error.downcast_ref::<AbiError>();
    cause.is_some_and(|e| codes.iter().any(|code| e.is(*code)))
}

fn output(model: &Model) -> Result<Tensor> {
    model.forward(&Call::score(0, &IDS), &images(IDS.len(), input(model)))
}

/// The weights of one model, loaded into another one that started elsewhere, make them equal.
fn round_trip(patient: &Patient, pupil: &Pupil) -> Result<Finding> {
    let blob = pupil.trainable.save_weights()?;
    let request = Construct {
        weights: WeightSource::Init(11),
        ..patient.request.clone()
    };
    let other = Model::construct(&patient.plugin, &request)?;
    trainable(&other)?.load_weights(&blob)?;
    let same = difference(&output(&pupil.model)?, &output(&other)?) == 0.;
    let text = format!("{} bytes saved from one model make another one equal to it", blob.len());
    Ok(Finding::expect(
        same,
        text,
        "they do not: save and load every parameter and buffer",
    ))
}

/// `own`: whether it has an objective of its own, which may be all that it learns by.
fn step(pupil: &Pupil, own: bool) -> Result<Finding> {
    let Pupil { model, trainable } = pupil;
    let (before, blob) = (output(model)?, trainable.save_weights()?);
    let call = learning(0);
    let (y, tape) = match model.forward_tape(&call, &images(IDS.len(), input(model))) {
        Ok(taped) => taped,
        Err(error) if own && is_any(&error, &[ErrorCode::Compute, ErrorCode::Unsupported]) => {
            let text = format!("it learns by its own objective alone ({})", console::one_line(&error));
            return Ok(Finding::Pass(text));
        }
        Err(error) => return Err(error),
    };
    tape.backward(&call, &signed(&y.shape, 7))?;
    let Err(refusal) = trainable.step(1e-3) else {
        let text = "a step was taken while a tape lived, whose weights changed under it: answer with an error";
        return Ok(Finding::Fail(text.into()));
    };
    drop(tape);
    trainable.step(1e-3)?;
    if trainable.save_weights()? == blob {
        return Ok(Finding::Fail(
            "a step changed no weight: check the parameter gradients".into(),
        ));
    }
    let text = format!(
        "refused while a tape lives ({}), taken and taken back",
        console::one_line(&refusal)
    );
    taken_back(pupil, &before, &blob, text)
}

/// A call of training.
fn learning(seed: u64) -> Call<'static> {
    Call::craft(seed, &IDS).with_flags(flags::TRAIN | flags::ACCUMULATE_PARAMS)
}

/// Whether the weights of before bring the outputs of before.
fn taken_back(pupil: &Pupil, before: &Tensor, blob: &[u8], text: String) -> Result<Finding> {
    pupil.trainable.load_weights(blob)?;
    let restored = difference(before, &output(&pupil.model)?) == 0.;
    Ok(Finding::expect(
        restored,
        text,
        "the saved weights did not bring the old outputs back",
    ))
}

/// Updates that an objective may take before the model's own weights change: a critic's come first.
const LESSONS: u64 = 20;

/// Updates by the plugin's own objective, taken back.
fn lesson(pupil: &Pupil) -> Result<Finding> {
    let (before, blob) = (output(&pupil.model)?, pupil.trainable.save_weights()?);
    let clean = images(IDS.len(), input(&pupil.model));
    let adversarial = moved(&clean, &signed(&clean.shape, 13), 0.1);
    let labels: Vec<u32> = (0..IDS.len() as u32).collect();
    for lesson in 1..=LESSONS {
        let measured = (pupil.trainable).learn(&learning(lesson), &clean, Some(&adversarial), &labels, 1e-3)?;
        if let Some((name, value)) = measured.iter().find(|(_, value)| !value.is_finite()) {
            let text = format!("it measures a {name} of {value}: it must be a finite number");
            return Ok(Finding::Fail(text));
        }
        if pupil.trainable.save_weights()? != blob {
            let names: Vec<&str> = measured.keys().map(String::as_str).collect();
            let text = format!(
                "measures {}; update {lesson} changed the weights, and was taken back",
                names.join(", ")
            );
            return taken_back(pupil, &before, &blob, text);
        }
    }
    let text = format!("{LESSONS} updates changed no weight: check its optimiser");
    Ok(Finding::Fail(text))
}
