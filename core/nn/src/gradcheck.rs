//! Gradients against central differences.

use candle_core::{DType, Device, Result, Tensor, Var, bail};
use rand::Rng;

use crate::{key_rng, vjp};

/// How [`gradcheck()`] probes.
#[derive(Clone, Copy, Debug)]
pub struct GradcheckOptions {
    /// Step of the central difference.
    pub step: f64,
    /// Seed of cotangent and directions.
    pub seed: u64,
    /// Number of random directions; none: along every element of `x` by itself.
    pub directions: Option<usize>,
}

impl Default for GradcheckOptions {
    fn default() -> GradcheckOptions {
        GradcheckOptions {
            step: 1e-5,
            seed: 0,
            directions: None,
        }
    }
}

/// What [`gradcheck()`] found.
#[derive(Clone, Copy, Debug)]
pub struct GradcheckReport {
    /// Largest difference between the two derivatives, relative to the largest derivative of all.
    pub max_relative_error: f64,
    /// The element or direction where it is.
    pub worst: usize,
    /// The operator's own derivative there.
    pub analytic: f64,
    /// The central difference there.
    pub numeric: f64,
}

/// Compares the gradient of `<f(x), c>` with central differences, for a random cotangent `c`.
///
/// `x` must be `f64`. Keep it away from kinks by more than the step: there no derivative exists.
///
/// # Errors
/// When `x` is not `f64`, `f` fails, or no gradient reaches `x`.
pub fn gradcheck(
    f: impl Fn(&Tensor) -> Result<Tensor>,
    x: &Tensor,
    options: &GradcheckOptions,
) -> Result<GradcheckReport> {
    if x.dtype() != DType::F64 {
        bail!("gradcheck needs f64, not {:?}", x.dtype());
    }
    let var = Var::from_tensor(&x.detach().copy()?)?;
    let y = f(var.as_tensor())?;
    let cotangent = random(options.seed, 0, y.dims(), x.device())?;
    let (Some(gradient), _) = vjp(var.as_tensor(), &y, &cotangent)? else {
        bail!("no gradient reached the input");
    };
    let gradient = gradient.flatten_all()?.to_vec1::<f64>()?;
    let slope = |direction: &Tensor| -> Result<f64> {
        let step = (direction * options.step)?;
        // Subtracted before the sum, where the two are almost equal.
        let change = (f(&(x + &step)?)? - f(&(x - &step)?)?)?;
        let change = (change * &cotangent)?.sum_all()?.to_scalar::<f64>()?;
        Ok(change / (2.0 * options.step))
    };
    let mut pairs = Vec::new();
    for i in 0..options.directions.unwrap_or(gradient.len()) {
        let direction = match options.directions {
            None => unit(i, x)?,
            Some(_) => random(options.seed, 1 + i as u64, x.dims(), x.device())?,
        };
        let along = direction.flatten_all()?.to_vec1::<f64>()?;
        let analytic = along.iter().zip(&gradient).map(|(d, g)| d * g).sum();
        pairs.push((analytic, slope(&direction)?));
    }
    Ok(report(&pairs))
}

/// The worst of `(analytic, numeric)`.
fn report(pairs: &[(f64, f64)]) -> GradcheckReport {
    let scale = pairs.iter().map(|(a, n)| a.abs().max(n.abs()));
    let scale = scale.fold(1e-12, f64::max);
    let mut worst = GradcheckReport {
        max_relative_error: 0.0,
        worst: 0,
        analytic: 0.0,
        numeric: 0.0,
    };
    for (i, (analytic, numeric)) in pairs.iter().copied().enumerate() {
        let error = (analytic - numeric).abs() / scale;
        // A NaN is the worst there is.
        if error > worst.max_relative_error || error.is_nan() {
            worst = GradcheckReport {
                max_relative_error: if error.is_nan() { f64::INFINITY } else { error },
                worst: i,
                analytic,
                numeric,
            };
        }
    }
    worst
}

/// Uniform numbers in `+-1`.
fn random(seed: u64, stream: u64, shape: &[usize], device: &Device) -> Result<Tensor> {
    let mut rng = key_rng(&[seed, stream]);
    let values = std::iter::repeat_with(|| 2.0 * rng.random::<f64>() - 1.0);
    let values: Vec<f64> = values.take(shape.iter().product()).collect();
    Tensor::from_vec(values, shape, device)
}

/// 1 at element `i`, 0 elsewhere, in the shape of `x`.
fn unit(i: usize, x: &Tensor) -> Result<Tensor> {
    let mut values = vec![0.0; x.elem_count()];
    values[i] = 1.0;
    Tensor::from_vec(values, x.shape(), x.device())
}
