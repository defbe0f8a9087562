//! The nearest boundary of a model that is taken to be linear.

use super::{choose, difference};
use crate::{Ball, Norm, Oracle};
use candle_core::{Result, Tensor, bail};

/// For every sample the nearest of several boundaries between its label and another class, as the plane `f + w (x' - x) = 0` in `x'`.
pub struct Boundary {
    /// `f = z_k - z_y` at `x`, `[N]`: positive beyond the boundary.
    pub f: Vec<f32>,
    /// Gradient `w` of `f` `[N,C,H,W]`.
    pub w: Tensor,
    /// Logits `[N,K]` at `x`.
    pub logits: Tensor,
}

impl Boundary {
    /// The boundary between `labels` and any of `others`, equally many classes a sample, that is nearest to `x` `[N,C,H,W]` in `norm`
    /// where logits are linear: the one with the smallest `|f| / |w|`, by the dual norm. Of equals the first.
    ///
    /// # Errors
    /// Those of the oracle's gradients, and where a sample has no other class.
    pub fn nearest(oracle: &Oracle, norm: Norm, x: &Tensor, labels: &[u32], others: &[&[u32]]) -> Result<Self> {
        let kinds = others.iter().map(|classes| classes.len()).min().unwrap_or(0);
        let class = |kind: usize| -> Vec<u32> { others.iter().map(|classes| classes[kind]).collect() };
        let leads = |logits: &Tensor| {
            (0..kinds)
                .map(|kind| difference(logits, &class(kind), labels))
                .collect()
        };
        let mut nearest: Option<(Self, Vec<f32>)> = None;
        for gradient in oracle.gradients(x, leads)? {
            let f: Vec<f32> = gradient.loss.to_vec1()?;
            let slopes: Vec<f32> = norm.dual_length(&gradient.x)?.to_vec1()?;
            let distances: Vec<f32> = f
                .iter()
                .zip(&slopes)
                .map(|(f, slope)| f.abs() / (slope + GUARD))
                .collect();
            let one = Self {
                f,
                w: gradient.x,
                logits: gradient.logits,
            };
            nearest = Some(match nearest {
                None => (one, distances),
                Some((best, shortest)) => nearer(one, &distances, best, &shortest)?,
            });
        }
        match nearest {
            Some((boundary, _)) => Ok(boundary),
            None => bail!("a boundary needs two classes at least, these samples have no other class"),
        }
    }
}

/// Keeps distances finite where the gradient is zero.
const GUARD: f32 = 1e-12;

/// Of two boundaries a sample the nearer one, with its distance.
fn nearer(one: Boundary, distances: &[f32], best: Boundary, shortest: &[f32]) -> Result<(Boundary, Vec<f32>)> {
    let closer: Vec<bool> = distances.iter().zip(shortest).map(|(a, b)| a < b).collect();
    let pick = |a: &[f32], b: &[f32]| -> Vec<f32> {
        let pairs = closer.iter().zip(a.iter().zip(b));
        pairs.map(|(closer, (a, b))| if *closer { *a } else { *b }).collect()
    };
    let boundary = Boundary {
        f: pick(&one.f, &best.f),
        w: choose(&closer, &one.w, &best.w)?,
        logits: one.logits,
    };
    Ok((boundary, pick(distances, shortest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Testbed;
    use candle_core::Device;

    #[test]
    fn the_nearest_of_several_planes_is_found_in_either_norm() {
        // From class 0 class 1 is .3 away along both pixels, class 2 is .35 away along one.
        let weights = [vec![0., 0.], vec![1., 1.], vec![1., 0.]];
        let target = Testbed::linear([1, 1, 2], &weights, &[0., -1.3, -0.7]).unwrap();
        let x = Tensor::new(&[0.35f32, 0.35], &Device::Cpu)
            .unwrap()
            .reshape((1, 1, 1, 2))
            .unwrap();
        let nearest = |norm| {
            let find = |oracle: &Oracle| Boundary::nearest(oracle, norm, &x, &[0], &[&[1, 2]]);
            let boundary = target.with_oracle(&[5], find).unwrap();
            (
                boundary.f[0],
                boundary.w.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            )
        };
        // Linf: .6 / 2 and .35 / 1; L2: .6 / sqrt 2 and .35 / 1.
        assert!((nearest(Norm::Linf).0 + 0.6).abs() < 1e-6 && nearest(Norm::Linf).1 == [1., 1.]);
        assert!((nearest(Norm::L2).0 + 0.35).abs() < 1e-6 && nearest(Norm::L2).1 == [1., 0.]);
        let none = |oracle: &Oracle| Boundary::nearest(oracle, Norm::L2, &x, &[0], &[&[]]).map(|_| ());
        assert!(target.with_oracle(&[5], none).is_err());
    }
}
