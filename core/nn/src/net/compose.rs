//! A network layer by layer.

use candle_core::{Result, Tensor};

use super::graph::{Graph, Op};
use crate::{Pass, flatten, max_pool2d, relu, sigmoid, upsample_nearest2d};

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
        let y = match (&entry.op, inputs.as_slice()) {
            (Op::Concat, inputs) => Tensor::cat(inputs, 1)?,
            (Op::Add, [a, b]) => (*a + *b)?,
            (Op::Conv(layer), [x]) => layer.forward(pass, x)?,
            (Op::ConvTranspose(layer), [x]) => layer.forward(pass, x)?,
            (Op::Linear(layer), [x]) => layer.forward(pass, &flatten(x)?)?,
            (Op::Norm(layer), [x]) => layer.forward(pass, x)?,
            (Op::Dropout(layer), [x]) => layer.forward(pass, x)?,
            (Op::Relu, [x]) => relu(x)?,
            (Op::Sigmoid, [x]) => sigmoid(x)?,
            (Op::MaxPool(k), [x]) => max_pool2d(x, *k)?,
            (Op::Upsample(k), [x]) => upsample_nearest2d(x, *k)?,
            (Op::Flatten, [x]) => flatten(x)?,
            _ => x.clone(),
        };
        nodes[i] = Some(y);
    }
    Ok(nodes[output].take().unwrap_or_else(|| x.clone()))
}

impl Graph {
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
