//! Training images varied anew in every epoch: shifted, and mirrored.

use super::key::keyed;
use advae_data::Dataset;
use anyhow::{Result, ensure};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How training images are varied. For CIFAR-10 the paper pads by 2 and flips (Li et al. 2019, as Madry et al. 2018).
///
/// What becomes of an image depends on the run's seed, the epoch and the image's id alone: not on its batch, its place in it, or the
/// number of threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augmentation {
    /// Black pixels that are laid around an image before a window of the image's size is cut out of it at a random place: the image is
    /// shifted by up to as many pixels, down or up and right or left.
    pub pad: usize,
    /// Whether an image is mirrored, left to right, with probability 1/2.
    pub flip: bool,
}

/// What becomes of one image.
struct Move {
    /// Rows and columns that the window lies below and right of the padded image's corner, in 0..=2 pad.
    window: [usize; 2],
    mirrored: bool,
}

impl Augmentation {
    /// Whether images stay as they are.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses padding that may push an image of that shape `[C, H, W]` out of the window.
    ///
    /// # Errors
    /// Names the padding and the image's size.
    pub fn check(&self, [_, h, w]: [usize; 3]) -> Result<()> {
        ensure!(
            self.pad < h.min(w),
            "augmentation.pad is {}, but images are {h}x{w}: expected less than {}",
            self.pad,
            h.min(w)
        );
        Ok(())
    }

    /// The images `[N, C, H, W]` of a batch as they are in that epoch of the run of that seed; labels and ids stay.
    pub fn apply(&self, mut batch: Dataset, seed: u64, epoch: usize) -> Dataset {
        if self.is_none() {
            return batch;
        }
        let [_, h, w] = batch.shape;
        let mut images = vec![0.; batch.images.len()];
        let rows = images.chunks_exact_mut(batch.image_len()).enumerate();
        for (i, image) in rows {
            let moved = self.moved(seed, epoch, batch.ids[i]);
            let planes = batch.image(i).chunks_exact(h * w).zip(image.chunks_exact_mut(h * w));
            planes.for_each(|(from, to)| moved.apply(from, to, w, self.pad));
        }
        batch.images = images;
        batch
    }

    fn moved(&self, seed: u64, epoch: usize, id: u64) -> Move {
        let mut rng = keyed(&[seed, epoch as u64, id]);
        Move {
            window: std::array::from_fn(|_| rng.random_range(0..=2 * self.pad)),
            mirrored: self.flip && rng.random(),
        }
    }
}

impl Move {
    /// Writes the pixels of a plane `[H, W]` that lie within the window to a black one.
    fn apply(&self, from: &[f32], to: &mut [f32], w: usize, pad: usize) {
        let [down, right] = self.window;
        let h = from.len() / w;
        for (y, row) in to.chunks_exact_mut(w).enumerate() {
            let Some(y) = (y + down).checked_sub(pad).filter(|y| *y < h) else {
                continue;
            };
            for (x, pixel) in row.iter_mut().enumerate() {
                let x = if self.mirrored { w - 1 - x } else { x };
                if let Some(x) = (x + right).checked_sub(pad).filter(|x| *x < w) {
                    *pixel = from[y * w + x];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAPER: Augmentation = Augmentation { pad: 2, flip: true };

    /// Images `[N, 2, 4, 5]` whose pixels are all different and none black.
    fn batch(ids: &[u64]) -> Dataset {
        let image = |id: &u64| {
            let id = *id as f32;
            (0..40).map(move |i| (id * 41. + i as f32 + 1.) / 1e4)
        };
        let images = ids.iter().flat_map(image).collect();
        Dataset::new("d", images, vec![0; ids.len()], ids.to_vec(), [2, 4, 5], 1).unwrap()
    }

    #[test]
    fn what_becomes_of_an_image_does_not_depend_on_its_batch() {
        let together = PAPER.apply(batch(&[7, 3, 9, 12]), 1, 5);
        for (i, id) in [7, 3, 9, 12].into_iter().enumerate() {
            assert_eq!(PAPER.apply(batch(&[id]), 1, 5).image(0), together.image(i), "{id}");
        }
    }

    #[test]
    fn every_epoch_and_every_seed_varies_images_otherwise() {
        let ids: Vec<u64> = (0..50).collect();
        let first = PAPER.apply(batch(&ids), 0, 0);
        assert_eq!(first, PAPER.apply(batch(&ids), 0, 0));
        assert_ne!(first, PAPER.apply(batch(&ids), 0, 1));
        assert_ne!(first, PAPER.apply(batch(&ids), 1, 0));
        assert_eq!(Augmentation::default().apply(batch(&ids), 0, 0), batch(&ids));
    }

    #[test]
    fn a_moved_image_is_a_shifted_mirrored_one_with_black_behind_it_in_every_channel_alike() {
        let from: Vec<f32> = (1..=6).map(|v| v as f32).collect(); // [2, 3]
        let moved = |window, mirrored| {
            let mut to = vec![0.; 6];
            Move { window, mirrored }.apply(&from, &mut to, 3, 1);
            to
        };
        assert_eq!(moved([1, 1], false), from);
        assert_eq!(moved([1, 1], true), [3., 2., 1., 6., 5., 4.]);
        assert_eq!(moved([2, 1], false), [4., 5., 6., 0., 0., 0.]);
        assert_eq!(moved([0, 0], false), [0., 0., 0., 0., 1., 2.]);
        assert_eq!(moved([1, 2], true), [0., 3., 2., 0., 6., 5.]);
        let image = PAPER.apply(batch(&[4]), 2, 3);
        let planes: Vec<&[f32]> = image.image(0).chunks(20).collect();
        for (a, b) in planes[0].iter().zip(planes[1]) {
            assert!((*a == 0. && *b == 0.) || (b - a - 20e-4).abs() < 1e-6, "{a} {b}");
        }
    }

    #[test]
    fn all_places_occur_equally_often_and_half_the_images_are_mirrored() {
        let moves: Vec<Move> = (0..5000).map(|id| PAPER.moved(0, 0, id)).collect();
        for at in 0..5 {
            for axis in 0..2 {
                let n = moves.iter().filter(|m| m.window[axis] == at).count();
                assert!((900..1100).contains(&n), "{n} at {at}");
            }
        }
        let mirrored = moves.iter().filter(|m| m.mirrored).count();
        assert!((2350..2650).contains(&mirrored), "{mirrored}");
        let still = Augmentation { pad: 2, flip: false };
        assert!((0..100).all(|id| !still.moved(0, 0, id).mirrored));
    }

    #[test]
    fn padding_that_could_hide_an_image_is_refused() {
        let error = Augmentation { pad: 4, flip: false }
            .check([3, 4, 9])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "augmentation.pad is 4, but images are 4x9: expected less than 4");
        assert!(PAPER.check([3, 32, 32]).is_ok());
    }
}
