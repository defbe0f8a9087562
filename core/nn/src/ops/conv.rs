//! Convolution and its transpose.

use candle_core::{Result, Shape, Tensor, bail};

use super::adapter::{Bilinear, Parametric};
use crate::kernels::conv::Correlation;
use crate::kernels::geometry::Geometry;
use crate::kernels::norm::{self, Channels};
use crate::kernels::{Real, batch, conv_weights};

/// What surrounds an image that is convolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: only whole patches count.
    Valid,
    /// Zeros, as TensorFlow has it: `ceil(size / stride)` outputs; where the zeros are odd in number, the
    /// extra one is at the bottom and at the right.
    Same,
    /// As many zeros on each of the four sides, as PyTorch has it: `(size + 2 zeros - kernel) / stride + 1` outputs, rounded down. Fewer
    /// than the kernel is wide. With stride 2 patches do not lie where [`Padding::Same`] has them.
    Zeros(usize),
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
            // A patch of zeros alone is of no use, and kernels know none.
            Padding::Zeros(zeros) if zeros >= kernel => None,
            Padding::Zeros(zeros) => Some((zeros, (size + 2 * zeros).checked_sub(kernel)? / stride + 1)),
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
    Conv(n, Correlation::new(geometry)).apply(x, weight, bias)
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
        bail!("conv2d: a {kh}x{kw} kernel does not fit into a {h}x{w} image with padding {padding:?}");
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

/// Transposed convolution of `x` `[N, Cin, H, W]` with `weight` `[Cin, Cout, kh, kw]`, plus `bias` `[Cout]`:
/// `[N, Cout, Hout, Wout]`. It is the input gradient of the convolution from `[Cout, Hout, Wout]` with the same weight,
/// stride and padding; `Hout` is `stride H` for [`Padding::Same`], `stride (H - 1) + kh` for [`Padding::Valid`], and twice the zeros less
/// for [`Padding::Zeros`].
///
/// # Errors
/// When the shapes do not fit each other.
pub fn conv_transpose2d(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    conv_transpose2d_to(x, weight, bias, None, stride, padding)
}

/// The same with outputs of this height and width, if they are named.
pub(crate) fn conv_transpose2d_to(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    output: Option<[usize; 2]>,
    stride: usize,
    padding: Padding,
) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let geometry = transposed_geometry([c, h, w], weight.dims(), output, stride, padding)?;
    let bias_dims = bias.map_or(geometry.c_in, Tensor::elem_count);
    if bias_dims != geometry.c_in {
        bail!(
            "conv_transpose2d with weight {:?} and a bias of {bias_dims}: these do not fit",
            weight.dims()
        );
    }
    Conv(n, Correlation::new(geometry).transpose()).apply(x, weight, bias)
}

/// The convolution whose transpose takes maps `[C, H, W]`.
pub(crate) fn transposed_geometry(
    [c, h, w]: [usize; 3],
    weight: &[usize],
    output: Option<[usize; 2]>,
    stride: usize,
    padding: Padding,
) -> Result<Geometry> {
    let [c_weight, c_out, kh, kw] = *weight else {
        bail!("conv_transpose2d with a weight of shape {weight:?}: it must have four axes");
    };
    if c_weight != c || stride * h * w * kh * kw == 0 {
        bail!(
            "conv_transpose2d of maps {:?} with weight {weight:?} and stride {stride}: these do not fit",
            [c, h, w]
        );
    }
    let size = |size: usize, kernel: usize| match padding {
        Padding::Same => size * stride,
        Padding::Valid => (size - 1) * stride + kernel,
        Padding::Zeros(zeros) => ((size - 1) * stride + kernel).saturating_sub(2 * zeros),
    };
    let [rows, columns] = output.unwrap_or([size(h, kh), size(w, kw)]);
    let geometry = geometry([c_out, rows, columns], weight, stride, padding)?;
    if [geometry.h_out, geometry.w_out] != [h, w] {
        bail!(
            "conv_transpose2d of {h}x{w} maps cannot have {rows}x{columns} outputs: those convolve to {}x{}",
            geometry.h_out,
            geometry.w_out
        );
    }
    Ok(geometry)
}

/// Batch, shape.
struct Conv(usize, Correlation);

impl Parametric for Conv {
    const NAME: &'static str = "conv2d";

    fn shape(&self, _: &Shape) -> Shape {
        let [c, h, w] = self.1.output();
        Shape::from((self.0, c, h, w))
    }

    fn forward<T: Real>(&self, x: &[T], w: &[T], b: Option<&[T]>) -> Vec<T> {
        batch::correlate(&self.1, self.0, x, w, b)
    }

    fn input_gradient<T: Real>(&self, _: &[T], w: &[T], dy: &[T]) -> Vec<T> {
        batch::correlate(&self.1.transpose(), self.0, dy, w, None)
    }

    fn weight_gradient<T: Real>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let [x, dy] = if self.1.transposed { [dy, x] } else { [x, dy] };
        conv_weights::weight_gradient(&self.1.geometry, self.0, x, dy)
    }

    fn bias_gradient<T: Real>(&self, dy: &[T]) -> Vec<T> {
        let [c, h, w] = self.1.output();
        norm::sums(&Channels { c, area: h * w }, dy)
    }

    fn compose(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
        let y = self.1.compose(x, w)?;
        let [c, ..] = self.1.output();
        match b {
            None => Ok(y),
            Some(b) => y.broadcast_add(&b.reshape((1, c, 1, 1))?),
        }
    }
}

impl Bilinear for Correlation {
    const NAME: &'static str = "conv2d";

    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        let g = &self.geometry;
        if !self.transposed {
            return covered(g, x)?.conv2d(w, 0, g.stride, 1, 1);
        }
        let x = spread(&spread(x, 2, g.stride)?, 3, g.stride)?;
        let x = fit(&x, 2, g.kh - 1 - g.top, g.h + g.kh - 1)?;
        let x = fit(&x, 3, g.kw - 1 - g.left, g.w + g.kw - 1)?;
        x.conv2d(&half_turn(w)?, 0, 1, 1, 1)
    }

    fn input_gradient(&self, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
        self.transpose().forward(dy, w)
    }

    /// Samples stand for channels, channels for samples, and what moves over the image is the gradient, its elements as far apart as
    /// the patches were.
    fn weight_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let [x, dy] = if self.transposed { [dy, x] } else { [x, dy] };
        let exchanged = |x: &Tensor| x.transpose(0, 1)?.contiguous();
        let x = exchanged(&covered(&self.geometry, x)?)?;
        exchanged(&x.conv2d(&exchanged(dy)?, 0, 1, self.geometry.stride, 1)?)
    }
}

/// `x` with zeros around it, or without its last rows and columns, so that the patches cover it exactly.
fn covered(g: &Geometry, x: &Tensor) -> Result<Tensor> {
    let x = fit(x, 2, g.top, (g.h_out - 1) * g.stride + g.kh)?;
    fit(&x, 3, g.left, (g.w_out - 1) * g.stride + g.kw)
}

/// `x` with `stride - 1` zeros between neighbours along an axis.
fn spread(x: &Tensor, axis: usize, stride: usize) -> Result<Tensor> {
    let size = x.dim(axis)?;
    let (mut apart, mut joined) = (x.dims().to_vec(), x.dims().to_vec());
    apart.insert(axis + 1, 1);
    joined[axis] = size * stride;
    let x = x.reshape(apart)?.pad_with_zeros(axis + 1, 0, stride - 1)?;
    x.reshape(joined)?.narrow(axis, 0, (size - 1) * stride + 1)
}

/// A weight with its taps in reverse and its channels exchanged.
fn half_turn(w: &Tensor) -> Result<Tensor> {
    let (a, b, kh, kw) = w.dims4()?;
    let reverse: Vec<u32> = (0..(kh * kw) as u32).rev().collect();
    let taps = w
        .reshape((a, b, kh * kw))?
        .index_select(&Tensor::new(reverse, w.device())?, 2)?;
    taps.transpose(0, 1)?.contiguous()?.reshape((b, a, kh, kw))
}

/// `x` with `before` zeros in front of an axis, then zeros or a cut behind it, `covered` long.
fn fit(x: &Tensor, axis: usize, before: usize, covered: usize) -> Result<Tensor> {
    let after = covered.saturating_sub(before + x.dim(axis)?);
    x.pad_with_zeros(axis, before, after)?.narrow(axis, 0, covered)
}
