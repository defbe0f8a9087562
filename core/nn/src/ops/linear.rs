//! The fully connected layer.

use candle_core::{Result, Shape, Tensor, bail};

use super::adapter::{Bilinear, Parametric};
use crate::kernels::conv::Correlation;
use crate::kernels::geometry::Geometry;
use crate::kernels::norm::{self, Channels};
use crate::kernels::{Real, batch, conv_weights};

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
    Linear(n, Correlation::new(Geometry::linear([inputs, 1, 1], outputs))).apply(x, weight, bias)
}

/// `x` `[N, ...]` as `[N, the rest]`.
///
/// # Errors
/// If `x` has no second axis.
pub fn flatten(x: &Tensor) -> Result<Tensor> {
    x.flatten_from(1)
}

/// Batch, shape.
struct Linear(usize, Correlation);

impl Parametric for Linear {
    const NAME: &'static str = "linear";

    fn shape(&self, _: &Shape) -> Shape {
        Shape::from((self.0, self.1.geometry.c_out))
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T], b: Option<&[T]>) -> Vec<T> {
        batch::correlate(&self.1, self.0, x, w, b)
    }

    fn input_gradient<T: Real>(&self, _: &[T], w: &[T], dy: &[T]) -> Vec<T> {
        batch::correlate(&self.1.transpose(), self.0, dy, w, None)
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        conv_weights::weight_gradient(&self.1.geometry, self.0, x, dy)
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        let c = self.1.geometry.c_out;
        norm::sums(&Channels { c, area: 1 }, dy)
    }

    fn compose(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let y = Product.compose(x, w)?;
        match b {
            None => Ok(y),
            Some(b) => y.broadcast_add(b),
        }
    }
}

/// `x w^T`.
struct Product;

impl Bilinear for Product {
    const NAME: &'static str = "linear";

    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        x.matmul(&w.t()?)
    }

    fn input_gradient(&self, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
        dy.matmul(w)
    }

    fn weight_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        dy.t()?.matmul(x)
    }
}
