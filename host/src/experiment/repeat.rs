//! Repeats the scoring of a few images. A deterministic defence answers the same whatever the sample is called, whoever asks, and
//! whichever image it met before; one that does not is not measured.

use super::score::{Batch, Scorer, Verdict};
use crate::results::Check;
use crate::wire::model::looks_like_probabilities;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::Threading;
use anyhow::{Result, ensure};

/// One sample in so many is repeated.
const ONE_IN: u64 = 16;
/// Relative difference that two passes of a plugin that threads by itself may have: it may add in another order.
const ROUNDING: f32 = 1e-4;

/// The rows of a batch that are repeated: a share of all samples, chosen by their ids.
pub fn chosen(batch: &Batch) -> Vec<usize> {
    (0..batch.ids.len())
        .filter(|i| batch.scoring_ids[*i].is_multiple_of(ONE_IN))
        .collect()
}

/// Scores adversarial images `x_adv` again, and then the clean ones of `batch`, under other ids in the crafting phase.
/// `clean` holds the verdicts of the first time.
///
/// # Errors
/// Where a plugin fails, or answers otherwise.
pub fn repeat(scorer: &Scorer, batch: &Batch, x_adv: &Tensor, clean: &[Verdict], other_ids: &[u64]) -> Result<Check> {
    let scoring = Call::score(scorer.seed, &batch.scoring_ids).with_threads(scorer.call_threads);
    let crafting = Call::craft(scorer.seed, other_ids).with_threads(scorer.call_threads);
    // Adversarial before clean: a defence that remembers the first image it met under an id has met no clean one yet.
    let again = scorer.pipeline.forward(&crafting, x_adv)?;
    agree(
        scorer,
        &scorer.pipeline.forward(&scoring, x_adv)?,
        &again,
        "an adversarial image",
    )?;
    let again = scorer.pipeline.forward(&crafting, &batch.x)?;
    let logits = scorer.pipeline.forward(&scoring, &batch.x)?;
    agree(scorer, &logits, &again, "a clean image")?;
    let verdicts = logits.argmax().into_iter().zip(clean);
    Ok(Check {
        repeated: batch.ids.len(),
        differing: verdicts.filter(|(label, verdict)| *label != verdict.prediction).count(),
        probabilities: looks_like_probabilities(&logits),
    })
}

fn agree(scorer: &Scorer, scored: &Tensor, again: &Tensor, what: &str) -> Result<()> {
    let internal = scorer
        .pipeline
        .models()
        .any(|model| model.info().threading == Threading::Internal);
    let largest = scored.data.iter().fold(0f32, |m, v| m.max(v.abs()));
    let allowed = if internal { ROUNDING * largest } else { 0. };
    let differ = scored.data.iter().zip(&again.data).map(|(a, b)| (a - b).abs());
    let worst = differ.fold(0., f32::max);
    ensure!(
        worst <= allowed,
        "the defence says it is not random, but logits for {what} differ by {worst:e} when the host asks again under another \
         sample id in the crafting phase: it is random, keeps state, or answers by the id: set random in its info, or let its \
         output depend on the image alone"
    );
    Ok(())
}
