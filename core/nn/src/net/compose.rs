//! A network layer by layer.

use candle_core::{Result, Tensor, bail};

use super::graph::{Graph, Op};
use crate::{Param, Pass, flatten, max_pool2d, relu, sigmoid, upsample_nearest2d};

/// The node `output` for images `x` `[N, C, H, W]`.
pub(super) fn forward(graph: &Graph, output: usize, pass: &Pass, x: &Tensor) -> Result<Tensor> {
    let mut nodes: Vec<Option<Tensor>> = vec![None; output + 1];
    let needed = graph.needed(output);
    for (i, entry) in graph
        .0
        .iter()
        .enumerate()
        .filter(|(i, _)| needed.get(*i) == Some(&true))
    {
        let inputs: Vec<&Tensor> = entry.inputs.iter().filter_map(|i| nodes[*i].as_ref()).collect();
        let y = if inputs.is_empty() {
            x.clone()
        } else {
            layer(&entry.op, pass, &inputs)?
        };
        nodes[i] = Some(y);
    }
    Ok(nodes[output].take().unwrap_or_else(|| x.clone()))
}

/// One layer.
pub(super) fn layer(op: &Op, pass: &Pass, inputs: &[&Tensor]) -> Result<Tensor> {
    match (op, inputs) {
        (Op::Concat, inputs) => Tensor::cat(inputs, 1),
        (Op::Add, [a, b]) => *a + *b,
        (Op::Conv(layer), [x]) => layer.forward(pass, x),
        (Op::ConvTranspose(layer), [x]) => layer.forward(pass, x),
        (Op::Linear(layer), [x]) => layer.forward(pass, &flatten(x)?),
        (Op::Norm(layer), [x]) => layer.forward(pass, x),
        (Op::Dropout(layer), [x]) => layer.forward(pass, x),
        (Op::Relu, [x]) => relu(x),
        (Op::Sigmoid, [x]) => sigmoid(x),
        (Op::MaxPool(k), [x]) => max_pool2d(x, *k),
        (Op::Upsample(k), [x]) => upsample_nearest2d(x, *k),
        (Op::Flatten, [x]) => flatten(x),
        (op, inputs) => bail!("{op:?} of {} maps", inputs.len()),
    }
}

impl Graph {
    /// Parameters and buffers of the nodes that `output` needs, in order.
    pub fn params(&self, output: usize) -> Vec<Param> {
        let mut params = Vec::new();
        for (entry, _) in self.0.iter().zip(self.needed(output)).filter(|(_, needed)| *needed) {
            match &entry.op {
                Op::Conv(layer) => params.extend(layer.params().map(Param::clone)),
                Op::ConvTranspose(layer) => params.extend(layer.params().map(Param::clone)),
                Op::Linear(layer) => params.extend(layer.params().map(Param::clone)),
                Op::Norm(layer) => params.extend(layer.params().map(Param::clone)),
                _ => {}
            }
        }
        params
    }

    /// Which nodes `output` depends on, itself included.
    pub fn needed(&self, output: usize) -> Vec<bool> {
        let mut needed = vec![false; output + 1];
        needed[output] = true;
        for i in (0..=output).rev() {
            if needed[i] {
                self.0[i].inputs.iter().for_each(|i| needed[*i] = true);
            }
        }
        needed
    }
}
