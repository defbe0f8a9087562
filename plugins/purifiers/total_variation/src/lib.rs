//! Total-variation denoising (Rudin, Osher and Fatemi 1992; as a defence Guo et al. 2018): the image `u` that minimises
//! `|u - x|^2 / 2 + weight * TV(u)`, by Chambolle's iterations (2004) on the dual.

use advae_sdk::prelude::*;

settings! {
    /// How smooth an image becomes.
    pub struct TotalVariationSettings {
        /// Weight of the total variation, for pixels in [0, 1]: 1e-6 to 1000.
        weight: f64 = 0.3,
        /// Number of iterations, 1 to 3000.
        iterations: usize = 50,
    }
}

/// Step of the dual; Chambolle proves convergence up to 1/8, and observes it up to 1/4.
const STEP: f64 = 0.25;
/// Keeps the root's derivative finite where an image is flat.
const FLAT: f64 = 1e-12;

struct TotalVariation(TotalVariationSettings);

impl Purifier for TotalVariation {
    type Settings = TotalVariationSettings;

    fn new(settings: TotalVariationSettings, _: &Weights) -> Result<Self> {
        in_range("weight", settings.weight, 1e-6..=1e3)?;
        in_range("iterations", settings.iterations, 1..=3000)?;
        Ok(Self(settings))
    }

    /// A gradient keeps some twenty images of an iteration: with many iterations a batch is small, so that they fit in half a gigabyte.
    fn batch(&self) -> Option<usize> {
        Some((6400 / self.0.iterations).clamp(1, 128))
    }

    /// Every iteration is differentiable, and so is their chain: attackers have the true derivative.
    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        let scaled = (x / self.0.weight)?;
        let [mut down, mut right] = [x.zeros_like()?, x.zeros_like()?];
        for _ in 0..self.0.iterations {
            let residual = (divergence(&down, &right)? - &scaled)?;
            let [a, b] = [forward(&residual, 2)?, forward(&residual, 3)?];
            let size = ((a.sqr()? + b.sqr()?)? + FLAT)?.sqrt()?;
            let scale = ((size * STEP)? + 1.)?;
            down = ((down + (a * STEP)?)? / &scale)?;
            right = ((right + (b * STEP)?)? / &scale)?;
        }
        nn::clamp(&(x - (divergence(&down, &right)? * self.0.weight)?)?, 0., 1.)
    }
}

/// Differences to the next pixel along an axis, 0 at the last one.
fn forward(x: &Tensor, axis: usize) -> Result<Tensor> {
    let size = x.dim(axis)?;
    let next = x.narrow(axis, 1, size - 1)?;
    (next - x.narrow(axis, 0, size - 1)?)?.pad_with_zeros(axis, 0, 1)
}

/// Minus the adjoint of both differences.
fn divergence(down: &Tensor, right: &Tensor) -> Result<Tensor> {
    let backward = |p: &Tensor, axis: usize| {
        let p = p.narrow(axis, 0, p.dim(axis)? - 1)?;
        p.pad_with_zeros(axis, 0, 1)? - p.pad_with_zeros(axis, 1, 0)?
    };
    backward(down, 2)? + backward(right, 3)?
}

export_plugin! { purifier: TotalVariation }

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{DType, Device};
    use advae_sdk::nn::{GradcheckOptions, gradcheck};

    fn purifier(weight: f64, iterations: usize) -> TotalVariation {
        TotalVariation::new(TotalVariationSettings { weight, iterations }, &Weights::init(0)).unwrap()
    }

    fn variation(x: &Tensor) -> f64 {
        let [a, b] = [forward(x, 2).unwrap(), forward(x, 3).unwrap()];
        let size = (a.sqr().unwrap() + b.sqr().unwrap()).unwrap().sqrt().unwrap();
        size.sum_all().unwrap().to_scalar().unwrap()
    }

    fn noise(shape: &[usize]) -> Tensor {
        let noise = Pass::eval().rand_uniform(shape, 0.2, 0.8, 0, &Device::Cpu).unwrap();
        noise.to_dtype(DType::F64).unwrap()
    }

    #[test]
    fn it_lowers_what_it_minimises() {
        let x = noise(&[1, 1, 12, 12]);
        let weight = 0.1;
        let energy = |u: &Tensor| {
            let distance = (u - &x).unwrap().sqr().unwrap().sum_all().unwrap();
            0.5 * distance.to_scalar::<f64>().unwrap() + weight * variation(u)
        };
        let at = |iterations| energy(&purifier(weight, iterations).purify(&Pass::eval(), &x).unwrap());
        let (few, many, more) = (at(5), at(100), at(400));
        assert!(energy(&x) > few && few > many, "{} {few} {many}", energy(&x));
        assert!((many - more).abs() < 1e-3 * more, "{many} {more}");
    }

    #[test]
    fn an_edge_of_two_halves_moves_by_a_known_step() {
        // Of a step along one axis, `width` pixels on each side, the minimiser takes `weight / width` off both.
        let pixels: Vec<f64> = (0..64).map(|i| if i % 8 < 4 { 0.2 } else { 0.8 }).collect();
        let x = Tensor::from_vec(pixels, (1, 1, 8, 8), &Device::Cpu).unwrap();
        let y = purifier(0.2, 3000).purify(&Pass::eval(), &x).unwrap();
        let y = y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert!(
            (y[0] - 0.25).abs() < 1e-3 && (y[7] - 0.75).abs() < 1e-3,
            "{} {}",
            y[0],
            y[7]
        );
    }

    #[test]
    fn its_derivative_is_true() {
        let purifier = purifier(0.1, 10);
        let f = |x: &Tensor| purifier.purify(&Pass::eval(), x);
        let report = gradcheck(f, &noise(&[1, 1, 5, 6]), &GradcheckOptions::default()).unwrap();
        assert!(report.max_relative_error < 1e-6, "{report:?}");
    }
}
