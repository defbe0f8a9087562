//! Batch normalisation of `[N, C, H, W]`, by fixed or by batch statistics.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use super::adapter::{Parametric, with_real, with_slices};
use crate::kernels::Real;
use crate::kernels::norm::{self, Channels};

/// `x scale[c] + shift[c]` for `x` `[N, C, H, W]`, `scale` and `shift` `[C]`.
pub(crate) fn channel_affine(x: &Tensor, scale: &Tensor, shift: &Tensor) -> Result<Tensor> {
    ChannelAffine(channels(x)?).apply(x, scale, Some(shift))
}

/// `(x - mean) / sqrt(var + epsilon) weight + bias` with the batch's own mean and biased variance, which
/// are returned too, as constants `[C]`.
pub(crate) fn batch_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f64) -> Result<(Tensor, Tensor, Tensor)> {
    let (mean, var) = moments(&x.detach())?;
    let to_vec = |t: &Tensor| t.to_dtype(DType::F64)?.to_vec1::<f64>();
    let inverse = to_vec(&var)?.into_iter().map(|v| 1.0 / (v + epsilon).sqrt());
    let op = BatchNorm {
        channels: channels(x)?,
        mean: to_vec(&mean)?,
        inverse_deviation: inverse.collect(),
        epsilon,
    };
    Ok((op.apply(x, weight, Some(bias))?, mean, var))
}

fn channels(x: &Tensor) -> Result<Channels> {
    let (_, c, h, w) = x.dims4()?;
    Ok(Channels { c, area: h * w })
}

/// Mean and biased variance of each channel, `[C]` each.
fn moments(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let channels = channels(x)?;
    if !x.device().is_cpu() {
        let mean = x.mean_keepdim((0, 2, 3))?;
        let var = x.broadcast_sub(&mean)?.sqr()?.mean((0, 2, 3))?;
        return Ok((mean.flatten_all()?, var));
    }
    let x = x.contiguous()?;
    with_real!(x.dtype(), T => {
        let (mean, var) = with_slices([&x], |[x]| norm::moments::<T>(&channels, x))?;
        let tensor = |v| Tensor::from_vec(v, channels.c, &Device::Cpu);
        Ok((tensor(mean)?, tensor(var)?))
    })
}

struct ChannelAffine(Channels);

impl Parametric for ChannelAffine {
    const NAME: &'static str = "channel_affine";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T], scale: &[T], shift: Option<&[T]>) -> Vec<T> {
        norm::affine(&self.0, x, scale, shift.unwrap_or(&vec![T::ZERO; self.0.c]))
    }

    fn input_gradient<T: Real>(&self, _: &[T], scale: &[T], dy: &[T]) -> Vec<T> {
        norm::affine(&self.0, dy, scale, &vec![T::ZERO; self.0.c])
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        norm::dots(&self.0, dy, x, &vec![T::ZERO; self.0.c])
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        norm::sums(&self.0, dy)
    }

    fn compose(&self, x: &Tensor, scale: &Tensor, shift: Option<&Tensor>) -> Result<Tensor> {
        let shape = (1, self.0.c, 1, 1);
        let y = x.broadcast_mul(&scale.reshape(shape)?)?;
        match shift {
            None => Ok(y),
            Some(shift) => y.broadcast_add(&shift.reshape(shape)?),
        }
    }
}

struct BatchNorm {
    channels: Channels,
    mean: Vec<f64>,
    inverse_deviation: Vec<f64>,
    epsilon: f64,
}

impl BatchNorm {
    fn mean<T: Real>(&self) -> Vec<T> {
        self.mean.iter().map(|v| T::from_f64(*v)).collect()
    }

    fn inverse<T: Real>(&self) -> Vec<T> {
        let inverse = self.inverse_deviation.iter();
        inverse.map(|v| T::from_f64(*v)).collect()
    }
}

impl Parametric for BatchNorm {
    const NAME: &'static str = "batch_norm";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
        let (mean, inverse) = (self.mean::<T>(), self.inverse::<T>());
        let scale: Vec<T> = inverse.iter().zip(weight).map(|(i, w)| *i * *w).collect();
        let offset = |c: usize| bias.map_or(T::ZERO, |b| b[c]) - mean[c] * scale[c];
        let shift: Vec<T> = (0..scale.len()).map(offset).collect();
        norm::affine(&self.channels, x, &scale, &shift)
    }

    /// With `x^ = (x - mean) / s` over the `m` values of a channel:
    /// `dx = w / s (dy - sum(dy) / m - x^ sum(dy x^) / m)`.
    fn input_gradient<T: Real>(&self, x: &[T], weight: &[T], dy: &[T]) -> Vec<T> {
        let (mean, inverse) = (self.mean::<T>(), self.inverse::<T>());
        let m = T::from_f64((x.len() / self.channels.c.max(1)) as f64);
        let sums = norm::sums(&self.channels, dy);
        let dots = norm::dots(&self.channels, dy, x, &mean);
        let (mut a, mut b, mut d) = (Vec::new(), Vec::new(), Vec::new());
        for (c, i) in inverse.iter().enumerate() {
            let scale = weight[c] * *i;
            a.push(scale);
            b.push(T::ZERO - scale * *i * *i * dots[c] / m);
            d.push(T::ZERO - scale * sums[c] / m);
        }
        norm::combine(&self.channels, x, dy, &mean, [&a, &b, &d])
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let dots = norm::dots(&self.channels, dy, x, &self.mean::<T>());
        let inverse = self.inverse::<T>();
        dots.iter().zip(inverse).map(|(d, i)| *d * i).collect()
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        norm::sums(&self.channels, dy)
    }

    fn compose(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let centered = x.broadcast_sub(&x.mean_keepdim((0, 2, 3))?)?;
        let var = centered.sqr()?.mean_keepdim((0, 2, 3))?;
        let x = centered.broadcast_div(&(var + self.epsilon)?.sqrt()?)?;
        ChannelAffine(self.channels).compose(&x, weight, bias)
    }
}
