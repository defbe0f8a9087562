//! The best image of every sample.

use crate::Perturbed;
use candle_core::{Result, Tensor, bail};
use std::cmp::Ordering;

/// The best image of every sample of a batch so far: an adversarial one before any other, then the one with the higher score.
///
/// The score is the loss for an attack within a ball, and the negated distance for one that minimises it. One whose score is NaN is
/// the worst of all, whatever its verdict: both come from logits that are no numbers. Of equals the first stays.
pub struct Best {
    ranks: Vec<Option<Rank>>,
    images: Kept,
}

/// The images of the samples that have one.
enum Kept {
    /// One by one.
    Each(Vec<Option<Tensor>>),
    /// On a device, where few large operations are faster: those of the whole batch `[N,C,H,W]`.
    Whole(Tensor),
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
        Self {
            ranks: vec![None; samples],
            images: Kept::Each(vec![None; samples]),
        }
    }

    /// Offers the rows of `images` `[n,C,H,W]`, with verdicts and scores, for the samples at `places`.
    ///
    /// # Errors
    /// Where there are fewer images than places.
    ///
    /// # Panics
    /// Where there are fewer verdicts or scores than places, or there is no such place.
    pub fn offer(&mut self, places: &[usize], images: &Tensor, adversarial: &[bool], scores: &[f32]) -> Result<()> {
        let mut better = vec![];
        for (row, place) in places.iter().enumerate() {
            let rank = Rank {
                adversarial: adversarial[row],
                score: scores[row],
            };
            if self.ranks[*place].is_none_or(|best| rank.beats(best)) {
                self.ranks[*place] = Some(rank);
                better.push((row, *place));
            }
        }
        match images.device().is_cpu() {
            true => self.keep_each(&better, images),
            false => self.keep_whole(&better, images),
        }
    }

    /// Keeps rows of `images`, each for a place.
    fn keep_each(&mut self, better: &[(usize, usize)], images: &Tensor) -> Result<()> {
        if let Kept::Each(kept) = &mut self.images {
            for (row, place) in better {
                kept[*place] = Some(images.get(*row)?.copy()?);
            }
        }
        Ok(())
    }

    /// The same in one piece.
    fn keep_whole(&mut self, better: &[(usize, usize)], images: &Tensor) -> Result<()> {
        if better.is_empty() {
            return Ok(());
        }
        let n = self.ranks.len();
        let mut from: Vec<u32> = (0..n as u32).collect();
        for (row, place) in better {
            if *row >= images.dim(0)? {
                bail!("{} images for sample {row}", images.dim(0)?)
            }
            from[*place] = (n + row) as u32;
        }
        let whole = match &self.images {
            Kept::Whole(whole) => whole.clone(),
            Kept::Each(_) => {
                let mut shape = images.dims().to_vec();
                shape[0] = n;
                Tensor::zeros(shape, images.dtype(), images.device())?
            }
        };
        let from = Tensor::new(from, images.device())?;
        self.images = Kept::Whole(Tensor::cat(&[&whole, images], 0)?.index_select(&from, 0)?);
        Ok(())
    }

    /// Which samples have an adversarial image.
    pub fn adversarial(&self) -> Vec<bool> {
        let adversarial = |best: &Option<Rank>| best.is_some_and(|best| best.adversarial);
        self.ranks.iter().map(adversarial).collect()
    }

    /// The score of a sample's image, if it has one.
    ///
    /// # Panics
    /// Where there is no such place.
    pub fn score(&self, place: usize) -> Option<f32> {
        self.ranks[place].map(|best| best.score)
    }

    /// The images `[N,C,H,W]`, and those of `x` for samples without one.
    ///
    /// # Errors
    /// Where `x` holds other images.
    pub fn images(&self, x: &Tensor) -> Result<Tensor> {
        let kept = match &self.images {
            Kept::Each(kept) => kept,
            Kept::Whole(whole) => {
                let found: Vec<bool> = self.ranks.iter().map(Option::is_some).collect();
                return super::choose(&found, whole, x);
            }
        };
        let image = |(place, best): (usize, &Option<Tensor>)| match best {
            Some(image) => Ok(image.clone()),
            None => x.get(place),
        };
        Tensor::stack(&kept.iter().enumerate().map(image).collect::<Result<Vec<_>>>()?, 0)
    }

    /// What an attack returns whose scores are negated distances: the nearest adversarial images that are no farther than `longest`, and
    /// that the others were not found.
    ///
    /// # Errors
    /// Where `x` holds other images.
    pub fn nearest(&self, x: &Tensor, longest: f64) -> Result<Perturbed> {
        let near = |best: &Option<Rank>| best.is_some_and(|best| best.adversarial && -best.score <= longest as f32);
        let found: Vec<bool> = self.ranks.iter().map(near).collect();
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
    fn images_in_one_piece_are_those_kept_one_by_one() {
        let x = images(&[0.; 4]);
        let offers: [(&[usize], &[f32], &[f32]); 3] = [
            (&[0, 2], &[0.1, 0.2], &[1., 1.]),
            (&[3, 2, 0], &[0.3, 0.4, 0.5], &[0., 2., 0.]),
            (&[3], &[0.6], &[-1.]),
        ];
        let (mut each, mut whole) = (Best::new(4), Best::new(4));
        for (places, values, scores) in offers {
            let rows = images(values);
            each.offer(places, &rows, &[false; 3][..places.len()], scores).unwrap();
            let better: Vec<(usize, usize)> = (places.iter().enumerate())
                .filter(|(row, place)| whole.ranks[**place].is_none_or(|best| scores[*row] > best.score))
                .map(|(row, place)| (row, *place))
                .collect();
            whole.ranks = each.ranks.clone();
            whole.keep_whole(&better, &rows).unwrap();
        }
        assert_eq!(values(&each.images(&x).unwrap()), [0.1, 0., 0.4, 0.3]);
        assert_eq!(values(&whole.images(&x).unwrap()), values(&each.images(&x).unwrap()));
        assert!(whole.keep_whole(&[(1, 0)], &images(&[0.5])).is_err());
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
