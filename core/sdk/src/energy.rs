//! Gradients of an energy that can be differentiated again, for purifiers that descend it.

use crate::unroll::of_both;
use advae_nn::vjp;
use candle_core::{DType, Result, Tensor, Var, bail};

/// The gradient with respect to `z` `[N,...]` of each sample's `energy(z, x)` `[N]`, in the shape of `z`: a step of gradient descent. Unlike
/// candle's own gradients it can be differentiated again, with respect to `z` and `x` `[N,...]`.
///
/// The backward pass multiplies a cotangent `c` by the energy's second derivatives. They come from central differences of the gradient `g`
/// along `c`, `(g(z + h c) - g(z - h c)) / 2h` with `c` scaled to length 1, sample by sample: two more gradients. In `f64` that is right to some
/// 1e-9 of its size, in `f32` to 1e-4. `h` is 1e-6, in `f32` 1e-3, times the largest entry of `z` if that is above 1; ReLUs that change
/// their side within `h` count as curvature.
///
/// `energy` is called again in the backward pass, as the steps of [`unrolled`](crate::unrolled) are. Variables that it reads by itself get no gradient.
///
/// ```
/// use advae_sdk::candle_core::{Device, Var};
/// use advae_sdk::{energy_gradient, nn::vjp};
/// # fn main() -> advae_sdk::Result<()> {
/// // d/dz x z^3 = 3 x z^2 = 24, of which d/dz is 6 x z = 24, and d/dx 3 z^2 = 12.
/// let (z, x) = (Var::new(&[2f64], &Device::Cpu)?, Var::new(&[2f64], &Device::Cpu)?);
/// let g = energy_gradient(z.as_tensor(), x.as_tensor(), |z, x| x * z.powf(3.)?)?;
/// let (at_z, gradients) = vjp(z.as_tensor(), &g, &g.ones_like()?)?;
/// let found = [&g, &at_z.unwrap(), gradients.get(x.as_tensor()).unwrap()].map(|t| t.to_vec1::<f64>().unwrap()[0]);
/// assert!(found.iter().zip([24., 24., 12.]).all(|(found, expected)| (found - expected).abs() < 1e-6));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of `energy`; if it gives anything but one number per sample; where a gradient is wanted, if `z` and `x` are of different types
/// or devices.
pub fn energy_gradient(
    z: &Tensor,
    x: &Tensor,
    energy: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (z_only, x_only) = (z.detach(), x.detach());
    let [_, gradient] = gradients(&energy, &x_only, &z_only)?;
    if !z.track_op() && !x.track_op() {
        return Ok(gradient);
    }
    of_both(x, z, &gradient, move |cotangent| {
        let (direction, length) = unit(cotangent)?;
        let h = if z_only.dtype() == DType::F64 { 1e-6 } else { 1e-3 };
        let h = (per_sample(&z_only.abs()?.contiguous()?)?
            .max_keepdim(1)?
            .maximum(1f64)?
            * h)?;
        let step = direction.broadcast_mul(&beside(&h, &z_only)?)?;
        let factor = (length / (h * 2.)?)?;
        let x = Var::from_tensor(&x_only)?;
        let [ahead, behind] = [&z_only + &step, &z_only - &step].map(|z| gradients(&energy, x.as_tensor(), &z?));
        let change = |a: &Tensor, b: &Tensor| (a - b)?.broadcast_mul(&beside(&factor, a)?);
        let ([ahead_x, ahead_z], [behind_x, behind_z]) = (ahead?, behind?);
        Ok([change(&ahead_x, &behind_x)?, change(&ahead_z, &behind_z)?])
    })
}

/// The gradients of the summed energies with respect to `x`, 0 where it is a constant, and `z`.
fn gradients(energy: &impl Fn(&Tensor, &Tensor) -> Result<Tensor>, x: &Tensor, z: &Tensor) -> Result<[Tensor; 2]> {
    let variable = Var::from_tensor(z)?;
    let energies = energy(variable.as_tensor(), x)?;
    if energies.dims() != [z.dim(0)?] {
        bail!(
            "the energy has shape {:?}, expected one value per sample [{}]",
            energies.dims(),
            z.dim(0)?
        )
    }
    let (at_z, gradients) = vjp(variable.as_tensor(), &energies, &energies.ones_like()?)?;
    let at_x = gradients.get(x).cloned();
    Ok([
        at_x.map_or_else(|| x.zeros_like(), Ok)?,
        at_z.map_or_else(|| z.zeros_like(), Ok)?,
    ])
}

/// Every sample's vector of length 1, 0 where it is 0, and its length `[N,1]`. However long it is: its squares might overflow.
fn unit(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let flat = per_sample(x)?;
    let positive = |lengths: Tensor| &lengths + lengths.eq(0f64)?.to_dtype(lengths.dtype())?;
    let largest = positive(flat.abs()?.max_keepdim(1)?)?;
    let flat = flat.broadcast_div(&largest)?;
    let length = positive(flat.sqr()?.sum_keepdim(1)?.sqrt()?)?;
    Ok((flat.broadcast_div(&length)?.reshape(x.shape())?, (length * largest)?))
}

/// `[N,...]` as `[N,D]`.
fn per_sample(x: &Tensor) -> Result<Tensor> {
    x.reshape((x.dim(0)?, ()))
}

/// `[N,1]` as `[N,1,...]` beside `like` `[N,...]`.
fn beside(values: &Tensor, like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = like.dim(0)?;
    values.reshape(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unrolled;
    use advae_nn::{GradcheckOptions, Pass, gradcheck};
    use candle_core::Device;

    fn random(shape: &[usize], stream: u64) -> Tensor {
        let zeros = Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap();
        Pass::eval().randn_like(&zeros, stream).unwrap()
    }

    /// Each sample's `1/4 |tanh(z A) - x|^4`.
    fn quartic(a: &Tensor) -> impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Clone + Send + Sync + 'static {
        let a = a.clone();
        move |z, x| (z.matmul(&a)?.tanh()? - x)?.sqr()?.sum(1)?.sqr()? * 0.25
    }

    #[test]
    fn the_gradient_of_an_energy_can_be_differentiated() {
        let (a, z, x) = (random(&[4, 3], 1), random(&[5, 4], 2), random(&[5, 3], 3));
        let options = GradcheckOptions::default();
        let at_z = gradcheck(|z| energy_gradient(z, &x, quartic(&a)), &z, &options).unwrap();
        let at_x = gradcheck(|x| energy_gradient(&z, x, quartic(&a)), &x, &options).unwrap();
        let large = gradcheck(
            |z| energy_gradient(&(z * 1e4)?, &x, |z, _| z.sqr()?.sum(1)?.sqrt()),
            &z,
            &options,
        )
        .unwrap();
        for report in [at_z, at_x, large] {
            assert!(report.max_relative_error < 1e-7, "{report:?}");
        }
    }

    #[test]
    fn a_descent_of_many_steps_agrees_with_differences() {
        let (a, x) = (random(&[4, 3], 1), (random(&[5, 3], 3) * 0.3).unwrap());
        let descent = |x: &Tensor| {
            let (start, energy) = (Tensor::ones((5, 4), DType::F64, &Device::Cpu)?, quartic(&a));
            // Momentum beside z: a state of two tensors.
            let start = Tensor::cat(&[&start, &start.zeros_like()?], 1)?;
            let end = unrolled(x, &start, 20, move |_, state, x| {
                let (z, velocity) = (state.narrow(1, 0, 4)?, state.narrow(1, 4, 4)?);
                let velocity = ((velocity * 0.7)? + energy_gradient(&z, x, energy.clone())?)?;
                Tensor::cat(&[&(z - (&velocity * 0.1)?)?, &velocity], 1)
            })?;
            end.narrow(1, 0, 4)?.contiguous()
        };
        let report = gradcheck(descent, &x, &GradcheckOptions::default()).unwrap();
        assert!(report.max_relative_error < 1e-6, "{report:?}");
    }

    #[test]
    fn second_derivatives_are_a_samples_own_whatever_their_size() {
        // Energies s_i |z|^2 / 2 of samples, from cotangents of any size: s_i c.
        let scale = Tensor::new(&[[1f32], [3.], [0.]], &Device::Cpu).unwrap();
        let z = Var::from_tensor(&Tensor::new(&[[1f32, -2.], [0.5, 0.25], [7., 8.]], &Device::Cpu).unwrap()).unwrap();
        let energy = |z: &Tensor, scale: &Tensor| (z.sqr()?.sum(1)? * scale.flatten_all()?)? * 0.5;
        let gradient = energy_gradient(z.as_tensor(), &scale, energy).unwrap();
        assert_eq!(gradient.to_vec2::<f32>().unwrap(), [[1., -2.], [1.5, 0.75], [0., 0.]]);
        for size in [0f32, 1., 1e-30, 1e30] {
            let cotangent = Tensor::new(&[[size, 0.], [-size, size], [size, 1.]], &Device::Cpu).unwrap();
            let found = vjp(z.as_tensor(), &gradient, &cotangent)
                .unwrap()
                .0
                .unwrap()
                .to_vec2::<f32>()
                .unwrap();
            let expected = [[size, 0.], [-3. * size, 3. * size], [0., 0.]];
            for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((found - expected).abs() <= 2e-3 * size, "{found} {expected}");
            }
        }
        let error = energy_gradient(z.as_tensor(), &scale, |z, _| z.sqr())
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("the energy has shape [3, 2], expected one value per sample [3]"),
            "{error}"
        );
        let flat = energy_gradient(z.as_tensor(), &scale, |_, scale| scale.flatten_all()).unwrap();
        assert_eq!(flat.to_vec2::<f32>().unwrap(), [[0.; 2]; 3]);
    }
}
