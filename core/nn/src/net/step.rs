//! What a processor does to maps, step by step.

use candle_core::{Result, Tensor};

use super::operators::Single;
use crate::kernels::Real;
use crate::kernels::channels::Affine;
use crate::kernels::conv::Kernel;
use crate::kernels::frame::Frame;
use crate::kernels::geometry::Geometry;
use crate::{BatchNorm2d, Param};

/// One step.
pub(super) enum Step<T> {
    Conv(Box<Conv<T>>),
    Single(Single<T>),
    Norm(Norm),
}

/// A norm by statistics that are known only in the pass, and the `relu` behind it.
pub(super) struct Norm {
    pub source: usize,
    pub target: usize,
    pub layer: BatchNorm2d,
    pub relu: bool,
    /// Whether its gradient is added to what later steps wrote.
    pub add: bool,
    /// Norms before it.
    pub number: usize,
}

impl Norm {
    /// Bytes that the way back needs of an image, for a target of this layout.
    pub fn marks(&self, target: &Frame) -> usize {
        if self.relu { Affine::<f32>::marks(target) } else { 0 }
    }
}

/// A convolution or fully connected layer, with the norm before and what follows.
pub(super) struct Conv<T> {
    pub source: usize,
    pub target: usize,
    pub forward: Kernel<T>,
    pub backward: Kernel<T>,
    /// As long as the stored channels.
    pub bias: Vec<T>,
    /// Whether the bias is a parameter.
    pub biased: bool,
    pub post: Post,
    /// Layout of the result before `post`, without a border: what marks are kept for.
    pub result: Frame,
    /// Layout of that result's gradient.
    pub gradient: Frame,
    pub route: Route,
    /// Whether the gradient of what it made comes by the value, not straight from the step that reads it.
    pub pulled: bool,
    /// Its shape, or that of what it is the transpose of.
    pub geometry: Geometry,
    pub transposed: bool,
}

/// What follows a convolution in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Post {
    None,
    Relu,
    /// Pooling of 2 x 2, after `relu` or not.
    Pool {
        relu: bool,
    },
    /// `relu`, then upsampling by 2.
    Upsample,
}

/// Where a step sends the gradient of its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Through what follows the convolution of step `.0`, which made the input for this step alone.
    Into(usize),
    /// To the gradient of the value: written, or added to what later steps wrote.
    Value { add: bool },
}

impl<T> Step<T> {
    /// Values it reads.
    pub fn sources(&self) -> Vec<usize> {
        match self {
            Step::Conv(conv) => vec![conv.source],
            Step::Single(single) => single.sources.clone(),
            Step::Norm(norm) => vec![norm.source],
        }
    }

    /// The value it writes.
    pub fn target(&self) -> usize {
        match self {
            Step::Conv(conv) => conv.target,
            Step::Single(single) => single.target,
            Step::Norm(norm) => norm.target,
        }
    }
}

/// The values of a parameter.
pub(super) fn numbers<T: Real>(param: &Param) -> Result<Vec<T>> {
    let tensor: Tensor = param.var().as_detached_tensor();
    tensor.to_dtype(T::DTYPE)?.flatten_all()?.to_vec1()
}
