//! Trainable models: the tape guards the weights, and weights come back as they went.

use super::Patient;
use super::checklist::{Checklist, Finding};
use super::model::input;
use super::sample::{IDS, difference, images, signed};
use crate::console;
use crate::model::{Model, Trainable};
use crate::tensor::{Call, Tensor};
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
    list.check("step", || step(&pupil))
}

fn trainable(model: &Model) -> Result<Trainable> {
    model.trainable(&TrainSettings::adam())
}

fn is_unsupported(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<AbiError>();
    cause.is_some_and(|e| e.is(ErrorCode::Unsupported))
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

fn step(pupil: &Pupil) -> Result<Finding> {
    let Pupil { model, trainable } = pupil;
    let (before, blob) = (output(model)?, trainable.save_weights()?);
    let call = Call::craft(0, &IDS).with_flags(flags::TRAIN | flags::ACCUMULATE_PARAMS);
    let (y, tape) = model.forward_tape(&call, &images(IDS.len(), input(model)))?;
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
    trainable.load_weights(&blob)?;
    let restored = difference(&before, &output(model)?) == 0.;
    let text = format!(
        "refused while a tape lives ({}), taken and taken back",
        console::one_line(&refusal)
    );
    Ok(Finding::expect(
        restored,
        text,
        "the saved weights did not bring the old outputs back",
    ))
}
