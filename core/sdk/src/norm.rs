//! Geometry of the norms: what an attack needs of a ball, so that none of them matches on the norm.

use advae_abi::info::NormKind;
use advae_nn::Pass;
use candle_core::{DType, Result, Tensor};
use rand::Rng;

/// Geometry of the ball of a norm. All tensors are `[N,C,H,W]`; everything is per sample.
pub trait Ball {
    /// Norm of every sample's `delta`, `[N]`.
    ///
    /// # Errors
    /// Where `delta` has no samples or is not `f32`.
    fn length(&self, delta: &Tensor) -> Result<Tensor>;

    /// The steepest direction of unit length: the sign for Linf, `g / |g|` for L2 (a zero gradient stays zero).
    ///
    /// # Errors
    /// Where `gradient` has no samples or is not `f32`.
    fn direction(&self, gradient: &Tensor) -> Result<Tensor>;

    /// Maps `x_adv` into the ball of radius `epsilon` around `x`.
    ///
    /// # Errors
    /// Where the shapes differ.
    fn project(&self, x_adv: &Tensor, x: &Tensor, epsilon: f64) -> Result<Tensor>;

    /// The same with a radius for each sample, `radii` `[N]`.
    ///
    /// # Errors
    /// Where the shapes differ.
    fn project_each(&self, x_adv: &Tensor, x: &Tensor, radii: &Tensor) -> Result<Tensor>;

    /// Dual norm of every sample's `gradient`, `[N]`: by how much the loss rises along a [`direction`](Self::direction), to first order.
    ///
    /// # Errors
    /// Where `gradient` has no samples or is not `f32`.
    fn dual_length(&self, gradient: &Tensor) -> Result<Tensor>;

    /// A random point at distance `epsilon` from `x`, keyed by sample: uniform noise scaled by its largest entry for Linf, a uniform
    /// direction for L2.
    ///
    /// # Errors
    /// Where `x` has no samples or is not `f32`.
    fn on_sphere(&self, pass: &Pass, x: &Tensor, epsilon: f64) -> Result<Tensor>;

    /// A point drawn uniformly from the ball around `x`, keyed by sample.
    ///
    /// # Errors
    /// Where `x` has no samples or is not `f32`.
    fn random_start(&self, pass: &Pass, x: &Tensor, epsilon: f64) -> Result<Tensor>;
}

/// Stream of the random starts among a sample's generators.
const START: u64 = 0x5747;

impl Ball for NormKind {
    fn length(&self, delta: &Tensor) -> Result<Tensor> {
        let flat = delta.flatten_from(1)?;
        match self {
            Self::Linf => flat.abs()?.max(1),
            Self::L2 => flat.sqr()?.sum(1)?.sqrt(),
        }
    }

    fn direction(&self, gradient: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linf => gradient.sign(),
            Self::L2 => {
                // Scaled by the largest entry first: tiny gradients would underflow when squared.
                let largest = guarded(&per_sample(&Self::Linf.length(gradient)?, gradient)?)?;
                let scaled = gradient.broadcast_div(&largest)?;
                let length = guarded(&per_sample(&self.length(&scaled)?, gradient)?)?;
                scaled.broadcast_div(&length)
            }
        }
    }

    fn project(&self, x_adv: &Tensor, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        let delta = (x_adv - x)?;
        let delta = match self {
            Self::Linf => delta.clamp(-epsilon, epsilon)?,
            Self::L2 => {
                let length = guarded(&per_sample(&self.length(&delta)?, x)?)?;
                let factor = (length.recip()? * epsilon)?.minimum(&length.ones_like()?)?;
                delta.broadcast_mul(&factor)?
            }
        };
        x + delta
    }

    fn project_each(&self, x_adv: &Tensor, x: &Tensor, radii: &Tensor) -> Result<Tensor> {
        let (delta, radii) = ((x_adv - x)?, per_sample(radii, x)?);
        let delta = match self {
            Self::Linf => {
                let radii = radii.broadcast_as(x.shape())?;
                delta.minimum(&radii)?.maximum(&radii.neg()?)?
            }
            Self::L2 => {
                let length = guarded(&per_sample(&self.length(&delta)?, x)?)?;
                let factor = (radii / &length)?.minimum(&length.ones_like()?)?;
                delta.broadcast_mul(&factor)?
            }
        };
        x + delta
    }

    fn dual_length(&self, gradient: &Tensor) -> Result<Tensor> {
        match self {
            Self::Linf => gradient.flatten_from(1)?.abs()?.sum(1),
            Self::L2 => self.length(gradient),
        }
    }

    fn on_sphere(&self, pass: &Pass, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        let noise = match self {
            Self::Linf => {
                let noise = pass.rand_uniform(x.dims(), -1., 1., START, x.device())?;
                let largest = guarded(&per_sample(&self.length(&noise)?, x)?)?;
                noise.broadcast_div(&largest)?
            }
            Self::L2 => self.direction(&pass.randn_like(x, START)?)?,
        };
        x + (noise * epsilon)?
    }

    fn random_start(&self, pass: &Pass, x: &Tensor, epsilon: f64) -> Result<Tensor> {
        let noise = match self {
            Self::Linf => pass.rand_uniform(x.dims(), -1., 1., START, x.device())?,
            Self::L2 => {
                let direction = self.direction(&pass.randn_like(x, START)?)?;
                let dimension = x.elem_count() as f64 / x.dim(0)? as f64;
                let radius = |i| pass.rng(i, START + 1).random::<f64>().powf(dimension.recip()) as f32;
                let radii: Vec<f32> = (0..x.dim(0)?).map(radius).collect();
                direction.broadcast_mul(&per_sample(&Tensor::new(radii, x.device())?, x)?)?
            }
        };
        x + (noise * epsilon)?
    }
}

/// `[N]` as `[N,1,1,1]`.
fn per_sample(values: &Tensor, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = like.dim(0)?;
    values.reshape(shape)
}

/// Zeros become ones, so that a zero vector divided by its length stays zero.
fn guarded(lengths: &Tensor) -> Result<Tensor> {
    let zero = lengths.eq(0f64)?.to_dtype(DType::F32)?;
    lengths + zero
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn images(n: usize, value: impl Fn(usize) -> f32) -> Tensor {
        Tensor::from_vec((0..n * 12).map(value).collect::<Vec<_>>(), (n, 3, 2, 2), &Device::Cpu).unwrap()
    }

    fn lengths(norm: NormKind, delta: &Tensor) -> Vec<f32> {
        norm.length(delta).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn projections_stay_in_the_ball_and_leave_its_points_alone() {
        let x = images(2, |i| i as f32 / 24.);
        let far = (&x + images(2, |i| if i < 12 { 1. } else { 0.01 })).unwrap();
        for norm in [NormKind::Linf, NormKind::L2] {
            let projected = norm.project(&far, &x, 0.5).unwrap();
            let length = lengths(norm, &(&projected - &x).unwrap());
            assert!((length[0] - 0.5).abs() < 1e-5, "{length:?}");
            assert!(
                (&projected - &far)
                    .unwrap()
                    .get(1)
                    .unwrap()
                    .abs()
                    .unwrap()
                    .max_all()
                    .unwrap()
                    .to_scalar::<f32>()
                    .unwrap()
                    < 1e-6
            );
        }
    }

    #[test]
    fn a_radius_for_each_sample_is_a_ball_for_each() {
        let x = images(3, |i| i as f32 / 36.);
        let far = (&x + images(3, |i| (i as f32 - 17.5) * 0.1)).unwrap();
        let radii = [0.5f32, 0., 0.02];
        for norm in [NormKind::Linf, NormKind::L2] {
            let each = norm
                .project_each(&far, &x, &Tensor::new(&radii, &Device::Cpu).unwrap())
                .unwrap();
            for (i, radius) in radii.into_iter().enumerate() {
                let alone = |x: &Tensor| x.narrow(0, i, 1).unwrap();
                let one = norm.project(&alone(&far), &alone(&x), f64::from(radius)).unwrap();
                let apart = (one - alone(&each)).unwrap().abs().unwrap().max_all().unwrap();
                assert!(apart.to_scalar::<f32>().unwrap() < 1e-6, "{norm} {i}");
            }
        }
    }

    /// The dual norm is what the steepest direction of unit length gains.
    #[test]
    fn dual_lengths_are_the_gain_of_the_direction() {
        let gradient = images(2, |i| (i as f32 - 11.3) * 0.07);
        for norm in [NormKind::Linf, NormKind::L2] {
            let gain = (norm.direction(&gradient).unwrap() * &gradient).unwrap();
            let gain: Vec<f32> = gain.flatten_from(1).unwrap().sum(1).unwrap().to_vec1().unwrap();
            let dual: Vec<f32> = norm.dual_length(&gradient).unwrap().to_vec1().unwrap();
            assert!(
                gain.iter().zip(&dual).all(|(a, b)| (a - b).abs() < 1e-4),
                "{gain:?} {dual:?}"
            );
        }
    }

    #[test]
    fn points_on_the_sphere_lie_on_it_and_follow_the_sample() {
        let x = images(20, |_| 0.5);
        let pass = Pass::eval().with_ids((0..20).collect::<Vec<u64>>());
        for norm in [NormKind::Linf, NormKind::L2] {
            let start = norm.on_sphere(&pass, &x, 0.4).unwrap();
            let length = lengths(norm, &(&start - &x).unwrap());
            assert!(length.iter().all(|l| (l - 0.4).abs() < 1e-6), "{length:?}");
            let one = norm.on_sphere(&Pass::eval().with_ids(vec![7]), &x.narrow(0, 0, 1).unwrap(), 0.4);
            let values = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(values(one.unwrap()), values(start.narrow(0, 7, 1).unwrap()));
        }
    }

    #[test]
    fn directions_have_unit_length_however_small_the_gradient() {
        let gradient = images(3, |i| if i < 24 { (i as f32 - 5.5) * 1e-30 } else { 0. });
        for norm in [NormKind::Linf, NormKind::L2] {
            let length = lengths(norm, &norm.direction(&gradient).unwrap());
            assert!(
                (length[0] - 1.).abs() < 1e-5 && (length[1] - 1.).abs() < 1e-5,
                "{norm} {length:?}"
            );
            assert_eq!(length[2], 0., "a zero gradient gives no direction");
        }
    }

    #[test]
    fn random_starts_fill_the_ball_and_follow_the_sample() {
        let x = images(200, |_| 0.5);
        let pass = Pass::eval().with_ids((0..200).collect::<Vec<u64>>());
        for norm in [NormKind::Linf, NormKind::L2] {
            let start = norm.random_start(&pass, &x, 0.4).unwrap();
            let length = lengths(norm, &(&start - &x).unwrap());
            assert!(length.iter().all(|l| *l <= 0.4 + 1e-6) && length.iter().any(|l| *l > 0.38));
            // In 12 dimensions half of the ball's volume lies beyond the radius .5^(1/12).
            if norm == NormKind::L2 {
                let outer = length.iter().filter(|l| **l > 0.4 * 0.5f32.powf(1. / 12.)).count();
                assert!((70..130).contains(&outer), "{outer}");
            }
            let alone = norm
                .random_start(&Pass::eval().with_ids(vec![7]), &x.narrow(0, 0, 1).unwrap(), 0.4)
                .unwrap();
            let same = start.narrow(0, 7, 1).unwrap();
            assert_eq!(
                alone.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                same.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            );
        }
    }
}
