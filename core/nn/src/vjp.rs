//! Vector-Jacobian products.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::ops::adapter::Computed;

/// Runs the tape of `y` backward from `cotangent` (the shape of `y`).
///
/// Returns the gradient at `x`, a variable tensor that `y` was computed from, in its shape (none if `y`
/// does not depend on it), and every other gradient, such as those of parameters. A tape may be run again
/// with another cotangent.
///
/// # Errors
/// When the shapes of `y` and `cotangent` differ, or an operator has no gradient.
pub fn vjp(x: &Tensor, y: &Tensor, cotangent: &Tensor) -> Result<(Option<Tensor>, GradStore)> {
    if y.dims() != cotangent.dims() {
        bail!(
            "the cotangent has shape {:?}, the output {:?}",
            cotangent.dims(),
            y.dims()
        );
    }
    let cotangent = cotangent.detach().to_dtype(y.dtype())?;
    let scalar = y.apply_op1(Seed(cotangent))?;
    let mut grads = scalar.backward()?;
    Ok((grads.remove(x), grads))
}

/// A scalar whose gradient is the cotangent: starts a backward pass without computing `<y, cotangent>`.
struct Seed(Tensor);

impl CustomOp1 for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let zero = match storage {
            CpuStorage::F32(_) => CpuStorage::F32(vec![0.0]),
            CpuStorage::F64(_) => CpuStorage::F64(vec![0.0]),
            _ => bail!("a tape runs backward from f32 or f64 outputs only"),
        };
        Ok((zero, Shape::from(())))
    }

    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let shape = Shape::from(());
        let zero = storage.device().zeros_impl(&shape, storage.dtype())?;
        Ok((zero, shape))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.clone()))
    }
}

/// `y`, of any shape, that was computed from `x` out of the graph's sight, as a function of `x` whose gradient `pullback` gives: from
/// that at `y` to that at `x`, each in its shape. It is asked only where `x` is or depends on a variable.
///
/// # Errors
/// Where `x` and `y` are on different devices.
pub fn custom_vjp(
    x: &Tensor,
    y: &Tensor,
    pullback: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    match x.track_op() {
        true => x.apply_op1(CustomVjp(Computed::new(y)?, pullback)),
        false => Ok(y.detach()),
    }
}

struct CustomVjp<F>(Computed, F);

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for CustomVjp<F> {
    fn name(&self) -> &'static str {
        "custom_vjp"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.on_cpu()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.on_cuda()
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = self.1(&dy.detach())?;
        if dx.dims() != x.dims() {
            bail!("the gradient at an input {:?} was given as {:?}", x.dims(), dx.dims())
        }
        Ok(Some(dx))
    }
}
