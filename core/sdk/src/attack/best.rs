//! The best image of every sample.

use crate::Perturbed;
use candle_core::{Result, Tensor};
use std::cmp::Ordering;

/// The best image of every sample of a batch so far: an adversarial one before any other, then the one with the higher score.
///
/// The score is the loss for an attack within a ball, and the negated distance for one that minimises it. One whose score is NaN is
/// the worst of all, whatever its verdict: both come from logits that are no numbers. Of equals the first stays.
pub struct Best(Vec<Option<Candidate>>);

#[derive(Clone)]
struct Candidate {
    image: Tensor,
    rank: Rank,
}

#[derive(Clone, Copy)]
struct Rank {
    adversarial: bool,
    score: f32,
}

impl Rank {
    fn beats(self, other: Self) -> bool {
        let verdict = |rank: Self| (!rank.score.is_nan(), rank.adversarial);
        let by_score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        verdict(self).cmp(&verdict(other)).then(by_score).is_gt()
    }
}

impl Best {
    /// No image as yet, for so many samples.
    pub fn new(samples: usize) -> Self {
        Self(vec![None; samples])
    }

    /// Offers the rows of `images` `[n,C,H,W]`, with verdicts and scores, for the samples at `places`.
    ///
    /// # Errors
    /// Where there are fewer images than places.
    ///
    /// # Panics
    /// Where there are fewer verdicts or scores than places, or there is no such place.
    pub fn offer(&mut self, places: &[usize], images: &Tensor, adversarial: &[bool], scores: &[f32]) -> Result<()> {
        for (row, place) in places.iter().enumerate() {
            let rank = Rank {
                adversarial: adversarial[row],
                score: scores[row],
            };
            if self.0[*place].as_ref().is_none_or(|best| rank.beats(best.rank)) {
                let image = images.get(row)?.copy()?;
                self.0[*place] = Some(Candidate { image, rank });
            }
        }
        Ok(())
    }

    /// Which samples have an adversarial image.
    pub fn adversarial(&self) -> Vec<bool> {
        let adversarial = |best: &Option<Candidate>| best.as_ref().is_some_and(|best| best.rank.adversarial);
        self.0.iter().map(adversarial).collect()
    }

    /// The score of a sample's image, if it has one.
    ///
    /// # Panics
    /// Where there is no such place.
    pub fn score(&self, place: usize) -> Option<f32> {
        self.0[place].as_ref().map(|best| best.rank.score)
    }

    /// The images `[N,C,H,W]`, and those of `x` for samples without one.
    ///
    /// # Errors
    /// Where `x` holds other images.
    pub fn images(&self, x: &Tensor) -> Result<Tensor> {
        let image = |(place, best): (usize, &Option<Candidate>)| match best {
            Some(best) => Ok(best.image.clone()),
            None => x.get(place),
        };
        Tensor::stack(&self.0.iter().enumerate().map(image).collect::<Result<Vec<_>>>()?, 0)
    }

    /// What an attack returns whose scores are negated distances: the nearest adversarial images that are no farther than `longest`, and
    /// that the others were not found.
    ///
    /// # Errors
    /// Where `x` holds other images.
    pub fn nearest(&self, x: &Tensor, longest: f64) -> Result<Perturbed> {
        let near = |best: &Option<Candidate>| {
            best.as_ref()
                .is_some_and(|best| best.rank.adversarial && -best.rank.score <= longest as f32)
        };
        let found: Vec<bool> = self.0.iter().map(near).collect();
        Ok(Perturbed {
            x_adv: super::choose(&found, &self.images(x)?, x)?,
            found: Some(found),
            targets: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn images(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu)
            .unwrap()
            .reshape(((), 1, 1, 1))
            .unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn an_image_whose_score_is_no_number_is_replaced_by_any_other() {
        let rank = |adversarial, score| Rank { adversarial, score };
        // From the worst to the best; NaN of either sign.
        let ranks = [
            rank(true, f32::NAN),
            rank(false, f32::NEG_INFINITY),
            rank(false, 3.),
            rank(true, -1.),
            rank(true, 2.),
            rank(true, f32::INFINITY),
        ];
        for (i, better) in ranks.iter().enumerate() {
            for worse in &ranks[..i] {
                assert!(better.beats(*worse) && !worse.beats(*better), "{i}");
            }
        }
        let negative = rank(true, -f32::NAN);
        assert!(ranks[1].beats(negative) && !negative.beats(ranks[1]));
        assert!(!rank(true, 0.).beats(rank(true, -0.)), "of equals the first stays");
    }

    #[test]
    fn the_nearest_are_returned_and_the_others_named() {
        let (mut best, x) = (Best::new(4), images(&[0., 0., 0., 0.]));
        let mut offer = |value: f32, adversarial: [bool; 3]| {
            let rows = images(&[value; 3]);
            best.offer(&[0, 1, 3], &rows, &adversarial, &[-value; 3]).unwrap();
        };
        offer(0.5, [true, false, true]);
        offer(0.2, [true, false, false]);
        offer(0.4, [true, false, true]);
        assert_eq!(best.adversarial(), [true, false, false, true]);
        assert_eq!((best.score(0), best.score(2)), (Some(-0.2), None));
        assert_eq!(values(&best.images(&x).unwrap()), [0.2, 0.2, 0., 0.4]);
        for (longest, found, expected) in [
            (f64::INFINITY, [true, false, false, true], [0.2, 0., 0., 0.4]),
            (0.3, [true, false, false, false], [0.2, 0., 0., 0.]),
        ] {
            let out = best.nearest(&x, longest).unwrap();
            assert_eq!(out.found.unwrap(), found);
            assert_eq!(values(&out.x_adv), expected);
        }
    }
}
