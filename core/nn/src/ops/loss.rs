//! Functions of logits `[N, K]`: [`softmax`], [`log_softmax`], [`cross_entropy`], [`log_odds_against`], [`margin`].

use candle_core::{D, DType, Result, Shape, Tensor, bail};

use super::adapter::Unary;
use super::pool::first_argmax;
use crate::kernels::{Real, rows};

/// Softmax over the last axis, of any shape `[..., K]`.
///
/// # Errors
/// If `x` is a scalar, or has no classes (`K` is 0).
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let k = last_axis(x)?;
    Softmax(k).apply(x)
}

/// Logarithm of the softmax over the last axis, of any shape `[..., K]`.
///
/// # Errors
/// If `x` is a scalar, or has no classes (`K` is 0).
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let k = last_axis(x)?;
    LogSoftmax(k).apply(x)
}

/// Cross-entropy of each sample, `[N]`, not reduced: `log sum_i e^{z_i} - z_y` for `logits` `[N, K]` and
/// integer `labels` `[N]`.
///
/// Its gradient underflows in `f32` where the label's logit leads by more than some 88: what an attack ascends is
/// [`log_odds_against`].
///
/// # Errors
/// When the shapes do not fit, or a label is no class.
pub fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    CrossEntropy(Labels::new(logits, labels)?).apply(logits)
}

/// Log odds of each sample against its label, `[N]`: `t = log((1 - p_y) / p_y) = log sum_{i != y} e^{z_i} - z_y` for `logits`
/// `[N, K]` and integer `labels` `[N]`. Positive: the other classes together are likelier than the label.
///
/// This is cross-entropy for attacks. Cross-entropy is `log(1 + e^t)`, which increases with `t`, and its gradient is
/// `sigmoid(t)` times that of `t`. So both losses rank the images of a sample alike, and at every image both gradients have
/// the same direction. They differ where the model is sure: there `sigmoid(t)` and cross-entropy underflow to 0, while `t` and
/// its gradient, `softmax` over the other classes and -1 at the label, keep their size.
///
/// # Errors
/// When the shapes do not fit, a label is no class, or there is one class only.
pub fn log_odds_against(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let labels = Labels::new(logits, labels)?;
    if labels.k < 2 {
        bail!("log odds need two classes at least, these logits have {}", labels.k);
    }
    LogOdds(labels).apply(logits)
}

/// How far the label leads, `[N]`: `z_y - max_{i != y} z_i` for `logits` `[N, K]` and integer `labels`
/// `[N]`. Negative: misclassified. The gradient goes to the label and the runner-up, the first of equals.
///
/// # Errors
/// When the shapes do not fit, a label is no class, or there is one class only.
pub fn margin(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let labels = Labels::new(logits, labels)?;
    if labels.k < 2 {
        bail!("margin needs two classes at least");
    }
    Margin(labels).apply(logits)
}

fn last_axis(x: &Tensor) -> Result<usize> {
    match x.dims().last() {
        Some(k) if *k > 0 => Ok(*k),
        _ => bail!("softmax of shape {:?} has no classes", x.dims()),
    }
}

/// One class a row, all below `k`.
struct Labels {
    k: usize,
    classes: Vec<u32>,
}

impl Labels {
    fn new(logits: &Tensor, labels: &Tensor) -> Result<Labels> {
        let (n, k) = logits.dims2()?;
        if labels.dims() != [n] || labels.dtype().is_float() {
            bail!(
                "logits {:?} need integer labels [{n}], not {:?} of {:?}",
                logits.dims(),
                labels.dims(),
                labels.dtype()
            );
        }
        let classes = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
        if let Some(wrong) = classes.iter().find(|y| !(0..k as i64).contains(*y)) {
            bail!("label {wrong} is none of the {k} classes");
        }
        let classes = classes.into_iter().map(|y| y as u32).collect();
        Ok(Labels { k, classes })
    }

    /// As a column `[N, 1]` beside `x`.
    fn column(&self, x: &Tensor) -> Result<Tensor> {
        Tensor::from_slice(&self.classes, (self.classes.len(), 1), x.device())
    }

    /// Which elements of logits `x` are the labels'.
    fn is_label(&self, x: &Tensor) -> Result<Tensor> {
        let classes = Tensor::arange(0u32, self.k as u32, x.device())?;
        classes.broadcast_as(x.shape())?.broadcast_eq(&self.column(x)?)
    }

    /// `log sum_{i != y} e^{z_i} - z_y` of logits `x`, `[N]`, of candle's operators.
    fn log_odds(&self, x: &Tensor) -> Result<Tensor> {
        let low = (x.zeros_like()? + f64::NEG_INFINITY)?;
        let others = self.is_label(x)?.where_cond(&low, x)?;
        let max = others.detach().max_keepdim(D::Minus1)?;
        let sum = others.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
        let lead = (max - x.gather(&self.column(x)?, 1)?)?;
        (sum.log()? + lead)?.squeeze(1)
    }
}

struct Softmax(usize);

impl Unary for Softmax {
    const NAME: &'static str = "softmax";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        rows::softmax(self.0, x)
    }

    fn gradient<T: Real>(&self, _: &[T], y: &[T], dy: &[T]) -> Vec<T> {
        rows::softmax_gradient(self.0, y, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        LogSoftmax(self.0).compose(x)?.exp()
    }
}

struct LogSoftmax(usize);

impl Unary for LogSoftmax {
    const NAME: &'static str = "log_softmax";

    fn shape(&self, x: &Shape) -> Shape {
        x.clone()
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        rows::log_softmax(self.0, x)
    }

    fn gradient<T: Real>(&self, _: &[T], y: &[T], dy: &[T]) -> Vec<T> {
        rows::log_softmax_gradient(self.0, y, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let max = x.detach().max_keepdim(D::Minus1)?;
        let centered = x.broadcast_sub(&max)?;
        let log_sum = centered.exp()?.sum_keepdim(D::Minus1)?.log()?;
        centered.broadcast_sub(&log_sum)
    }
}

struct CrossEntropy(Labels);

impl Unary for CrossEntropy {
    const NAME: &'static str = "cross_entropy";

    fn shape(&self, _: &Shape) -> Shape {
        Shape::from(self.0.classes.len())
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        rows::cross_entropy(self.0.k, x, &self.0.classes)
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        rows::cross_entropy_gradient(self.0.k, x, &self.0.classes, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        // log(1 + e^t) with t = log sum_{i != y} e^{z_i - z_y}: no difference of two near 1 in the backward pass.
        let t = self.0.log_odds(x)?;
        t.relu()? + (t.abs()?.neg()?.exp()? + 1.)?.log()?
    }
}

struct LogOdds(Labels);

impl Unary for LogOdds {
    const NAME: &'static str = "log_odds_against";

    fn shape(&self, _: &Shape) -> Shape {
        Shape::from(self.0.classes.len())
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        rows::log_odds(self.0.k, x, &self.0.classes)
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        rows::log_odds_gradient(self.0.k, x, &self.0.classes, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        self.0.log_odds(x)
    }
}

struct Margin(Labels);

impl Unary for Margin {
    const NAME: &'static str = "margin";

    fn shape(&self, _: &Shape) -> Shape {
        Shape::from(self.0.classes.len())
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        rows::margin(self.0.k, x, &self.0.classes)
    }

    fn gradient<T: Real>(&self, x: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        rows::margin_gradient(self.0.k, x, &self.0.classes, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let label = self.0.column(x)?;
        let constant = x.detach();
        let low = (constant.zeros_like()? + f64::NEG_INFINITY)?;
        let runner_up = first_argmax(&self.0.is_label(x)?.where_cond(&low, &constant)?)?;
        (x.gather(&label, 1)? - x.gather(&runner_up, 1)?)?.squeeze(1)
    }
}
