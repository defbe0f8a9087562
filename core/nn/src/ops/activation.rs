//! Element-wise functions: [`relu`], [`leaky_relu`], [`sigmoid`], [`clamp`].

use candle_core::{Result, Shape, Tensor};

use super::adapter::Unary;
use crate::kernels::{Real, elementwise};

/// `max(x, 0)`, of any shape. The derivative at 0 is 0; NaN stays NaN.
///
/// # Errors
/// If candle has no operators for the type of `x`, or its device fails.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    Relu.apply(x)
}

/// `x` where it is positive, else `slope x`, of any shape. The derivative at 0 is `slope`; NaN stays NaN.
///
/// # Errors
/// If candle has no operators for the type of `x`, or its device fails.
pub fn leaky_relu(x: &Tensor, slope: f64) -> Result<Tensor> {
    LeakyRelu(slope).apply(x)
}

/// `1 / (1 + e^-x)`, of any shape.
///
/// # Errors
/// If candle has no operators for the type of `x`, or its device fails.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Sigmoid.apply(x)
}

/// `x` limited to `lo..=hi`, of any shape. The derivative is 1 inside and at the bounds, else 0.
///
/// # Errors
/// If candle has no operators for the type of `x`, or its device fails.
pub fn clamp(x: &Tensor, lo: f64, hi: f64) -> Result<Tensor> {
    Clamp { lo, hi }.apply(x)
}

struct Relu;

impl Unary for Relu {
    const NAME: &'static str = "relu";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        elementwise::relu(x)
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        elementwise::relu_gradient(x, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        x.detach().le(0.0)?.where_cond(&x.detach().zeros_like()?, x)
    }
}

struct LeakyRelu(f64);

impl Unary for LeakyRelu {
    const NAME: &'static str = "leaky_relu";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        elementwise::leaky_relu_gradient(x, x, T::from_f64(self.0))
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        elementwise::leaky_relu_gradient(x, dy, T::from_f64(self.0))
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        x.detach().le(0.0)?.where_cond(&(x * self.0)?, x)
    }
}

struct Sigmoid;

impl Unary for Sigmoid {
    const NAME: &'static str = "sigmoid";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        elementwise::sigmoid(x)
    }

    fn gradient<T: Real>(&self, _: &[T], y: &[T], dy: &[T]) -> Vec<T> {
        elementwise::sigmoid_gradient(y, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        // sigmoid(x) = (1 + tanh(x / 2)) / 2 overflows nowhere.
        x.affine(0.5, 0.0)?.tanh()?.affine(0.5, 0.5)
    }
}

struct Clamp {
    lo: f64,
    hi: f64,
}

impl Unary for Clamp {
    const NAME: &'static str = "clamp";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        elementwise::clamp(x, T::from_f64(self.lo), T::from_f64(self.hi))
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        elementwise::clamp_gradient(x, dy, T::from_f64(self.lo), T::from_f64(self.hi))
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let zeros = x.detach().zeros_like()?;
        let (lo, hi) = ((&zeros + self.lo)?, (&zeros + self.hi)?);
        let x = x.detach().lt(self.lo)?.where_cond(&lo, x)?;
        x.detach().gt(self.hi)?.where_cond(&hi, &x)
    }
}
