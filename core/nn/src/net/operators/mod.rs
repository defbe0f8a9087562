//! Operators that no convolution takes along: one file each, with its shape, its layer, and its steps on maps. Bound by memory; a few
//! per cent of the networks here.

mod add;
mod affine;
mod average_pool;
mod concat;
mod max_pool;
mod relu;
mod scale;
mod sigmoid;
mod upsample;
mod widen;

use std::fmt::Debug;
use std::sync::Arc;

use candle_core::{Result, Tensor, bail};

use crate::kernels::frame::Frame;
use crate::kernels::{Real, simd};

pub(super) use add::Add;
pub(super) use affine::Affine;
pub(super) use average_pool::AveragePool;
pub(super) use concat::Concat;
pub(super) use max_pool::MaxPool;
pub(super) use relu::Relu;
pub(super) use scale::Scale;
pub(super) use sigmoid::Sigmoid;
pub(super) use upsample::Upsample;
pub(super) use widen::Widen;

/// A map: its layout, and where it begins in a slice.
pub(super) type Map<'a, T> = (&'a Frame, &'a [T]);

/// An operator without parameters that sees one image at a time, as a node of a graph.
pub(super) trait Operator: Debug + Send + Sync + Run<f32> + Run<f64> {
    /// Shape of its output.
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]>;
    /// Its output for tensors `[N, C, H, W]`, or `[N, C]`.
    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor>;
    /// What it is on a GPU.
    #[cfg_attr(
        not(any(test, feature = "cudnn")),
        expect(dead_code, reason = "read by the lowering for a GPU")
    )]
    fn elementwise(&self) -> Option<Elementwise>;
    /// How a convolution may do it to results in registers.
    fn epilogue(&self) -> Option<Epilogue> {
        None
    }
}

/// An operator as a GPU has it.
#[derive(Clone, Debug)]
#[cfg_attr(
    not(any(test, feature = "cudnn")),
    expect(dead_code, reason = "read by the lowering for a GPU")
)]
pub(super) enum Elementwise {
    Add,
    Concat,
    MaxPool(usize),
    AveragePool([usize; 2]),
    Relu,
    /// Scale and shift of every channel.
    Scale(Vec<f64>, Vec<f64>),
    Sigmoid,
    Upsample(usize),
}

/// What a convolution can do to its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Epilogue {
    Relu,
    /// Max pooling of 2 x 2.
    Pool,
    /// By 2.
    Upsample,
}

/// What an operator does to the maps of one image, channels last or plane by plane.
pub(super) trait Run<T>: Send + Sync {
    /// What the way back needs of an image: bytes and numbers, for a target of this layout.
    fn kept(&self, target: &Frame) -> [usize; 2] {
        let _ = target;
        [0, 0]
    }

    /// Writes the target, whose border and padding are left 0. `bytes` and `numbers` are as long as [`kept`](Self::kept) says, or empty.
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], bytes: &mut [u8], numbers: &mut [T]);

    /// The gradient at source number `source`, of layouts `sources`, from the target's; all without borders.
    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, to: Slope<T>, bytes: &[u8], numbers: &[T]);
}

/// The gradient of a value: written, or added to what later steps wrote.
pub(super) struct Slope<'a, T> {
    pub values: &'a mut [T],
    pub add: bool,
}

impl<T: Real> Slope<'_, T> {
    /// Gives element `at` its share.
    #[inline(always)]
    fn give(&mut self, at: usize, v: T) {
        let to = &mut self.values[at];
        *to = if self.add { *to + v } else { v };
    }

    /// Gives neighbours from `at` on theirs. For closures of [`simd`].
    #[inline(always)]
    fn give_all(&mut self, at: usize, values: impl ExactSizeIterator<Item = T>) {
        let to = self.values[at..][..values.len()].iter_mut().zip(values);
        match self.add {
            true => to.for_each(|(to, v)| *to += v),
            false => to.for_each(|(to, v)| *to = v),
        }
    }
}

/// A number that operators are run with.
pub(super) trait Number: Real {
    /// An operator's steps.
    fn run(operator: &Arc<dyn Operator>) -> Arc<dyn Run<Self>>;
}

impl Number for f32 {
    fn run(operator: &Arc<dyn Operator>) -> Arc<dyn Run<f32>> {
        operator.clone()
    }
}

impl Number for f64 {
    fn run(operator: &Arc<dyn Operator>) -> Arc<dyn Run<f64>> {
        operator.clone()
    }
}

/// A step of its own.
pub(super) struct Single<T> {
    pub run: Arc<dyn Run<T>>,
    pub sources: Vec<usize>,
    pub target: usize,
    /// For each source, whether its gradient is added to what later steps wrote.
    pub add: Vec<bool>,
}

impl<T> Single<T> {
    /// `run` from some values to another.
    pub fn new(run: Arc<dyn Run<T>>, sources: Vec<usize>, target: usize) -> Self {
        let add = vec![false; sources.len()];
        Self {
            run,
            sources,
            target,
            add,
        }
    }
}

/// The only one of an operator's inputs.
fn only<I: Copy>(inputs: &[I]) -> Result<I> {
    match inputs {
        [input] => Ok(*input),
        _ => bail!("an operator of one map was given {}", inputs.len()),
    }
}

/// Calls `f(i, c, y, x)` for every element of a map, numbered by `[C, H, W]`, in the order of memory.
#[inline(always)]
fn each(frame: &Frame, mut f: impl FnMut(usize, usize, usize, usize)) {
    let Frame { c, h, w, .. } = *frame;
    if frame.narrow {
        for i in 0..c * h * w {
            f(i, i / (h * w), i / w % h, i % w);
        }
        return;
    }
    for y in 0..h {
        for x in 0..w {
            (0..c).for_each(|channel| f((channel * h + y) * w + x, channel, y, x));
        }
    }
}

/// Where an element lies.
#[inline(always)]
fn place(frame: &Frame, c: usize, y: usize, x: usize) -> usize {
    frame.at(y, x) + c * frame.strides()[0]
}

/// Gives a map to the gradient of another of its shape.
fn give_map<T: Real>(own: &Frame, (frame, from): Map<T>, mut to: Slope<T>) {
    simd(|| {
        for (own, row) in own.rows().zip(frame.rows()) {
            to.give_all(own.start, from[row].iter().copied());
        }
    });
}

/// Size along an axis of `k` x `k` blocks; an error where none fits.
fn blocks(what: &str, [c, h, w]: [usize; 3], [kh, kw]: [usize; 2]) -> Result<[usize; 3]> {
    if kh * kw == 0 || h < kh || w < kw {
        bail!("{what}: no {kh}x{kw} block fits into a {h}x{w} map");
    }
    Ok([c, h / kh, w / kw])
}
