//! Convolution.

use candle_core::{Result, Shape, Tensor, bail};

use super::adapter::Parametric;
use crate::kernels::geometry::Geometry;
use crate::kernels::{Real, batch, conv_weights};

/// What surrounds an image that is convolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: only whole patches count.
    Valid,
    /// Zeros, as TensorFlow has it: `ceil(size / stride)` outputs; where the zeros are odd in number, the
    /// extra one is at the bottom and at the right.
    Same,
}

impl Padding {
    /// Zeros before an axis of `size`, and outputs along it.
    fn resolve(self, size: usize, kernel: usize, stride: usize) -> Option<(usize, usize)> {
        match self {
            Padding::Valid => Some((0, size.checked_sub(kernel)? / stride + 1)),
            Padding::Same => {
                let out = size.div_ceil(stride);
                let covered = out.checked_sub(1)? * stride + kernel;
                Some((covered.saturating_sub(size) / 2, out))
            }
        }
    }
}

/// Convolution (cross-correlation) of `x` `[N, Cin, H, W]` with `weight` `[Cout, Cin, kh, kw]`, plus
/// `bias` `[Cout]`: `[N, Cout, Hout, Wout]`.
///
/// # Errors
/// When the shapes do not fit each other, or the kernel does not fit the image.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, stride: usize, padding: Padding) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let geometry = geometry([c, h, w], weight.dims(), stride, padding)?;
    let bias_dims = bias.map_or(geometry.c_out, Tensor::elem_count);
    if bias_dims != geometry.c_out {
        bail!(
            "conv2d with weight {:?} and a bias of {bias_dims}: these do not fit",
            weight.dims()
        );
    }
    Conv(n, geometry).apply(x, weight, bias)
}

/// The convolution of maps `[C, H, W]` with a weight of these extents.
pub(crate) fn geometry(
    [c_in, h, w]: [usize; 3],
    weight: &[usize],
    stride: usize,
    padding: Padding,
) -> Result<Geometry> {
    let [c_out, c_weight, kh, kw] = *weight else {
        bail!("conv2d with a weight of shape {weight:?}: it must have four axes");
    };
    if c_weight != c_in || stride == 0 || kh * kw == 0 {
        bail!(
            "conv2d of maps {:?} with weight {weight:?} and stride {stride}: these do not fit",
            [c_in, h, w]
        );
    }
    let rows = padding.resolve(h, kh, stride);
    let columns = padding.resolve(w, kw, stride);
    let (Some((top, h_out)), Some((left, w_out))) = (rows, columns) else {
        bail!("conv2d: a {kh}x{kw} kernel does not fit into a {h}x{w} image");
    };
    Ok(Geometry {
        c_in,
        h,
        w,
        c_out,
        kh,
        kw,
        stride,
        top,
        left,
        h_out,
        w_out,
    })
}

/// Batch, shape.
struct Conv(usize, Geometry);

impl Parametric for Conv {
    const NAME: &'static str = "conv2d";

    fn shape(&self, _: &Shape) -> Shape {
        let [c, h, w] = self.1.output();
        Shape::from((self.0, c, h, w))
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T], b: Option<&[T]>) -> Vec<T> {
        batch::forward(&self.1, self.0, x, w, b)
    }

    fn input_gradient<T: Real>(&self, _: &[T], w: &[T], dy: &[T]) -> Vec<T> {
        batch::input_gradient(&self.1, self.0, w, dy)
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        conv_weights::weight_gradient(&self.1, self.0, x, dy)
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        conv_weights::bias_gradient(self.1.c_out, self.1.h_out * self.1.w_out, dy)
    }

    fn compose(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let g = &self.1;
        let x = fit(x, 2, g.top, (g.h_out - 1) * g.stride + g.kh)?;
        let x = fit(&x, 3, g.left, (g.w_out - 1) * g.stride + g.kw)?;
        let y = x.conv2d(w, 0, g.stride, 1, 1)?;
        match b {
            None => Ok(y),
            Some(b) => y.broadcast_add(&b.reshape((1, g.c_out, 1, 1))?),
        }
    }
}

/// `x` with `before` zeros in front of an axis, then zeros or a cut behind it, `covered` long: candle's
/// gradient of conv2d is right where the patches cover the image exactly.
fn fit(x: &Tensor, axis: usize, before: usize, covered: usize) -> Result<Tensor> {
    let after = covered.saturating_sub(before + x.dim(axis)?);
    x.pad_with_zeros(axis, before, after)?.narrow(axis, 0, covered)
}
