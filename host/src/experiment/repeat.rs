//! Repeats the scoring of a few images. A deterministic defence answers the same whatever the sample is called, whoever asks, and
//! whichever image it met before; one that does not is not measured.

use super::ids::{Ids, Purpose};
use super::score::{Batch, Scorer, Verdict};
use crate::results::{Check, Row};
use crate::wire::attack::Perturbed;
use crate::wire::model::looks_like_probabilities;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::Threading;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;

/// One sample in so many is repeated.
const ONE_IN: u64 = 16;
/// Relative difference that two passes of a plugin that threads by itself may have: it may add in another order.
const ROUNDING: f32 = 1e-4;
/// What to do about a defence that is refused.
const REMEDY: &str = "it is random, keeps state, or answers by the id: set random in its info, or let its output depend on the image alone";

/// The samples that are repeated: a share of all, one at the least, by numbers that no plugin is shown.
pub struct Chosen(BTreeSet<u64>);

impl Chosen {
    /// Of all samples that are scored.
    pub fn of(ids: &Ids, samples: &[u64]) -> Self {
        let number = |id: &u64| ids.opaque(Purpose::Choose, *id);
        let share = samples.iter().filter(|id| number(id).is_multiple_of(ONE_IN));
        let one = samples.iter().min_by_key(|id| number(id));
        Self(share.chain(one).copied().collect())
    }

    /// The rows of a batch that are.
    fn within(&self, batch: &Batch) -> Vec<usize> {
        let rows = 0..batch.ids.len();
        rows.filter(|i| self.0.contains(&batch.ids[*i])).collect()
    }
}

/// A batch that was scored.
pub struct Scored<'a> {
    /// Its samples.
    pub batch: &'a Batch,
    /// Verdicts on the clean images.
    pub clean: &'a [Verdict],
    /// What was scored.
    pub perturbed: &'a Perturbed,
    /// What came of it, a row a sample.
    pub rows: &'a [Row],
}

impl Scored<'_> {
    /// Rows whose adversarial image was classified.
    fn classified(&self) -> Vec<usize> {
        let row = |i: &usize| self.rows[*i].refused.is_none() && self.rows[*i].found != Some(false);
        (0..self.rows.len()).filter(row).collect()
    }
}

/// Scores adversarial images again, and then clean ones, under other ids in the crafting phase. Nothing, where the defence says it is
/// random, or none of the batch is chosen.
///
/// # Errors
/// Where a plugin fails, or answers otherwise.
pub fn repeat(scorer: &Scorer, ids: &Ids, chosen: &Chosen, scored: &Scored) -> Result<Option<Check>> {
    let indices = chosen.within(scored.batch);
    if scorer.pipeline.random() || indices.is_empty() {
        return Ok(None);
    }
    let few = scored.batch.select(&indices);
    let other_ids = ids.all(Purpose::Repeat, &few.ids);
    let scoring = Call::score(scorer.seed, &few.scoring_ids).with_threads(scorer.call_threads);
    let crafting = Call::craft(scorer.seed, &other_ids).with_threads(scorer.call_threads);
    let both = |x: &Tensor, what: &str| -> Result<Tensor> {
        let again = scorer.pipeline.forward(&crafting, x)?;
        let logits = scorer.pipeline.forward(&scoring, x)?;
        agree(scorer, &logits, &again, what)?;
        Ok(logits)
    };
    let classified = scored.classified();
    // What was refused, such as NaN, is not shown to a model.
    let mut x_adv = few.x.clone();
    for (row, i) in indices.iter().enumerate().filter(|(_, i)| classified.contains(i)) {
        x_adv.set_row(row, scored.perturbed.x_adv.row(*i));
    }
    // Adversarial before clean: a defence that remembers the first image it met under an id has met no clean one yet.
    let adversarial = both(&x_adv, "an adversarial image")?.argmax();
    let logits = both(&few.x, "a clean image")?;
    let clean = logits.argmax();
    let moved = |row: usize, i: usize| {
        let adversarial = classified.contains(&i) && adversarial[row] != scored.rows[i].adversarial_prediction;
        (adversarial, clean[row] != scored.clean[i].prediction)
    };
    let moved: Vec<(bool, bool)> = indices.iter().enumerate().map(|(row, i)| moved(row, *i)).collect();
    if moved.iter().any(|(adversarial, _)| *adversarial) {
        let mut batch = scored.batch.select(&classified);
        batch.x = scored.perturbed.x_adv.select(&classified);
        let said = classified.iter().map(|i| scored.rows[*i].adversarial_prediction);
        stands(scorer, &batch, said, "adversarial")?;
    }
    if moved.iter().any(|(_, clean)| *clean) {
        let said = scored.clean.iter().map(|verdict| verdict.prediction);
        stands(scorer, scored.batch, said, "clean")?;
    }
    Ok(Some(Check {
        repeated: few.ids.len(),
        differing: moved
            .iter()
            .filter(|(adversarial, clean)| *adversarial || *clean)
            .count(),
        probabilities: looks_like_probabilities(&logits),
    }))
}

/// Whether both passes gave the same logits.
fn agree(scorer: &Scorer, scored: &Tensor, again: &Tensor, what: &str) -> Result<()> {
    let largest = scored.data.iter().fold(0f32, |m, v| m.max(v.abs()));
    let allowed = if threads_itself(scorer) { ROUNDING * largest } else { 0. };
    let differ = scored.data.iter().zip(&again.data).map(|(a, b)| (a - b).abs());
    let worst = differ.fold(0., f32::max);
    ensure!(
        worst <= allowed,
        "the defence says it is not random, but logits for {what} differ by {worst:e} when the host asks again under another \
         sample id in the crafting phase: {REMEDY}"
    );
    Ok(())
}

/// Whether a whole batch is classified as it was. Verdicts of a few rows alone may go another way where a defence minds who else is in
/// its batch, which is a warning; those of the same batch may not.
fn stands(scorer: &Scorer, batch: &Batch, said: impl Iterator<Item = u32>, what: &str) -> Result<()> {
    let again = scorer.classify(batch)?;
    let other = again
        .iter()
        .zip(said)
        .filter(|(now, then)| now.prediction != *then)
        .count();
    ensure!(
        other == 0 || threads_itself(scorer),
        "the defence says it is not random, but classifies {other} of {} {what} images otherwise when the host scores the same batch \
         again: {REMEDY}",
        again.len()
    );
    Ok(())
}

fn threads_itself(scorer: &Scorer) -> bool {
    let mut models = scorer.pipeline.models();
    models.any(|model| model.info().threading == Threading::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_the_samples_is_repeated_and_one_at_the_least() {
        let ids = Ids::new("data", 3);
        let samples: Vec<u64> = (0..3200).collect();
        let all = Chosen::of(&ids, &samples);
        assert!((100..=300).contains(&all.0.len()), "{} of 3200", all.0.len());
        for id in samples {
            assert_eq!(Chosen::of(&ids, &[id]).0.len(), 1);
        }
        assert!(Chosen::of(&ids, &[]).0.is_empty());
    }

    #[test]
    fn what_a_plugin_is_shown_does_not_tell_which_samples_are_repeated() {
        let ids = Ids::new("data", 3);
        let samples: Vec<u64> = (0..3200).collect();
        let all = Chosen::of(&ids, &samples);
        for purpose in [Purpose::Craft, Purpose::Score] {
            let guessed = samples
                .iter()
                .filter(|id| ids.opaque(purpose, **id).is_multiple_of(ONE_IN));
            let right = guessed.filter(|id| all.0.contains(id)).count();
            assert!(right < 50, "{right} of 200 guessed by {purpose:?}");
        }
    }
}
