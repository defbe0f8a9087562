//! A graph run node by node, and the parameters among its constants.

use std::collections::HashMap;

use advae_sdk::candle_core::{DType, Device, Result, Tensor, bail};
use advae_sdk::nn::{Init, Param};
use advae_sdk::prelude::*;

use crate::graph::{Graph, Node};
use crate::ops::Call;
use crate::room::Room;

/// What a constant is to the node that reads it.
#[derive(Clone, Copy, Debug)]
pub struct Role {
    pub trainable: bool,
    /// What it begins with where a seed is asked for, as PyTorch's layers do.
    pub init: Init,
}

/// The role of input `i` of a node, if it is a parameter.
pub fn role(node: &Node, i: usize, value: &Tensor) -> Option<Role> {
    let dims = value.dims();
    let uniform = |fan_in: usize| Init::Uniform {
        bound: 1. / (fan_in.max(1) as f64).sqrt(),
    };
    let rest = || dims.iter().skip(1).product();
    let row = |at: usize| dims.get(at).copied().unwrap_or(1);
    let (trainable, init) = match (node.op.as_str(), i) {
        ("Conv" | "ConvTranspose", 1) => (true, uniform(rest())),
        ("Gemm", 1) if node.int("transB", 0) != 0 => (true, uniform(row(1))),
        ("Gemm", 1) => (true, uniform(row(0))),
        ("MatMul", 0) => (true, uniform(row(dims.len().saturating_sub(1)))),
        ("MatMul", 1) => (true, uniform(row(dims.len().saturating_sub(2)))),
        ("Conv" | "ConvTranspose" | "Gemm", 2) => (true, Init::Zeros),
        ("BatchNormalization" | "InstanceNormalization" | "LayerNormalization", 1) => (true, Init::Ones),
        ("BatchNormalization" | "InstanceNormalization" | "LayerNormalization", 2) => (true, Init::Zeros),
        ("BatchNormalization", 3) => (false, Init::Zeros),
        ("BatchNormalization", 4) => (false, Init::Ones),
        ("PRelu", 1) => (true, Init::Const(0.25)),
        ("Add", _) if value.elem_count() > 1 => (true, Init::Zeros),
        ("Mul", _) if value.elem_count() > 1 => (true, Init::Ones),
        _ => return None,
    };
    value.dtype().is_float().then_some(Role { trainable, init })
}

/// A constant in both types of floats that networks are computed in.
struct Constant {
    narrow: Tensor,
    wide: Tensor,
}

/// A graph that runs node by node.
pub struct Layers {
    graph: Graph,
    params: HashMap<usize, Param>,
    constants: HashMap<usize, Constant>,
    /// The last node that reads a value.
    last: HashMap<usize, usize>,
}

impl Layers {
    /// Makes parameters of the constants that are such.
    ///
    /// # Errors
    /// Those of [`Weights::given`].
    pub fn new(graph: &Graph, weights: &Weights) -> Result<Layers> {
        let mut params = HashMap::new();
        let mut last = HashMap::new();
        for (at, node) in graph.nodes.iter().enumerate() {
            for (i, value) in node.inputs.iter().enumerate() {
                let Some(value) = value else { continue };
                last.insert(*value, at);
                let Some(constant) = graph.constants.get(value) else {
                    continue;
                };
                let Some(role) = role(node, i, constant) else { continue };
                if !params.contains_key(value) {
                    let name = &graph.names[*value];
                    params.insert(*value, weights.given(name, constant, role.init, role.trainable)?);
                }
            }
        }
        let constants = graph.constants.iter().filter(|(value, _)| !params.contains_key(value));
        let constants = constants.map(|(value, wide)| {
            let narrow = match wide.dtype().is_float() {
                true => wide.to_dtype(DType::F32)?,
                false => wide.clone(),
            };
            let wide = wide.clone();
            Ok((*value, Constant { narrow, wide }))
        });
        Ok(Layers {
            constants: constants.collect::<Result<_>>()?,
            graph: graph.clone(),
            params,
            last,
        })
    }

    /// The values asked for, of an input `x` in the file's own arrangement.
    ///
    /// # Errors
    /// Where a node fails.
    pub fn run(&self, pass: &Pass, x: &Tensor, asked: &[usize]) -> Result<Vec<Tensor>> {
        let mut values = HashMap::from([(self.graph.input.value, x.clone())]);
        let room = self.room(x);
        for (at, node) in self.graph.nodes.iter().enumerate() {
            for (value, tensor) in self.step(pass, node, x, &values, &room)? {
                values.insert(value, tensor);
            }
            for value in node.inputs.iter().flatten() {
                if self.last.get(value) == Some(&at) && !asked.contains(value) {
                    values.remove(value);
                }
            }
        }
        (asked.iter())
            .map(|value| match values.get(value) {
                Some(tensor) => Ok(tensor.clone()),
                // It does not depend on the images.
                None => self.constant(*value, x),
            })
            .collect()
    }

    /// Shapes of all values for `n` images of zeros, arranged as the file has them.
    ///
    /// # Errors
    /// Where a node fails.
    pub fn shapes(&self, n: usize, arrange: impl Fn(usize) -> Result<Tensor>) -> Result<HashMap<usize, Vec<usize>>> {
        let x = arrange(n)?;
        let mut values = HashMap::from([(self.graph.input.value, x.clone())]);
        let mut shapes = HashMap::from([(self.graph.input.value, x.dims().to_vec())]);
        let room = self.room(&x);
        for (at, node) in self.graph.nodes.iter().enumerate() {
            for (value, tensor) in self.step(&Pass::eval(), node, &x, &values, &room)? {
                shapes.insert(value, tensor.dims().to_vec());
                values.insert(value, tensor);
            }
            values.retain(|value, _| self.last.get(value).is_some_and(|last| *last > at));
        }
        Ok(shapes)
    }

    fn room(&self, x: &Tensor) -> Room {
        Room::new(x.dims().first().copied().unwrap_or(1), self.graph.work)
    }

    fn step(
        &self,
        pass: &Pass,
        node: &Node,
        x: &Tensor,
        values: &HashMap<usize, Tensor>,
        room: &Room,
    ) -> Result<Vec<(usize, Tensor)>> {
        let input = |value: usize| match (values.get(&value), self.params.get(&value)) {
            (Some(tensor), _) => Ok(tensor.clone()),
            (None, Some(param)) => Ok(param.tensor(pass)),
            (None, None) => self.constant(value, x),
        };
        let mut inputs: Vec<Option<Tensor>> = (node.inputs.iter())
            .map(|value| value.map(input).transpose())
            .collect::<Result<_>>()?;
        if node.op == "Reshape" {
            self.free_batch(x, &mut inputs)?;
        }
        let outputs = Call::new(node, inputs, room).compute()?;
        let named = node.outputs.iter().zip(outputs);
        Ok(named.filter_map(|(value, tensor)| Some(((*value)?, tensor))).collect())
    }

    fn constant(&self, value: usize, like: &Tensor) -> Result<Tensor> {
        let Some(constant) = self.constants.get(&value) else {
            bail!("'{}' is not there: the file is damaged", self.graph.names[value])
        };
        let tensor = if like.dtype() == DType::F64 {
            &constant.wide
        } else {
            &constant.narrow
        };
        // What shapes are computed from stays here.
        match tensor.dtype().is_float() && !like.device().is_cpu() {
            true => tensor.to_device(like.device()),
            false => Ok(tensor.clone()),
        }
    }

    /// A file written for a fixed number of images says so in the shapes that it arranges them in: that number becomes theirs.
    fn free_batch(&self, x: &Tensor, inputs: &mut [Option<Tensor>]) -> Result<()> {
        let (Some(fixed), n) = (self.fixed_batch(), x.dims()[0]) else {
            return Ok(());
        };
        let [Some(data), Some(target)] = inputs else {
            return Ok(());
        };
        let mut sizes: Vec<i64> = target.to_dtype(DType::I64)?.to_vec1()?;
        if sizes.first() == Some(&(fixed as i64)) && data.dims().first() == Some(&n) {
            sizes[0] = n as i64;
            *target = Tensor::new(sizes, &Device::Cpu)?;
        }
        Ok(())
    }

    fn fixed_batch(&self) -> Option<usize> {
        self.graph.input.dims.as_ref()?.first().copied().flatten()
    }
}
