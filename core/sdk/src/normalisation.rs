//! Pixels as a network takes them: `(x - mean) / std`, a channel each.

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};

/// A setting that is one number for all channels, or one for each: `0.5` or `[0.49,0.48,0.45]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number, such as 0.5 or 1/255, or a list of them")]
pub enum PerChannel {
    /// The same for all channels.
    One(f64),
    /// One for each.
    Each(Vec<f64>),
}

/// Largest distance of a mean from 0, and of a deviation from 1 as a ratio: further out, pixels are lost in the rounding of f32 or
/// leave its range.
const FURTHEST: f64 = 1e6;

impl PerChannel {
    fn of(&self, name: &str, channels: usize, least: f64) -> Result<Vec<f64>> {
        let numbers = match self {
            PerChannel::One(v) => vec![*v; channels],
            PerChannel::Each(v) => v.clone(),
        };
        if numbers.len() != channels {
            bail!(
                "{name} has {} numbers for images of {channels} channels: give one, or one a channel",
                numbers.len()
            )
        }
        match numbers.iter().find(|v| !(least..=FURTHEST).contains(*v)) {
            Some(wrong) => bail!("{name} is {wrong:?}: expected numbers between {least:?} and {FURTHEST:?}"),
            None => Ok(numbers),
        }
    }
}

/// The normalisation of a network that was trained on pixels of another range than `[0, 1]`. As a part of the model it leaves the
/// attacks' pixels in `[0, 1]`.
#[derive(Clone, Debug)]
pub struct Normalisation {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Normalisation {
    /// `(x - mean) / std` for images of so many channels.
    ///
    /// # Errors
    /// Where there are more or fewer numbers than channels, or a number is out of range.
    pub fn new(mean: &PerChannel, std: &PerChannel, channels: usize) -> Result<Self> {
        Ok(Self {
            mean: mean.of("mean", channels, -FURTHEST)?,
            std: std.of("std", channels, 1. / FURTHEST)?,
        })
    }

    /// Whether pixels stay as they are.
    pub fn is_identity(&self) -> bool {
        self.mean.iter().all(|m| *m == 0.) && self.std.iter().all(|s| *s == 1.)
    }

    /// Factor and term of each channel.
    pub fn affine(&self) -> [Vec<f64>; 2] {
        let scale: Vec<f64> = self.std.iter().map(|s| 1. / s).collect();
        let shift = self.mean.iter().zip(&scale).map(|(m, s)| -m * s).collect();
        [scale, shift]
    }

    /// Images `[N, C, H, W]`, pixels in `[0, 1]`, as the network takes them.
    ///
    /// # Errors
    /// Where `x` has another number of channels.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let [scale, shift] = self.affine();
        self.by_channel(x, &scale, &shift)
    }

    /// A network's images `[N, C, H, W]` in pixels again.
    ///
    /// # Errors
    /// As for [`apply`](Self::apply).
    pub fn undo(&self, y: &Tensor) -> Result<Tensor> {
        self.by_channel(y, &self.std, &self.mean)
    }

    fn by_channel(&self, x: &Tensor, scale: &[f64], shift: &[f64]) -> Result<Tensor> {
        if self.is_identity() {
            return Ok(x.clone());
        }
        let constant = |v: &[f64]| {
            Tensor::new(v, x.device())?
                .to_dtype(x.dtype())?
                .reshape((1, v.len(), 1, 1))
        };
        x.broadcast_mul(&constant(scale)?)?.broadcast_add(&constant(shift)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn undo_is_the_way_back_from_apply() {
        let x = Tensor::new(&[0f32, 0.25, 0.5, 1.], &Device::Cpu)
            .unwrap()
            .reshape((1, 2, 1, 2))
            .unwrap();
        let by = Normalisation::new(&PerChannel::One(0.5), &PerChannel::Each(vec![0.25, 0.5]), 2).unwrap();
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let y = by.apply(&x).unwrap();
        assert_eq!(numbers(&y), [-2., -1., 0., 1.]);
        assert_eq!(numbers(&by.undo(&y).unwrap()), numbers(&x));
    }

    #[test]
    fn numbers_out_of_range_are_refused_with_their_name() {
        let refused = |mean, std| {
            let error = Normalisation::new(&mean, &std, 3).unwrap_err().to_string();
            // A backtrace may follow.
            error.lines().next().unwrap().to_string()
        };
        let one = PerChannel::One;
        assert_eq!(
            refused(one(f64::NAN), one(1.)),
            "mean is NaN: expected numbers between -1000000.0 and 1000000.0"
        );
        assert_eq!(
            refused(one(0.), one(0.)),
            "std is 0.0: expected numbers between 1e-6 and 1000000.0"
        );
        assert_eq!(
            refused(PerChannel::Each(vec![1., 2.]), one(1.)),
            "mean has 2 numbers for images of 3 channels: give one, or one a channel"
        );
    }
}
