//! The operators, one at a time, on candle tensors: what they compute and, by candle's tape and [`nn`](advae_sdk::nn)'s
//! operators, their gradients. Source: ONNX's operator specification, opsets 6 to 23.
//!
//! Everything that moves elements about (windows, padding, resizing, strided slices) is one selection by constant indices, whose
//! gradient is the sum back; max pooling gives its gradient to the first of equals.

mod arithmetic;
mod convolution;
mod normalisation;
mod resize;
mod shapes;
mod window;

use advae_sdk::candle_core::{DType, Error, Result, Tensor, bail};
use advae_sdk::nn;

use crate::graph::Node;
use crate::room::Room;

pub use resize::repeats;
pub use window::{Spatial, pads_of, pooling};

/// Operators that are known.
#[rustfmt::skip]
pub const SUPPORTED: &[&str] = &[
    "Abs", "Add", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv",
    "ConvTranspose", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "Gelu", "Gemm",
    "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization",
    "LeakyRelu", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Min", "Mul", "Neg", "PRelu", "Pad", "Pow", "Reciprocal",
    "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Selu", "Shape", "Sigmoid", "Slice", "Softmax", "Softplus",
    "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Transpose", "Unsqueeze", "Upsample", "Where",
];

/// Operators that compute with floats alone, and get nothing else.
#[rustfmt::skip]
const FLOATS: &[&str] = &[
    "AveragePool", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "GlobalMaxPool",
    "InstanceNormalization", "LayerNormalization", "LogSoftmax", "MatMul", "MaxPool", "PRelu", "Softmax",
];

/// A node, the tensors it is given, and the room for what it makes.
pub struct Call<'a> {
    pub node: &'a Node,
    inputs: Vec<Option<Tensor>>,
    room: &'a Room,
}

impl<'a> Call<'a> {
    /// Inputs in the node's order; none where one is left out.
    pub fn new(node: &'a Node, inputs: Vec<Option<Tensor>>, room: &'a Room) -> Self {
        Call { node, inputs, room }
    }

    /// The outputs.
    ///
    /// # Errors
    /// Where shapes or attributes do not fit, or there is no room; names the node.
    pub fn compute(&self) -> Result<Vec<Tensor>> {
        let outputs = || {
            let outputs = self.outputs()?;
            // Whoever makes a value that is larger than its inputs asks before; here all of them are counted. What a file holds is no
            // growth.
            if self.node.op != "Constant" {
                outputs.iter().try_for_each(|y| self.room(y.dims()))?;
            }
            Ok(outputs)
        };
        outputs().map_err(|e: Error| e.context(self.node.label()))
    }

    /// That a value of this shape, the output or one on the way to it, has room.
    ///
    /// # Errors
    /// Where it has not.
    pub fn room(&self, dims: &[usize]) -> Result<()> {
        let given = self.inputs().iter().map(|x| x.elem_count()).max();
        self.room.value(dims, given.unwrap_or(0))
    }

    /// That `x` has room with an axis of another size.
    ///
    /// # Errors
    /// Where it has not.
    pub fn room_along(&self, x: &Tensor, at: usize, size: usize) -> Result<()> {
        let mut dims = x.dims().to_vec();
        dims[at] = size;
        self.room(&dims)
    }

    /// That what two tensors broadcast to has room.
    ///
    /// # Errors
    /// Where it has not, or they do not fit each other.
    pub fn room_for_both(&self, a: &Tensor, b: &Tensor) -> Result<()> {
        let shape = a.shape().broadcast_shape_binary_op(b.shape(), "broadcast")?;
        self.room(shape.dims())
    }

    /// That so many multiplications and additions, the product of these sizes, are not too much.
    ///
    /// # Errors
    /// Where they are.
    pub fn product(&self, sizes: &[usize]) -> Result<()> {
        self.room.product(sizes)
    }

    fn outputs(&self) -> Result<Vec<Tensor>> {
        let x = || self.input(0);
        if FLOATS.contains(&self.node.op.as_str()) && self.inputs().iter().any(|x| !x.dtype().is_float()) {
            bail!("an operator for floats on whole numbers: the file is damaged")
        }
        let y = match self.node.op.as_str() {
            "Split" => return shapes::split(self),
            "Constant" => shapes::constant(self)?,
            "ConstantOfShape" => shapes::constant_of_shape(self)?,
            "Shape" => shapes::shape(self)?,
            "Cast" => shapes::cast(self)?,
            "Reshape" => shapes::reshape(self)?,
            "Flatten" => shapes::flatten(self)?,
            "Squeeze" => shapes::squeeze(self)?,
            "Unsqueeze" => shapes::unsqueeze(self)?,
            "Transpose" => shapes::transpose(self)?,
            "Concat" => shapes::concat(self)?,
            "Slice" => shapes::slice(self)?,
            "Gather" => shapes::gather(self)?,
            "Expand" => shapes::expand(self)?,
            "Pad" => shapes::pad(self)?,
            "Where" => arithmetic::choose(self)?,
            "Equal" => arithmetic::equal(self)?,
            "Identity" => x()?.clone(),
            // In evaluation it is the identity, and training here is fine tuning without it.
            "Dropout" => x()?.clone(),
            "Conv" => convolution::conv(self)?,
            "ConvTranspose" => convolution::conv_transpose(self)?,
            "MaxPool" => window::max_pool(self)?,
            "AveragePool" => window::average_pool(self)?,
            "GlobalAveragePool" => window::global(self, |x| x.mean_keepdim(2))?,
            "GlobalMaxPool" => window::global(self, window::largest)?,
            "Resize" | "Upsample" => resize::resize(self)?,
            "BatchNormalization" => normalisation::batch(self)?,
            "InstanceNormalization" => normalisation::instance(self)?,
            "LayerNormalization" => normalisation::layer(self)?,
            "Gemm" => arithmetic::gemm(self)?,
            "MatMul" => arithmetic::matmul(self, x()?, self.input(1)?)?,
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Min" | "Max" | "Sum" | "PRelu" => arithmetic::binary(self)?,
            "ReduceMean" | "ReduceSum" | "ReduceMax" => arithmetic::reduce(self)?,
            "Softmax" => arithmetic::over_axis(self, nn::softmax)?,
            "LogSoftmax" => arithmetic::over_axis(self, nn::log_softmax)?,
            _ => arithmetic::unary(self)?,
        };
        Ok(vec![y])
    }

    /// An input that must be there.
    pub fn input(&self, i: usize) -> Result<&Tensor> {
        match self.optional(i) {
            Some(x) => Ok(x),
            None => bail!("input number {i} is missing: the file is damaged"),
        }
    }

    /// An input that may be left out.
    pub fn optional(&self, i: usize) -> Option<&Tensor> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// All inputs.
    pub fn inputs(&self) -> Vec<&Tensor> {
        self.inputs.iter().flatten().collect()
    }

    /// An input as whole numbers, if it is there.
    pub fn whole(&self, i: usize) -> Result<Option<Vec<i64>>> {
        let Some(x) = self.optional(i) else { return Ok(None) };
        x.to_dtype(DType::I64)?.flatten_all()?.to_vec1().map(Some)
    }

    /// An input as numbers, if it is there.
    pub fn numbers(&self, i: usize) -> Result<Option<Vec<f64>>> {
        let Some(x) = self.optional(i) else { return Ok(None) };
        x.to_dtype(DType::F64)?.flatten_all()?.to_vec1().map(Some)
    }

    /// Whole numbers that newer files give as an input and older ones as an attribute.
    pub fn whole_or(&self, i: usize, attribute: &str) -> Result<Option<Vec<i64>>> {
        match self.whole(i)? {
            Some(values) => Ok(Some(values)),
            None => Ok(self.node.ints(attribute).map(<[i64]>::to_vec)),
        }
    }
}

/// An axis, counted from the end where it is negative.
pub fn axis(axis: i64, rank: usize) -> Result<usize> {
    let positive = if axis < 0 { axis + rank as i64 } else { axis };
    match usize::try_from(positive) {
        Ok(axis) if axis < rank => Ok(axis),
        _ => bail!("axis {axis} of a tensor of {rank} axes"),
    }
}

/// Sizes as they are in memory.
pub fn sizes(values: &[i64]) -> Result<Vec<usize>> {
    let size = |v: &i64| usize::try_from(*v).or_else(|_| bail!("a size of {v}: it must not be negative"));
    values.iter().map(size).collect()
}
