//! Gaussian smoothing: rows and columns are averaged with the weights of a normal distribution.

use advae_sdk::nn::linear;
use advae_sdk::prelude::*;

settings! {
    /// Width of the blur.
    pub struct BlurSettings {
        /// Standard deviation in pixels, 0.01 to 100. Beyond the edge, the pixels of the edge are repeated.
        sigma: f64 = 1.,
    }
}

struct Blur(BlurSettings);

impl Purifier for Blur {
    type Settings = BlurSettings;
    const THREADING: Threading = Threading::Caller;

    fn new(settings: BlurSettings, _: &Weights) -> Result<Self> {
        in_range("sigma", settings.sigma, 0.01..=100.)?;
        Ok(Self(settings))
    }

    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        let y = self.rows(x)?.transpose(2, 3)?.contiguous()?;
        self.rows(&y)?.transpose(2, 3)?.contiguous()
    }
}

impl Blur {
    /// Averages along the last axis.
    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let weights = Tensor::from_vec(self.weights(w), (w, w), x.device())?.to_dtype(x.dtype())?;
        linear(&x.reshape((n * c * h, w))?, &weights, None)?.reshape(x.shape())
    }

    /// Weights `[to, from]` along an axis of `size` pixels, up to four deviations away.
    fn weights(&self, size: usize) -> Vec<f64> {
        let reach = (4. * self.0.sigma).ceil() as isize;
        let weight = |d: isize| (-0.5 * (d as f64 / self.0.sigma).powi(2)).exp();
        let total: f64 = (-reach..=reach).map(weight).sum();
        let mut weights = vec![0.; size * size];
        for to in 0..size {
            for d in -reach..=reach {
                let from = (to as isize + d).clamp(0, size as isize - 1) as usize;
                weights[to * size + from] += weight(d) / total;
            }
        }
        weights
    }
}

export_plugin! { purifier: Blur }

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{Device, Var};

    #[test]
    fn a_point_becomes_a_bell_and_a_plane_stays() {
        let blur = Blur::new(BlurSettings { sigma: 1. }, &Weights::init(0)).unwrap();
        let mut pixels = vec![0f64; 15 * 15];
        pixels[7 * 15 + 7] = 1.;
        let x = Var::from_slice(&pixels, (1, 1, 15, 15), &Device::Cpu).unwrap();
        let y = blur.purify(&Pass::eval(), x.as_tensor()).unwrap();
        let values = y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!((values.iter().sum::<f64>() - 1.).abs() < 1e-12);
        let ratio = values[7 * 15 + 8] / values[7 * 15 + 7];
        assert!((ratio - (-0.5f64).exp()).abs() < 1e-12, "{ratio}");
        // A symmetric map is its own transpose.
        let gradient = nn::vjp(x.as_tensor(), &y, x.as_tensor()).unwrap().0.unwrap();
        let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for (g, v) in gradient.iter().zip(&values) {
            assert!((g - v).abs() < 1e-12);
        }
        let plane = Tensor::new(&[[[[0.25f64; 9]; 5]]], &Device::Cpu).unwrap();
        let same = blur.purify(&Pass::eval(), &plane).unwrap();
        let difference = (same - plane)
            .unwrap()
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap();
        assert!(difference < 1e-12);
    }
}
