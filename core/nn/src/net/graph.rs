//! A network as a graph: what makes each node from which others.

use std::sync::Arc;

use candle_core::Shape;

use super::operators::Operator;
use crate::{BatchNorm2d, Conv2d, ConvTranspose2d, Dropout, Linear, Param};

/// What makes a node from others.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Input,
    Conv(Conv2d),
    ConvTranspose(ConvTranspose2d),
    Linear(Linear),
    Norm(BatchNorm2d),
    Dropout(Dropout),
    Flatten,
    /// What has no parameters and sees one image at a time.
    Plain(Arc<dyn Operator>),
}

/// A node, where it comes from, and its shape.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub op: Op,
    pub inputs: Vec<usize>,
    pub shape: [usize; 3],
    /// Whether it is a vector: `[N, C]`, not `[N, C, 1, 1]`.
    pub flat: bool,
}

/// What a node gives for an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    shape: [usize; 3],
    flat: bool,
}

impl Output {
    /// Numbers an image.
    pub fn len(self) -> usize {
        self.shape.iter().product()
    }

    /// Shape for `n` images.
    pub fn batch(self, n: usize) -> Shape {
        let [c, h, w] = self.shape;
        match self.flat {
            true => Shape::from((n, c)),
            false => Shape::from((n, c, h, w)),
        }
    }
}

impl Entry {
    /// What it gives for an image.
    pub fn output(&self) -> Output {
        let Entry { shape, flat, .. } = *self;
        Output { shape, flat }
    }
}

/// Nodes, each after those that it is made from.
#[derive(Clone, Debug)]
pub(super) struct Graph(pub Vec<Entry>);

impl Graph {
    /// Parameters and buffers of the nodes that `output` needs, in order.
    pub fn params(&self, output: usize) -> Vec<Param> {
        let mut params = Vec::new();
        for (entry, _) in self.0.iter().zip(self.needed(output)).filter(|(_, needed)| *needed) {
            match &entry.op {
                Op::Conv(layer) => params.extend(layer.params().cloned()),
                Op::ConvTranspose(layer) => params.extend(layer.params().map(Param::clone)),
                Op::Linear(layer) => params.extend(layer.params().map(Param::clone)),
                Op::Norm(layer) => params.extend(layer.params().map(Param::clone)),
                Op::Input | Op::Dropout(_) | Op::Flatten | Op::Plain(_) => {}
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
