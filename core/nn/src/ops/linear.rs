//! The fully connected layer.

use candle_core::{Result, Shape, Tensor, bail};

use super::adapter::Parametric;
use crate::kernels::{Real, linear as kernel};

/// `x weight^T + bias` for `x` `[N, in]`, `weight` `[out, in]`, `bias` `[out]`: `[N, out]`.
///
/// # Errors
/// When the shapes do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (n, inputs) = x.dims2()?;
    let (outputs, weight_inputs) = weight.dims2()?;
    let bias_len = bias.map_or(outputs, Tensor::elem_count);
    if weight_inputs != inputs || bias_len != outputs {
        bail!(
            "linear of {:?} with weight {:?} and bias of {bias_len}: these do not fit",
            x.dims(),
            weight.dims()
        );
    }
    Linear([n, inputs, outputs]).apply(x, weight, bias)
}

/// `x` `[N, ...]` as `[N, the rest]`.
pub fn flatten(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(1)
}

/// Batch, inputs, outputs.
struct Linear([usize; 3]);

impl Parametric for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, _: &Shape) -> Shape {
        let [n, _, outputs] = self.0;
        Shape::from((n, outputs))
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T], b: Option<&[T]>) -> Vec<T> {
        kernel::forward(self.0, x, w, b)
    }

    fn input_gradient<T: Real>(&self, _: &[T], w: &[T], dy: &[T]) -> Vec<T> {
        kernel::input_gradient(self.0, w, dy)
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        kernel::weight_gradient(self.0, x, dy)
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        kernel::bias_gradient(self.0[2], dy)
    }

    fn compose(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let y = x.matmul(&w.t()?)?;
        match b {
            None => Ok(y),
            Some(b) => y.broadcast_add(b),
        }
    }
}
