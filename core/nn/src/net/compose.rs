//! A network layer by layer.

use candle_core::{Result, Tensor, bail};

use super::graph::{Graph, Op};
use crate::{Pass, flatten};

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
        (Op::Conv(layer), [x]) => layer.forward(pass, x),
        (Op::ConvTranspose(layer), [x]) => layer.forward(pass, x),
        (Op::Linear(layer), [x]) => layer.forward(pass, &flatten(x)?),
        (Op::Norm(layer), [x]) => layer.forward(pass, x),
        (Op::Dropout(layer), [x]) => layer.forward(pass, x),
        (Op::Flatten, [x]) => flatten(x),
        (Op::Plain(operator), inputs) => operator.layer(inputs),
        (op, inputs) => bail!("{op:?} of {} maps", inputs.len()),
    }
}
