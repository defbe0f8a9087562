//! What the defence answers, whoever asks: checks 1, 2, 5 and 16.

use super::finding::Finding;
use super::losses::{moved_within, uniform};
use super::subject::Subject;
use crate::experiment::{Batch, Purpose};
use crate::wire::model::{Model, looks_like_probabilities};
use crate::wire::tensor::{Call, Tensor, difference};
use advae_abi::info::{BackwardRule, Threading};
use anyhow::Result;
use std::time::Instant;

/// Samples that are asked about.
const SAMPLES: usize = 32;
/// Relative difference of two sums of the same numbers in another order.
const ROUNDING: f64 = 1e-5;
/// The same for plugins that thread by themselves.
const OWN_THREADS: f64 = 1e-4;
/// A purifier that takes so many times as long as the classifier iterates.
const ITERATES: f64 = 20.;

/// Makes the checks.
///
/// # Errors
/// Where a plugin fails.
pub fn examine(subject: &Subject) -> Result<Vec<Finding>> {
    let batch = subject.batch(&subject.first(SAMPLES));
    let call = Call::score(subject.seed(), &batch.scoring_ids);
    let asked = Asked {
        subject,
        batch: &batch,
        clean: subject.pipeline.forward(&call, &batch.x)?,
    };
    Ok(vec![
        asked.randomised()?,
        asked.softmax(),
        asked.iterates()?,
        asked.same()?,
    ])
}

struct Asked<'a> {
    subject: &'a Subject<'a>,
    batch: &'a Batch,
    /// Logits of the clean images, met first under the ids that score, as in an evaluation.
    clean: Tensor,
}

/// Largest difference, as a share of the largest value.
fn apart(a: &Tensor, b: &Tensor) -> f64 {
    let largest = a.data.iter().fold(0f64, |m, v| m.max(f64::from(v.abs()))).max(1e-30);
    difference(a, b) / largest
}

impl Asked<'_> {
    fn score(&self) -> Call<'_> {
        Call::score(self.subject.seed(), &self.batch.scoring_ids)
    }

    fn forward(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        self.subject.pipeline.forward(call, x)
    }

    fn allowed(&self) -> f64 {
        let mut models = self.subject.pipeline.models();
        match models.any(|model| model.info().threading == Threading::Internal) {
            true => OWN_THREADS,
            false => ROUNDING,
        }
    }

    /// Check 1.
    fn randomised(&self) -> Result<Finding> {
        const THRESHOLD: &str = "the same logits again, unless the defence says that it is random";
        let first = &self.clean;
        let again = apart(first, &self.forward(&self.score(), &self.batch.x)?);
        let draw = apart(first, &self.forward(&self.score().with_draw(1), &self.batch.x)?);
        let text = format!(
            "{} images asked about again: logits differ by {again:.1e} of the largest, for another draw by {draw:.1e}",
            self.batch.ids.len()
        );
        let random = self.subject.pipeline.random();
        let limit = self.allowed();
        if again > limit || (!random && draw > limit) {
            let finding = Finding::expect(1, false, text, THRESHOLD);
            return Ok(finding.next("set `random` in the info of the plugin that draws, key its randomness by seed, id and draw, and audit again"));
        }
        Ok(match random {
            true => Finding::note(1, format!("{text}; it says that it is random"), THRESHOLD).next(
                self.subject
                    .eval("--attack autoattack:version=rand --eot 20 --known-draw"),
            ),
            false => Finding::expect(1, true, text, THRESHOLD),
        })
    }

    /// Check 2.
    fn softmax(&self) -> Finding {
        let probabilities = looks_like_probabilities(&self.clean);
        let text = match probabilities {
            true => "every row of the output adds up to 1 and is nowhere negative",
            false => "rows of the output are no distributions",
        };
        let finding = Finding::expect(2, !probabilities, text.into(), "logits, not probabilities");
        finding.next("let the classifier return what goes into its softmax")
    }

    /// Check 5, by the clock: the host cannot look into a purifier.
    fn iterates(&self) -> Result<Finding> {
        const THRESHOLD: &str = "a purifier that takes 20 times as long as the classifier iterates, and wants a way back through every step";
        let Some(purifier) = &self.subject.purifier else {
            return Ok(Finding::not_applicable(5, "there is no purifier"));
        };
        let time = |model: &Model| -> Result<f64> {
            let mut best = f64::INFINITY;
            for _ in 0..3 {
                let start = Instant::now();
                model.forward(&self.score(), &self.batch.x)?;
                best = best.min(start.elapsed().as_secs_f64());
                // What is slow need not be measured so well.
                if best > 1. {
                    break;
                }
            }
            Ok(best)
        };
        let ratio = time(&purifier.model)? / time(&self.subject.classifier.model)?.max(1e-9);
        let text = format!("the purifier takes {ratio:.1} times as long as the classifier");
        if ratio < ITERATES {
            return Ok(Finding::expect(5, true, text, THRESHOLD));
        }
        let offers = purifier.model.info().backward_rules.contains(&BackwardRule::Exact);
        let what = match offers {
            true => "it offers the exact way back: see check 20",
            false => "it offers no exact way back through its steps: only surrogates were attacked",
        };
        Ok(Finding::note(5, format!("{text}; {what}"), THRESHOLD)
            .next(self.subject.eval("--attack apgd --backward all")))
    }

    /// Check 16.
    fn same(&self) -> Result<Finding> {
        const THRESHOLD: &str =
            "the same logits to rounding (1e-5 of the largest; 1e-4 where a plugin threads by itself)";
        let (subject, batch) = (self.subject, self.batch);
        let random = subject.pipeline.random();
        let noise = uniform(&batch.x, &batch.ids, subject.seed(), 0);
        let noisy = moved_within(&batch.x, &noise, subject.amplitude(1.));
        let mut worst: Vec<(f64, &str)> = vec![];
        let scored = self.forward(&self.score(), &noisy)?;
        let few = batch.ids.len().min(7);
        for i in 0..few {
            let call = Call::score(subject.seed(), &batch.scoring_ids[i..=i]);
            let alone = self.forward(&call, &noisy.select(&[i]))?;
            worst.push((apart(&scored.select(&[i]), &alone), "alone and in a batch"));
        }
        worst.push((
            apart(&self.clean, &self.forward(&self.score(), &batch.x)?),
            "before other images and after",
        ));
        if !random {
            let (other, craft) = (
                subject.ids.all(Purpose::Repeat, &batch.ids),
                subject.ids.all(Purpose::Craft, &batch.ids),
            );
            let seed = subject.seed();
            let renamed = self.forward(&Call::score(seed, &other), &noisy)?;
            worst.push((apart(&scored, &renamed), "under other sample ids"));
            let crafted = self.forward(&Call::craft(seed, &craft), &noisy)?;
            worst.push((apart(&scored, &crafted), "in crafting and in scoring"));
        }
        let (largest, between) = worst
            .into_iter()
            .fold((0., "alone and in a batch"), |a, b| if b.0 > a.0 { b } else { a });
        let text = match largest {
            0. => "the same bits alone, in a batch, again, under other ids, in crafting and in scoring".into(),
            _ => format!("logits of one image differ by {largest:.1e} of the largest {between}"),
        };
        let finding = Finding::expect(16, largest <= self.allowed(), text, THRESHOLD);
        Ok(finding.next("let the output depend on the image alone: no state, no sample id, no phase"))
    }
}
