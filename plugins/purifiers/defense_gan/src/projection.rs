//! The image of the generator that is nearest to a given one.

use crate::PIXELS;
use crate::generator::{Generator, LATENT};
use advae_sdk::candle_core::{D, DType, Var, bail};
use advae_sdk::nn::{clamp, custom_vjp, vjp};
use advae_sdk::prelude::*;

/// Gradient descent with momentum on `z`, from several starts.
///
/// Bound by compute: a step takes a start through the generator and back, 47 million multiply-adds; the arithmetic here is less than
/// a hundredth of it.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Name of the preset.
    pub name: &'static str,
    /// L.
    pub steps: usize,
    /// R.
    pub restarts: usize,
    /// Rate.
    pub learning_rate: f64,
    /// Share of the last step that a step keeps.
    pub momentum: f64,
    /// Factor on the rate in the last fifth.
    pub decay: f64,
    /// Whether every start is 0.
    pub constant_start: bool,
}

/// Where descents went: each sample's best one.
struct Path {
    /// `[N, 784]`, what the generator makes at the end.
    image: Tensor,
    /// `z` `[N, 128]` before every step and after the last; empty if it was not to be kept.
    points: Vec<Tensor>,
}

impl Projection {
    /// Images `x` `[N, 1, 28, 28]` to generated ones. Starts are `z ~ N(0, 1/128)`, drawn for each sample by itself.
    ///
    /// Where `x` is a variable, its gradient leads back through every step of the best descent ([`pull_back`](Self::pull_back)).
    pub fn run(&self, generator: &Generator, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let target = x.detach().reshape((x.dim(0)?, PIXELS))?;
        let path = self.descend(generator, pass, &target, x.track_op())?;
        let (shape, projection, generator, pass) = (x.shape().clone(), self.clone(), generator.clone(), pass.clone());
        custom_vjp(x, &path.image.reshape(&shape)?, move |cotangent| {
            projection
                .pull_back(&generator, &pass, &target, &path.points, cotangent)?
                .reshape(&shape)
        })
    }

    fn descend(&self, generator: &Generator, pass: &Pass, target: &Tensor, keep: bool) -> Result<Path> {
        let n = target.dim(0)?;
        let rows = n * self.restarts;
        let starts = Tensor::zeros((n, self.restarts * LATENT), target.dtype(), target.device())?;
        let starts = match self.constant_start {
            true => starts,
            false => (pass.randn_like(&starts, 0)? * (1. / LATENT as f64).sqrt())?,
        };
        let mut z = starts.reshape((rows, LATENT))?;
        let mut velocity = z.zeros_like()?;
        let target = target
            .reshape((n, 1, PIXELS))?
            .broadcast_as((n, self.restarts, PIXELS))?
            .reshape((rows, PIXELS))?;
        let mut points = vec![];
        for step in 0..self.steps {
            if keep {
                points.push(z.clone());
            }
            let (_, gradient) = slope(generator, pass, &z, &target)?;
            velocity = ((velocity * self.momentum)? + gradient)?;
            z = (z - (&velocity * self.rate(step))?)?;
        }
        let image = generator.forward(pass, &z)?.detach().reshape((rows, PIXELS))?;
        let errors = (&image - &target)?.sqr()?.mean(D::Minus1)?.to_dtype(DType::F32)?;
        let best = Tensor::new(self.best(&errors.to_vec1()?), target.device())?;
        if keep {
            points.push(z);
        }
        Ok(Path {
            image: image.index_select(&best, 0)?,
            points: points.iter().map(|z| z.index_select(&best, 0)).collect::<Result<_>>()?,
        })
    }

    /// The gradient at `target` `[N, 784]` of `<cotangent, image>`, along the best descents from their starts, which do not depend on it.
    ///
    /// With `v' = m v + g(z, x)`, `z' = z - r v'` and `g` the gradient of the mean squared error `E`, what reaches `v'` moves `z` by the
    /// Hessian of `E` in `z`, and `x` by `-2/784` times the generator's derivative along it. Both are central differences along that
    /// one direction: candle has no derivatives of derivatives, and a step back costs no more than two steps forward. (Samples' best
    /// starts are taken as fixed: which one wins jumps.)
    ///
    /// It may grow past what `f32` holds: a gradient that would be longer than some 1e26 is given with that length.
    fn pull_back(
        &self,
        generator: &Generator,
        pass: &Pass,
        target: &Tensor,
        points: &[Tensor],
        cotangent: &Tensor,
    ) -> Result<Tensor> {
        let Some((last, points)) = points.split_last() else {
            bail!("a projection that was not kept has no way back")
        };
        let end = Var::from_tensor(last)?;
        let image = generator.forward(pass, end.as_tensor())?;
        let at_image = cotangent.reshape(image.shape())?;
        let mut at_z = vjp(end.as_tensor(), &image, &at_image)?
            .0
            .map_or_else(|| last.zeros_like(), Ok)?;
        let (mut at_velocity, mut at_target) = (last.zeros_like()?, target.zeros_like()?);
        let mut logarithm = last.narrow(1, 0, 1)?.zeros_like()?;
        for (step, z) in points.iter().enumerate().rev() {
            // All three are linear in the cotangent.
            let factor = excess(&Tensor::cat(&[&at_z, &at_velocity, &at_target], 1)?)?;
            [at_z, at_velocity, at_target] = [
                at_z.broadcast_div(&factor)?,
                at_velocity.broadcast_div(&factor)?,
                at_target.broadcast_div(&factor)?,
            ];
            logarithm = (logarithm + factor.log()?)?;
            at_velocity = (at_velocity - (&at_z * self.rate(step))?)?;
            let (bend, moved) = along(generator, pass, z, target, &at_velocity)?;
            at_z = (at_z + bend)?;
            at_target = (at_target - (moved * (2. / PIXELS as f64))?)?;
            at_velocity = (at_velocity * self.momentum)?;
        }
        at_target.broadcast_mul(&clamp(&logarithm, -80., 46.)?.exp()?)
    }

    fn rate(&self, step: usize) -> f64 {
        match 5 * step >= 4 * self.steps {
            true => self.learning_rate * self.decay,
            false => self.learning_rate,
        }
    }

    /// The row of each sample's smallest error, the first of equals.
    fn best(&self, errors: &[f32]) -> Vec<u32> {
        let smallest = |errors: &[f32]| {
            (0..errors.len())
                .min_by(|a, b| errors[*a].total_cmp(&errors[*b]))
                .unwrap_or(0)
        };
        let samples = errors.chunks(self.restarts).enumerate();
        samples
            .map(|(i, errors)| (i * self.restarts + smallest(errors)) as u32)
            .collect()
    }

    /// In words.
    pub fn describe(&self) -> String {
        let start = if self.constant_start { ", constant start" } else { "" };
        format!(
            "projection {} (L {}, R {}{start})",
            self.name, self.steps, self.restarts
        )
    }
}

/// By what each row of `x` `[N, ...]` has to be divided to hold no number above 1e6, nor small ones alone, whose squares vanish: `[N, 1]`,
/// 1 where that is so, or all are 0.
fn excess(x: &Tensor) -> Result<Tensor> {
    let largest = x.abs()?.max_keepdim(D::Minus1)?;
    let small = (largest.lt(1e-6)? * largest.gt(0.)?)?;
    (largest.gt(1e6)? + small)?.where_cond(&largest, &largest.ones_like()?)
}

/// What the generator makes of `z` `[N, 128]`, and the gradient at `z` of each row's mean squared error from `target` `[N, 784]`.
fn slope(generator: &Generator, pass: &Pass, z: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
    let variable = Var::from_tensor(z)?;
    let image = generator.forward(pass, variable.as_tensor())?;
    let flat = image.detach().reshape(target.shape())?;
    let slope = ((&flat - target)? * (2. / PIXELS as f64))?.reshape(image.shape())?;
    let Some(gradient) = vjp(variable.as_tensor(), &image, &slope)?.0 else {
        bail!("no gradient reached z")
    };
    Ok((flat, gradient))
}

/// How that gradient and the image change with `z` along `direction` `[N, 128]`: `[N, 128]` and `[N, 784]`.
fn along(
    generator: &Generator,
    pass: &Pass,
    z: &Tensor,
    target: &Tensor,
    direction: &Tensor,
) -> Result<(Tensor, Tensor)> {
    // As short as rounding lets it be, with `z` some units long: units of the generator that change their sides on the way are taken
    // for a bend.
    let length = if z.dtype() == DType::F64 { 1e-7 } else { 1e-3 };
    let norm = direction.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    let step = (direction.broadcast_div(&(&norm + f64::from(f32::MIN_POSITIVE))?)? * length)?;
    let both = Tensor::cat(&[(z + &step)?, (z - &step)?], 0)?;
    let (image, gradient) = slope(generator, pass, &both, &Tensor::cat(&[target, target], 0)?)?;
    let (n, factor) = (z.dim(0)?, (norm / (2. * length))?);
    let change = |of: &Tensor| (of.narrow(0, 0, n)? - of.narrow(0, n, n)?)?.broadcast_mul(&factor);
    Ok((change(&gradient)?, change(&image)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Device;

    const IDS: [u64; 4] = [4, 9, 11, 12];

    fn generator() -> Generator {
        let weights = Weights::from_safetensors(include_bytes!("../weights/default.safetensors")).unwrap();
        Generator::new(&weights.with_dtype(DType::F64).pp("generator")).unwrap()
    }

    fn projection(steps: usize, restarts: usize) -> Projection {
        Projection {
            name: "test",
            steps,
            restarts,
            learning_rate: 10.,
            momentum: 0.7,
            decay: 0.1,
            constant_start: false,
        }
    }

    /// Row by row `<a, b>`.
    fn dots(a: &Tensor, b: &Tensor) -> Vec<f64> {
        (a * b)
            .unwrap()
            .flatten_from(1)
            .unwrap()
            .sum(1)
            .unwrap()
            .to_vec1()
            .unwrap()
    }

    /// Images of noise, a cotangent, the purified images and the gradient.
    fn way_back(projection: &Projection, generator: &Generator, pass: &Pass) -> [Tensor; 4] {
        let x = pass.rand_uniform(&[4, 1, 28, 28], 0.2, 0.8, 1, &Device::Cpu).unwrap();
        let variable = Var::from_tensor(&x.to_dtype(DType::F64).unwrap()).unwrap();
        let cotangent = pass.randn_like(variable.as_tensor(), 2).unwrap();
        let y = projection.run(generator, pass, variable.as_tensor()).unwrap();
        let gradient = vjp(variable.as_tensor(), &y, &cotangent).unwrap().0.unwrap();
        [variable.as_detached_tensor(), cotangent, y, gradient]
    }

    #[test]
    fn the_way_back_is_the_difference() {
        let (generator, pass) = (generator(), Pass::eval().with_seed(3).with_ids(IDS));
        for projection in [projection(2, 1), projection(5, 2)] {
            let [x, cotangent, y, gradient] = way_back(&projection, &generator, &pass);
            let run = |x: &Tensor| projection.run(&generator, &pass, x).unwrap();
            let apart = (run(&x) - y).unwrap().abs().unwrap().max_all().unwrap();
            assert_eq!(
                apart.to_scalar::<f64>().unwrap(),
                0.,
                "a variable is purified as a constant is"
            );
            let direction = pass.randn_like(&x, 3).unwrap();
            // So short that no unit changes its side.
            let step = 1e-8;
            let up = dots(&run(&(&x + (&direction * step).unwrap()).unwrap()), &cotangent);
            let down = dots(&run(&(&x - (&direction * step).unwrap()).unwrap()), &cotangent);
            for (i, expected) in dots(&gradient, &direction).iter().enumerate() {
                let difference = (up[i] - down[i]) / (2. * step);
                let error = (difference - expected).abs() / difference.abs().max(1.);
                assert!(error < 1e-4, "sample {i}: {difference} {expected}");
            }
        }
    }

    #[test]
    fn numbers_that_grow_are_divided() {
        let x = Tensor::new(&[[1f32, -3e7], [2., 1e6], [1e30, 0.]], &Device::Cpu).unwrap();
        let factors = excess(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(factors, [3e7, 1., 1e30]);
        let x = Tensor::new(&[[1e-20f32, 0.], [0., 0.]], &Device::Cpu).unwrap();
        let factors = excess(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(factors, [1e-20, 1.]);
    }

    /// Why attacks do not go by it.
    #[test]
    fn the_derivative_of_fifty_steps_has_exploded() {
        let (generator, pass) = (generator(), Pass::eval().with_seed(3).with_ids(IDS));
        let lengths = |steps| {
            let [.., gradient] = way_back(&projection(steps, 1), &generator, &pass);
            dots(&gradient, &gradient)
                .iter()
                .map(|square| square.sqrt())
                .collect::<Vec<_>>()
        };
        let (few, many) = (lengths(2), lengths(50));
        println!("gradients are {few:.0?} long after 2 steps, {many:.0?} after 50");
        assert!(few.iter().all(|length| *length < 100.), "{few:?}");
        assert!(many.iter().all(|length| *length > 1e6), "{many:?}");
    }
}
