//! Describes a network node by node.

use std::sync::Arc;

use candle_core::{Result, bail};

use super::Net;
use super::graph::{Entry, Graph, Op};
use super::operators::{Add, AveragePool, Concat, MaxPool, Operator, Relu, Scale, Sigmoid, Upsample};
use crate::{BatchNorm2d, Conv2d, ConvTranspose2d, Dropout, Linear};

/// A map of the network under construction, `[C, H, W]` for every image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub(super) usize);

/// Builds a [`Net`] node by node.
#[derive(Clone, Debug)]
pub struct NetBuilder {
    graph: Graph,
}

impl NetBuilder {
    /// A network of images `[C, H, W]`.
    pub fn new(input: [usize; 3]) -> NetBuilder {
        let entry = Entry {
            op: Op::Input,
            inputs: vec![],
            shape: input,
            flat: false,
        };
        NetBuilder {
            graph: Graph(vec![entry]),
        }
    }

    /// The images.
    pub fn input(&self) -> Node {
        Node(0)
    }

    /// Shape `[C, H, W]` of a node.
    pub fn shape(&self, node: Node) -> [usize; 3] {
        self.entry(node).shape
    }

    /// Whether a node is a vector: `[N, C]`, not `[N, C, 1, 1]`.
    pub fn is_flat(&self, node: Node) -> bool {
        self.entry(node).flat
    }

    /// Convolution `[in, H, W]` to `[out, Hout, Wout]`.
    ///
    /// # Errors
    /// When the channels differ from the layer's, or the kernel does not fit.
    pub fn conv2d(&mut self, x: Node, layer: &Conv2d) -> Result<Node> {
        let shape = layer.correlation(self.shape(x))?.output();
        Ok(self.push(Op::Conv(layer.clone()), &[x], shape, false))
    }

    /// Transposed convolution `[in, H, W]` to `[out, Hout, Wout]`.
    ///
    /// # Errors
    /// When the channels differ from the layer's.
    pub fn conv_transpose2d(&mut self, x: Node, layer: &ConvTranspose2d) -> Result<Node> {
        let shape = layer.correlation(self.shape(x))?.output();
        Ok(self.push(Op::ConvTranspose(layer.clone()), &[x], shape, false))
    }

    /// Fully connected layer over all elements of `x`, in the order `[C, H, W]`: a vector.
    ///
    /// # Errors
    /// When the number of elements differs from the layer's.
    pub fn linear(&mut self, x: Node, layer: &Linear) -> Result<Node> {
        let [inputs, outputs] = layer.sizes();
        let shape = self.shape(x);
        if shape.iter().product::<usize>() != inputs {
            bail!("a layer of {inputs} inputs on a map of shape {shape:?}: these do not fit");
        }
        Ok(self.push(Op::Linear(layer.clone()), &[x], [outputs, 1, 1], true))
    }

    /// Batch normalisation.
    ///
    /// # Errors
    /// When the channels differ from the layer's.
    pub fn batch_norm(&mut self, x: Node, layer: &BatchNorm2d) -> Result<Node> {
        let [c, ..] = self.shape(x);
        if layer.channels() != c {
            bail!("batch norm of {} channels on {c}: these do not fit", layer.channels());
        }
        Ok(self.same(Op::Norm(layer.clone()), x))
    }

    /// Dropout; see [`Dropout`].
    pub fn dropout(&mut self, x: Node, layer: Dropout) -> Node {
        self.same(Op::Dropout(layer), x)
    }

    /// See [`relu`](crate::relu).
    pub fn relu(&mut self, x: Node) -> Node {
        self.same(Op::Plain(Arc::new(Relu)), x)
    }

    /// See [`sigmoid`](crate::sigmoid).
    pub fn sigmoid(&mut self, x: Node) -> Node {
        self.same(Op::Plain(Arc::new(Sigmoid)), x)
    }

    /// `scale[c] x + shift[c]` with fixed numbers, `[C]` each: such as the mean and the deviation that images are normalised by.
    ///
    /// # Errors
    /// When there are not as many as channels.
    pub fn scale(&mut self, x: Node, scale: &[f64], shift: &[f64]) -> Result<Node> {
        let (scale, shift) = (scale.to_vec(), shift.to_vec());
        self.plain(Scale { scale, shift }, &[x])
    }

    /// See [`max_pool2d`](crate::max_pool2d): `[C, H, W]` to `[C, H / k, W / k]`.
    ///
    /// # Errors
    /// When no block fits, or `k` is above 15.
    pub fn max_pool2d(&mut self, x: Node, k: usize) -> Result<Node> {
        self.plain(MaxPool(k), &[x])
    }

    /// See [`avg_pool2d`](crate::avg_pool2d): `[C, H, W]` to `[C, H / k, W / k]`.
    ///
    /// # Errors
    /// When no block fits.
    pub fn avg_pool2d(&mut self, x: Node, k: usize) -> Result<Node> {
        self.plain(AveragePool([k, k]), &[x])
    }

    /// See [`global_avg_pool2d`](crate::global_avg_pool2d): `[C, H, W]` to `[C, 1, 1]`.
    ///
    /// # Errors
    /// When the map is empty.
    pub fn global_avg_pool2d(&mut self, x: Node) -> Result<Node> {
        let [_, h, w] = self.shape(x);
        self.plain(AveragePool([h, w]), &[x])
    }

    /// See [`upsample_nearest2d`](crate::upsample_nearest2d): `[C, H, W]` to `[C, factor H, factor W]`.
    ///
    /// # Errors
    /// When `factor` is 0.
    pub fn upsample_nearest2d(&mut self, x: Node, factor: usize) -> Result<Node> {
        self.plain(Upsample(factor), &[x])
    }

    /// All elements as a vector, in the order `[C, H, W]`.
    pub fn flatten(&mut self, x: Node) -> Node {
        let shape = self.shape(x);
        self.push(Op::Flatten, &[x], [shape.iter().product(), 1, 1], true)
    }

    /// Channels one after the other.
    ///
    /// # Errors
    /// When there is none, or heights or widths differ.
    pub fn concat(&mut self, xs: &[Node]) -> Result<Node> {
        self.plain(Concat, xs)
    }

    /// Sum of two nodes, such as a residual and its shortcut.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn add(&mut self, a: Node, b: Node) -> Result<Node> {
        self.plain(Add, &[a, b])
    }

    /// The network whose output is `node`. Another output of the same graph can be built after.
    ///
    /// # Errors
    /// When the output is the input itself.
    pub fn build(&self, node: Node) -> Result<Net> {
        if node.0 == 0 {
            bail!("a network without layers");
        }
        Ok(Net::new(Arc::new(self.graph.clone()), node.0))
    }

    /// The graph so far, and the number of a node.
    #[cfg(test)]
    pub(super) fn graph(&self, node: Node) -> (Arc<Graph>, usize) {
        (Arc::new(self.graph.clone()), node.0)
    }

    fn entry(&self, node: Node) -> &Entry {
        &self.graph.0[node.0]
    }

    /// A node of an operator without parameters; a vector where its first input is one.
    fn plain(&mut self, operator: impl Operator + 'static, xs: &[Node]) -> Result<Node> {
        let shapes: Vec<[usize; 3]> = xs.iter().map(|x| self.shape(*x)).collect();
        let shape = operator.shape(&shapes)?;
        let flat = xs.first().is_some_and(|x| self.entry(*x).flat) && shape[1..] == [1, 1];
        Ok(self.push(Op::Plain(Arc::new(operator)), xs, shape, flat))
    }

    fn same(&mut self, op: Op, x: Node) -> Node {
        let Entry { shape, flat, .. } = *self.entry(x);
        self.push(op, &[x], shape, flat)
    }

    fn push(&mut self, op: Op, inputs: &[Node], shape: [usize; 3], flat: bool) -> Node {
        self.graph.0.push(Entry {
            op,
            inputs: inputs.iter().map(|x| x.0).collect(),
            shape,
            flat,
        });
        Node(self.graph.0.len() - 1)
    }
}
