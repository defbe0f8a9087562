//! Models that remember: their output must follow the image, whatever was seen before under its id.

use super::checklist::Finding;
use super::patient::Patient;
use super::sample::{images, input};
use crate::wire::model::Model;
use crate::wire::tensor::{Call, Tensor, difference};
use advae_abi::CallPhase;
use anyhow::Result;

/// Samples of each kind.
const N: usize = 3;
const ADVICE: &str = "compute every output from its image alone, and keep nothing under a sample's id";

/// Sends other images under ids that were seen before.
///
/// A deterministic model has to give what it gives under ids that are new. The output of a random one depends on ids: what
/// it is compared with is a second model that has seen nothing.
pub fn examine(patient: &Patient, model: &Model) -> Result<Finding> {
    let all = images(2 * N, input(model));
    let (first, second) = (all.select(&[0, 1, 2]), all.select(&[3, 4, 5]));
    let mut next = 1000;
    let mut unseen = || {
        next += N as u64;
        [next - 3, next - 2, next - 1]
    };
    for before in [CallPhase::Craft, CallPhase::Score] {
        for after in [CallPhase::Craft, CallPhase::Score] {
            let (seen, new) = (unseen(), unseen());
            model.forward(&call(before, &seen), &first)?;
            let again = model.forward(&call(after, &seen), &second)?;
            let expected = match model.info().random {
                false => model.forward(&call(after, &new), &second)?,
                true => Model::construct(&patient.plugin, &patient.request)?.forward(&call(after, &seen), &second)?,
            };
            if let Some(text) = remembered(&again, &expected, before, after) {
                return Ok(Finding::Fail(format!("{text}: {ADVICE}")));
            }
        }
    }
    Ok(Finding::Pass(
        "the output follows the image, whatever its id was seen with before".into(),
    ))
}

fn call(phase: CallPhase, ids: &[u64]) -> Call<'_> {
    match phase {
        CallPhase::Craft => Call::craft(5, ids),
        CallPhase::Score => Call::score(5, ids),
    }
}

fn remembered(again: &Tensor, expected: &Tensor, before: CallPhase, after: CallPhase) -> Option<String> {
    let name = |phase| match phase {
        CallPhase::Craft => "crafting",
        CallPhase::Score => "scoring",
    };
    let deviation = difference(again, expected);
    (deviation > 0.).then(|| {
        format!(
            "in {}, an image gives another output (by {deviation:.3e}) where its id was seen with another image in {}",
            name(after),
            name(before)
        )
    })
}
