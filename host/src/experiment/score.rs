//! Scoring: the host measures every returned image itself and classifies it with its own forward passes.

use super::ids::{Ids, Purpose};
use crate::results::{DrawShares, Row};
use crate::wire::attack::Perturbed;
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::NormKind;
use advae_data::Dataset;
use anyhow::Result;

/// Tolerance added to epsilon for rounding.
const TOLERANCE: f64 = 1e-6;

/// Distance of an image from the clean one, in `f64`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distances {
    /// Euclidean.
    pub l2: f64,
    /// Largest absolute difference of a pixel.
    pub linf: f64,
}

impl Distances {
    /// Between two images.
    pub fn between(x: &[f32], x_adv: &[f32]) -> Self {
        let differences = || x.iter().zip(x_adv).map(|(a, b)| f64::from(*b) - f64::from(*a));
        Self {
            l2: differences().map(|d| d * d).sum::<f64>().sqrt(),
            linf: differences().fold(0., |m, d| m.max(d.abs())),
        }
    }

    /// In that norm.
    pub fn in_norm(&self, norm: NormKind) -> f64 {
        match norm {
            NormKind::Linf => self.linf,
            NormKind::L2 => self.l2,
        }
    }
}

/// What an image has to keep to be scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Range of the pixels.
    pub bounds: [f32; 2],
    /// Norm of the budget.
    pub norm: NormKind,
    /// Largest distance from the clean image; absent: any.
    pub epsilon: Option<f64>,
}

impl Limits {
    /// Rounds the images of `x_adv` to so many bits a pixel; those that would be [refused](Self::refuse) stay as they are.
    pub fn quantize(&self, bits: u32, x: &Tensor, x_adv: &mut Tensor) {
        let levels = f64::from((1u32 << bits) - 1);
        let len = x_adv.row_len();
        for i in 0..x.shape[0] {
            if self.refuse(x.row(i), x_adv.row(i)).is_none() {
                let row = &mut x_adv.data[i * len..(i + 1) * len];
                row.iter_mut()
                    .for_each(|v| *v = ((f64::from(*v) * levels).round() / levels) as f32);
            }
        }
    }

    /// The limits of images that kept these and were rounded then: half a level farther in each of `len` pixels.
    pub fn after_rounding(&self, quantize: Option<u32>, len: usize) -> Self {
        let half = quantize.map_or(0., |bits| 0.5 / f64::from((1u32 << bits) - 1));
        let farther = match self.norm {
            NormKind::Linf => half,
            NormKind::L2 => half * (len as f64).sqrt(),
        };
        Self {
            epsilon: self.epsilon.map(|epsilon| epsilon + farther),
            ..*self
        }
    }

    /// Why the image is refused, if it is.
    pub fn refuse(&self, x: &[f32], x_adv: &[f32]) -> Option<String> {
        let [low, high] = self.bounds;
        if let Some(value) = x_adv.iter().find(|v| !v.is_finite()) {
            return Some(format!("a pixel is {value}"));
        }
        if let Some(value) = x_adv.iter().find(|v| !(low..=high).contains(*v)) {
            return Some(format!("a pixel is {value}, outside [{low}, {high}]"));
        }
        let distance = Distances::between(x, x_adv).in_norm(self.norm);
        let epsilon = self.epsilon.filter(|epsilon| distance > epsilon + TOLERANCE)?;
        Some(format!(
            "{} distance {distance:.6} over the budget {epsilon}",
            self.norm
        ))
    }
}

/// How a pipeline classifies one image, over all scoring draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    /// Majority vote; of several equally frequent predictions a wrong one, and of those the smallest.
    pub prediction: u32,
    /// Share of draws that are correct.
    pub correct: f64,
    /// Whether the majority vote is correct.
    pub is_correct: bool,
}

impl Verdict {
    /// Of the predictions of all draws.
    pub fn of(predictions: &[u32], label: u32) -> Self {
        let count = |class: u32| predictions.iter().filter(|p| **p == class).count();
        // A tie counts against the defence.
        let vote = |class: &u32| (count(*class), *class != label, std::cmp::Reverse(*class));
        let prediction = predictions.iter().copied().max_by_key(vote).unwrap_or(0);
        Self {
            prediction,
            correct: count(label) as f64 / predictions.len().max(1) as f64,
            is_correct: prediction == label && !predictions.is_empty(),
        }
    }
}

/// Who scores, and how.
#[derive(Clone)]
pub struct Scorer {
    /// The whole defended model.
    pub pipeline: Pipeline,
    /// Seed of the experiment.
    pub seed: u64,
    /// Scoring draws; 1 for a deterministic pipeline.
    pub draws: u64,
    /// Threads a plugin may use in one call.
    pub call_threads: usize,
}

/// A batch of clean samples.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Sample ids, as rows and files have them.
    pub ids: Vec<u64>,
    /// Ids under which plugins see the samples while they are scored.
    pub scoring_ids: Vec<u64>,
    /// Clean images.
    pub x: Tensor,
    /// True labels.
    pub y: Vec<u32>,
}

impl Batch {
    /// The samples of a dataset at these positions.
    pub fn of(dataset: &Dataset, known_as: &Ids, samples: &[usize]) -> Self {
        let [c, h, w] = dataset.shape;
        let data = samples.iter().flat_map(|i| dataset.image(*i)).copied().collect();
        let ids: Vec<u64> = samples.iter().map(|i| dataset.ids[*i]).collect();
        Self {
            scoring_ids: known_as.all(Purpose::Score, &ids),
            ids,
            x: Tensor {
                shape: vec![samples.len(), c, h, w],
                data,
            },
            y: samples.iter().map(|i| dataset.labels[*i]).collect(),
        }
    }

    /// Some samples of the batch.
    pub fn select(&self, indices: &[usize]) -> Self {
        let some = |ids: &[u64]| indices.iter().map(|i| ids[*i]).collect();
        Self {
            ids: some(&self.ids),
            scoring_ids: some(&self.scoring_ids),
            x: self.x.select(indices),
            y: indices.iter().map(|i| self.y[*i]).collect(),
        }
    }
}

impl Scorer {
    /// Classifies the images of `batch`.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn classify(&self, batch: &Batch) -> Result<Vec<Verdict>> {
        let call = Call::score(self.seed, &batch.scoring_ids).with_threads(self.call_threads);
        let passes = (0..self.draws).map(|draw| self.pipeline.forward(&call.with_draw(draw), &batch.x));
        let draws: Vec<Vec<u32>> = passes.map(|logits| Ok(logits?.argmax())).collect::<Result<_>>()?;
        let of_sample = |i: usize| draws.iter().map(|labels| labels[i]).collect::<Vec<_>>();
        Ok(batch
            .y
            .iter()
            .enumerate()
            .map(|(i, label)| Verdict::of(&of_sample(i), *label))
            .collect())
    }

    /// One row a sample for what an attack returned. `clean` holds the verdicts on the clean images.
    ///
    /// Refused images, and samples for which the attack says it found nothing, are scored as the clean image is.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn score(
        &self,
        cell: &str,
        limits: &Limits,
        batch: &Batch,
        clean: &[Verdict],
        p: &Perturbed,
    ) -> Result<Vec<Row>> {
        let found = |i: usize| p.found.as_ref().is_none_or(|found| found[i]);
        let target = |i: usize| p.targets.as_ref().map(|targets| targets[i]);
        let refusal = |i: usize| {
            let image = || limits.refuse(batch.x.row(i), p.x_adv.row(i)).filter(|_| found(i));
            target(i)
                .and_then(|target| self.refuse_target(target, batch.y[i]))
                .or_else(image)
        };
        let refused: Vec<Option<String>> = (0..batch.ids.len()).map(refusal).collect();
        let scored: Vec<usize> = (0..batch.ids.len())
            .filter(|i| found(*i) && refused[*i].is_none())
            .collect();
        let mut verdicts = clean.to_vec();
        if !scored.is_empty() {
            let mut adversarial = batch.select(&scored);
            adversarial.x = p.x_adv.select(&scored);
            let classified = self.classify(&adversarial)?;
            scored
                .iter()
                .zip(classified)
                .for_each(|(i, verdict)| verdicts[*i] = verdict);
        }
        let row = |(i, refused): (usize, Option<String>)| {
            let moved = Distances::between(batch.x.row(i), p.x_adv.row(i));
            let distances = if found(i) { moved } else { Distances::default() };
            Row {
                cell: cell.into(),
                id: batch.ids[i],
                label: batch.y[i],
                clean_prediction: clean[i].prediction,
                adversarial_prediction: verdicts[i].prediction,
                clean_correct: clean[i].is_correct,
                robust: verdicts[i].is_correct,
                draws: (self.draws > 1).then(|| DrawShares {
                    clean: clean[i].correct,
                    robust: verdicts[i].correct,
                }),
                l2: Some(distances.l2).filter(|d| d.is_finite()),
                linf: Some(distances.linf).filter(|d| d.is_finite()),
                refused,
                found: p.found.as_ref().map(|found| found[i]),
                target: target(i),
                gradients: 0,
                zero_gradients: 0,
                queries: 0,
                asked: 0,
                at: 0.,
                carried: false,
            }
        };
        Ok(refused.into_iter().enumerate().map(row).collect())
    }

    fn refuse_target(&self, target: u32, label: u32) -> Option<String> {
        let classes = self.pipeline.classes();
        match target {
            target if target == label => Some(format!("its target {target} is the true label")),
            target if target as usize >= classes => {
                Some(format!("its target {target} is none of the {classes} classes"))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        bounds: [0., 1.],
        norm: NormKind::Linf,
        epsilon: Some(0.3),
    };

    #[test]
    fn distances_are_those_of_both_norms() {
        let d = Distances::between(&[0., 0., 0.5], &[0.3, 0.4, 0.5]);
        assert!((d.l2 - 0.5).abs() < 1e-7 && (d.linf - 0.4).abs() < 1e-7);
    }

    #[test]
    fn the_budget_allows_for_rounding_and_no_more() {
        assert_eq!(LIMITS.refuse(&[0.5], &[0.5 + 0.3]), None);
        assert_eq!(LIMITS.refuse(&[0.5], &[0.2 - 5e-7]), None);
        let reason = LIMITS.refuse(&[0.5], &[0.81]).unwrap();
        assert_eq!(reason, "Linf distance 0.310000 over the budget 0.3");
        let uncapped = Limits {
            epsilon: None,
            ..LIMITS
        };
        assert_eq!(uncapped.refuse(&[0.], &[1.]), None);
    }

    #[test]
    fn images_are_rounded_to_the_levels_of_a_file_and_no_refused_one_is_mended() {
        let x = Tensor::new(vec![2, 1, 1, 1], vec![0.5, 0.5]).unwrap();
        let mut x_adv = Tensor::new(vec![2, 1, 1, 1], vec![0.8, 0.805]).unwrap();
        LIMITS.quantize(8, &x, &mut x_adv);
        assert_eq!(x_adv.data, [204. / 255., 0.805], "the second is over the budget");
        let mut coarse = Tensor::new(vec![2, 1, 1, 1], vec![0.5, 0.7]).unwrap();
        LIMITS.quantize(1, &x, &mut coarse);
        assert_eq!(coarse.data, [1., 1.]);
        let limits = LIMITS.after_rounding(Some(1), 1);
        assert_eq!(
            limits.refuse(x.row(0), coarse.row(0)),
            None,
            "half a level beyond a budget that was kept"
        );
        assert_eq!(LIMITS.after_rounding(None, 784), LIMITS);
    }

    #[test]
    fn nan_and_out_of_bounds_are_refused() {
        assert_eq!(LIMITS.refuse(&[0.5], &[f32::NAN]).unwrap(), "a pixel is NaN");
        assert_eq!(LIMITS.refuse(&[0.5], &[f32::INFINITY]).unwrap(), "a pixel is inf");
        assert_eq!(LIMITS.refuse(&[1.], &[1.1]).unwrap(), "a pixel is 1.1, outside [0, 1]");
    }

    #[test]
    fn a_verdict_is_the_mean_and_the_majority_of_draws() {
        let verdict = |predictions: &[u32], label| {
            let verdict = Verdict::of(predictions, label);
            (verdict.prediction, verdict.correct, verdict.is_correct)
        };
        assert_eq!(verdict(&[3], 3), (3, 1., true));
        assert_eq!(verdict(&[1, 2, 2, 7], 7), (2, 0.25, false));
        assert_eq!(verdict(&[5, 4], 0), (4, 0., false));
    }

    #[test]
    fn a_tie_counts_against_the_defence_and_its_prediction_says_so() {
        for predictions in [[1, 3], [3, 1]] {
            for label in [1, 3] {
                let verdict = Verdict::of(&predictions, label);
                assert_eq!(
                    (verdict.prediction == label, verdict.is_correct, verdict.correct),
                    (false, false, 0.5)
                );
            }
        }
    }
}
