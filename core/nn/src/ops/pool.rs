//! Max and average pooling, and nearest-neighbour upsampling.

use candle_core::{D, DType, Result, Shape, Tensor, bail};

use super::adapter::Unary;
use crate::kernels::Real;
use crate::kernels::pool::{self, Averages, Blocks};

/// Largest element of each whole `k` by `k` block of `x` `[N, C, H, W]`: `[N, C, H / k, W / k]`. Rows and
/// columns that fill no block are left out. Of equal elements the first one has the whole gradient.
///
/// # Errors
/// When `x` has not four axes or is smaller than one block.
pub fn max_pool2d(x: &Tensor, k: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if k == 0 || h < k || w < k {
        bail!("max_pool2d: no {k}x{k} block fits into a {h}x{w} image");
    }
    let planes = n * c;
    MaxPool(Blocks { planes, h, w, k }).apply(x)
}

/// Mean of each whole `k` by `k` block of `x` `[N, C, H, W]`: `[N, C, H / k, W / k]`. Rows and columns that fill no block are left out.
///
/// # Errors
/// When `x` has not four axes or is smaller than one block.
pub fn avg_pool2d(x: &Tensor, k: usize) -> Result<Tensor> {
    average_blocks(x, [k, k])
}

/// Mean of each map of `x` `[N, C, H, W]`: `[N, C, 1, 1]`.
///
/// # Errors
/// When `x` has not four axes, or its maps are empty.
pub fn global_avg_pool2d(x: &Tensor) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    average_blocks(x, [h, w])
}

/// Mean of each whole block of this height and width.
pub(crate) fn average_blocks(x: &Tensor, [kh, kw]: [usize; 2]) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if kh * kw == 0 || h < kh || w < kw {
        bail!("avg_pool2d: no {kh}x{kw} block fits into a {h}x{w} image");
    }
    let planes = n * c;
    AveragePool(Averages { planes, h, w, kh, kw }).apply(x)
}

/// Each element of `x` `[N, C, H, W]` repeated `factor` times both ways: `[N, C, factor H, factor W]`.
///
/// # Errors
/// When `x` has not four axes, or the result's images are empty.
pub fn upsample_nearest2d(x: &Tensor, factor: usize) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    if factor * h * w == 0 {
        bail!("upsample_nearest2d: a {h}x{w} image by {factor} is empty");
    }
    let blocks = Blocks {
        planes: n * c,
        h: h * factor,
        w: w * factor,
        k: factor,
    };
    Upsample(blocks).apply(x)
}

struct MaxPool(Blocks);

impl Unary for MaxPool {
    const NAME: &'static str = "max_pool2d";

    fn shape(&self, x: &Shape) -> Shape {
        let (h, w) = self.0.counts();
        Shape::from((x.dims()[0], x.dims()[1], h, w))
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        pool::max_pool(&self.0, x)
    }

    fn gradient<T: Real>(&self, x: &[T], y: &[T], dy: &[T]) -> Vec<T> {
        pool::max_pool_gradient(&self.0, x, y, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, _, _) = x.dims4()?;
        let k = self.0.k;
        let (h, w) = self.0.counts();
        let blocks = x
            .narrow(2, 0, h * k)?
            .narrow(3, 0, w * k)?
            .reshape((n * c, h, k, w, k))?
            .transpose(2, 3)?
            .reshape((n * c * h * w, k * k))?;
        // One block a row. The index of the first maximum is a constant of the graph.
        let constant = blocks.detach();
        let max = constant.max_keepdim(D::Minus1)?;
        let least = (&max
            - slack(&x.detach())?
                .broadcast_as((n, c * h * w, 1))?
                .reshape(max.shape())?)?;
        let taken = blocks.gather(&first_of(&constant, &max, &least)?, D::Minus1)?;
        // Its gradient is that of the element taken, its value the maximum.
        ((&taken - taken.detach())? + max)?.reshape((n, c, h, w))
    }
}

struct AveragePool(Averages);

impl Unary for AveragePool {
    const NAME: &'static str = "avg_pool2d";

    fn shape(&self, x: &Shape) -> Shape {
        let [h, w] = self.0.counts();
        Shape::from((x.dims()[0], x.dims()[1], h, w))
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        pool::average(&self.0, x)
    }

    fn gradient<T: Real>(&self, _: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        pool::average_gradient(&self.0, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, _, _) = x.dims4()?;
        let Averages { kh, kw, .. } = self.0;
        let [h, w] = self.0.counts();
        let blocks = x.narrow(2, 0, h * kh)?.narrow(3, 0, w * kw)?;
        let blocks = blocks.reshape((n * c, h, kh, w, kw))?;
        blocks.mean((2, 4))?.reshape((n, c, h, w))
    }
}

struct Upsample(Blocks);

impl Unary for Upsample {
    const NAME: &'static str = "upsample_nearest2d";

    fn shape(&self, x: &Shape) -> Shape {
        Shape::from((x.dims()[0], x.dims()[1], self.0.h, self.0.w))
    }

    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        pool::upsample(&self.0, x)
    }

    fn gradient<T: Real>(&self, _: &[T], _: &[T], dy: &[T]) -> Vec<T> {
        pool::upsample_gradient(&self.0, dy)
    }

    fn compose(&self, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let k = self.0.k;
        x.reshape((n * c, h, 1, w, 1))?
            .broadcast_as((n * c, h, k, w, k))?
            .reshape((n, c, h * k, w * k))
    }
}

/// How far below a block's maximum elements are equal to it, for each sample of `x` `[N, C, H, W]`: `[N, 1, 1]`. On flat images exact
/// arithmetic makes them so; convolutions of other libraries, which compute places of a map in different ways, do not, and gradients
/// at whole backgrounds would go by what sums of the sample's largest elements round.
fn slack(x: &Tensor) -> Result<Tensor> {
    let share = if x.dtype() == DType::F64 { 0. } else { 2e-6 };
    x.flatten_from(1)?.abs()?.max_keepdim(1)?.unsqueeze(2)? * share
}

/// `[rows, 1]`, `u32`: the first column of each row of `x` `[rows, columns]` that holds its maximum. candle's own argmax does not say which
/// of equals it takes.
pub(crate) fn first_argmax(x: &Tensor) -> Result<Tensor> {
    let max = x.max_keepdim(D::Minus1)?;
    first_of(x, &max, &max)
}

/// The first column that holds the row's `max`, or `least` or more; both `[rows, 1]`.
fn first_of(x: &Tensor, max: &Tensor, least: &Tensor) -> Result<Tensor> {
    let columns = x.dim(D::Minus1)?;
    // An infinite maximum has nothing below it that is as near.
    let near = x.broadcast_ge(least)?.to_dtype(DType::F32)?;
    let is_max = x.broadcast_eq(max)?.to_dtype(DType::F32)?.maximum(&near)?;
    // Columns that hold the maximum score by how early they are, the others 0.
    let early: Vec<f32> = (0..columns).map(|i| (columns - i) as f32).collect();
    let early = Tensor::from_vec(early, columns, x.device())?;
    is_max.broadcast_mul(&early)?.argmax_keepdim(D::Minus1)
}
