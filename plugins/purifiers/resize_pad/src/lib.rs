//! Random resizing and padding (Xie et al. 2018): an image is shrunk to a random size and put at a random place. The classifier's
//! images have a fixed size, so that here the border is won by shrinking.

use advae_sdk::nn::linear;
use advae_sdk::prelude::*;

settings! {
    /// How much an image is shrunk and moved.
    pub struct ResizePadSettings {
        /// Smallest size, as a share of the image's size: 0.01 to 1.
        smallest: f64 = 0.8,
    }
}

struct ResizePad(ResizePadSettings);

impl Purifier for ResizePad {
    type Settings = ResizePadSettings;
    const RANDOM: bool = true;
    const THREADING: Threading = Threading::Caller;

    fn new(settings: ResizePadSettings, _: &Weights) -> Result<Self> {
        in_range("smallest", settings.smallest, 0.01..=1.)?;
        Ok(Self(settings))
    }

    /// Bilinear, so linear in the image: attackers have the true derivative, and average it over draws (EOT).
    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let (n, _, h, w) = x.dims4()?;
        let chances = pass.rand_uniform(&[n, 3], 0., 1., 0, x.device())?.to_vec2::<f32>()?;
        let place = |chances: &[f32], i: usize| {
            let share = self.0.smallest + (1. - self.0.smallest) * f64::from(chances[0]);
            let [rows, columns] = [h, w].map(|size| Axis::new(size, share));
            let x = x.narrow(0, i, 1)?;
            let x = columns.apply(&x, chances[1])?.transpose(2, 3)?.contiguous()?;
            rows.apply(&x, chances[2])?.transpose(2, 3)?.contiguous()
        };
        let placed = chances.iter().enumerate().map(|(i, chances)| place(chances, i));
        Tensor::cat(&placed.collect::<Result<Vec<_>>>()?, 0)
    }
}

/// An axis, and how long it becomes.
struct Axis {
    from: usize,
    to: usize,
}

impl Axis {
    fn new(size: usize, share: f64) -> Self {
        Self {
            from: size,
            to: ((size as f64 * share).round() as usize).clamp(1, size),
        }
    }

    /// Shrinks the last axis of an image and puts it where `chance` says, of all places where it fits.
    fn apply(&self, x: &Tensor, chance: f32) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let places = self.from - self.to + 1;
        let first = ((f64::from(chance) * places as f64) as usize).min(places - 1);
        let weights = Tensor::from_vec(self.weights(first), (w, w), x.device())?.to_dtype(x.dtype())?;
        linear(&x.reshape((n * c * h, w))?, &weights, None)?.reshape((n, c, h, w))
    }

    /// Weights `[to, from]` of a bilinear resampling (pixels' centres at halves), padded with zeros.
    fn weights(&self, first: usize) -> Vec<f64> {
        let mut weights = vec![0.; self.from * self.from];
        let last = self.from - 1;
        for i in 0..self.to {
            let at = ((i as f64 + 0.5) * self.from as f64 / self.to as f64 - 0.5).clamp(0., last as f64);
            let below = at.floor() as usize;
            let row = &mut weights[(first + i) * self.from..][..self.from];
            row[below] += 1. - at.fract();
            row[(below + 1).min(last)] += at.fract();
        }
        weights
    }
}

export_plugin! { purifier: ResizePad }

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Device;

    fn images(n: usize) -> Tensor {
        let x = Pass::eval().with_seed(1);
        x.rand_uniform(&[n, 1, 10, 12], 0., 1., 0, &Device::Cpu).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn at_full_size_nothing_changes() {
        let purifier = ResizePad::new(ResizePadSettings { smallest: 1. }, &Weights::init(0)).unwrap();
        let x = images(3);
        assert_eq!(values(&purifier.purify(&Pass::eval(), &x).unwrap()), values(&x));
        assert!(ResizePad::new(ResizePadSettings { smallest: 0. }, &Weights::init(0)).is_err());
    }

    #[test]
    fn every_sample_has_a_size_and_a_place_of_its_own() {
        let purifier = ResizePad::new(ResizePadSettings { smallest: 0.5 }, &Weights::init(0)).unwrap();
        let (x, pass) = (images(4), Pass::eval().with_ids([3, 1, 4, 5]));
        let whole = values(&purifier.purify(&pass, &x).unwrap());
        for i in 0..4 {
            let alone = pass.clone().with_ids([pass.sample_ids[i]]);
            let alone = values(&purifier.purify(&alone, &x.narrow(0, i, 1).unwrap()).unwrap());
            assert_eq!(alone, whole[i * 120..(i + 1) * 120]);
        }
        let again = values(&purifier.purify(&pass.with_draw(1), &x).unwrap());
        assert_ne!(again, whole);
    }

    #[test]
    fn half_the_size_averages_pairs() {
        let axis = Axis { from: 4, to: 2 };
        let weights = axis.weights(1);
        let row = |i: usize| &weights[4 * i..4 * i + 4];
        assert_eq!((row(0), row(3)), (&[0.; 4][..], &[0.; 4][..]));
        assert_eq!((row(1), row(2)), (&[0.5, 0.5, 0., 0.][..], &[0., 0., 0.5, 0.5][..]));
    }
}
