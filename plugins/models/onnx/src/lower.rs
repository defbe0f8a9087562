//! A graph as a [`Net`], where all of its operators are nodes of one: that runs fused.

use std::collections::HashMap;

use advae_sdk::candle_core::{DType, Result, Tensor, bail};
use advae_sdk::nn::net::Node as Place;
use advae_sdk::nn::{BatchNorm2d, Conv2d, ConvTranspose2d, Init, Linear, Net, NetBuilder, Padding, Param};
use advae_sdk::prelude::*;

use crate::graph::{Graph, Node};
use crate::layers::role;
use crate::ops::{Call, Spatial, pads_of, repeats};
use crate::room::Room;

/// Shapes of all values for two images, and for three.
pub type Shapes = [HashMap<usize, Vec<usize>>; 2];

/// How the file's input follows from images `[N, C, H, W]` beside their shape.
pub struct Entry<'a> {
    pub image: [usize; 3],
    /// Whether the file has channels last.
    pub channels_last: bool,
    /// Factor and term a channel, if pixels are normalised.
    pub normalise: Option<[&'a [f64]; 2]>,
}

/// A value of the graph as a place of the net: where axes of size 1 or their order make a difference, the graph's shape says.
#[derive(Clone, Copy)]
struct Low {
    place: Place,
    /// Whether the graph has this map's channels last.
    channels_last: bool,
}

/// The graph from images to each of the values asked for.
///
/// # Errors
/// Where a node has no counterpart (the error names it), and those of the parameters.
pub fn lower(graph: &Graph, shapes: &Shapes, entry: &Entry, weights: &Weights, asked: &[usize]) -> Result<Vec<Net>> {
    let mut net = NetBuilder::new(entry.image);
    let mut place = net.input();
    if let Some([scale, shift]) = entry.normalise {
        place = net.scale(place, scale, shift)?;
    }
    let first = Low {
        place,
        channels_last: entry.channels_last,
    };
    let mut lowering = Lowering {
        net,
        graph,
        shapes,
        weights,
        low: HashMap::from([(graph.input.value, first)]),
        made: HashMap::new(),
    };
    for node in &graph.nodes {
        lowering.node(node).map_err(|e| e.context(node.label()))?;
    }
    (asked.iter())
        .map(|value| {
            let low = lowering.value(*value)?;
            let place = match lowering.shape(*value)?.len() {
                1 => lowering.flat(low)?,
                _ => lowering.map(*value, low)?,
            };
            lowering.net.build(place)
        })
        .collect()
}

struct Lowering<'a> {
    net: NetBuilder,
    graph: &'a Graph,
    shapes: &'a Shapes,
    weights: &'a Weights,
    low: HashMap<usize, Low>,
    /// How many parameters were made of a constant.
    made: HashMap<usize, usize>,
}

impl<'a> Lowering<'a> {
    fn node(&mut self, node: &Node) -> Result<()> {
        let Some(output) = node.outputs.first().copied().flatten() else {
            bail!("it has no output")
        };
        if self.low.contains_key(&output) {
            // Taken along by the node before it.
            return Ok(());
        }
        if node.outputs.iter().skip(1).flatten().next().is_some() && node.op != "Dropout" {
            bail!("it has several outputs")
        }
        // What is computed from shapes shows in the shapes; who reads it otherwise finds nothing here.
        if !self.is_images(output) {
            return Ok(());
        }
        let low = match node.op.as_str() {
            "Identity" | "Dropout" => self.given(node, 0)?,
            "Relu" => self.same(node, |net, x| Ok(net.relu(x)))?,
            "Sigmoid" => self.same(node, |net, x| Ok(net.sigmoid(x)))?,
            "Conv" => self.conv(node)?,
            "ConvTranspose" => self.conv_transpose(node)?,
            "BatchNormalization" => self.batch_norm(node)?,
            "Gemm" => self.gemm(node)?,
            "MatMul" => self.matmul(node)?,
            "MaxPool" | "AveragePool" => self.pool(node)?,
            "GlobalAveragePool" | "ReduceMean" => self.mean(node, output)?,
            "Resize" | "Upsample" => self.resize(node)?,
            "Concat" => self.concat(node)?,
            "Add" | "Sub" | "Mul" | "Div" => self.arithmetic(node, output)?,
            "Transpose" => self.transpose(node)?,
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.reshape(node)?,
            "Pad" => match self.pad(node, output)? {
                Some(low) => low,
                None => return Ok(()),
            },
            _ => bail!("no node of a fused net"),
        };
        self.low.insert(output, low);
        Ok(())
    }

    /// Whether a value has a row an image: its first axis alone depends on how many there are.
    fn is_images(&self, value: usize) -> bool {
        let [two, three] = self.shapes.each_ref().map(|shapes| shapes.get(&value));
        match (two, three) {
            (Some(two), Some(three)) => two.first() == Some(&2) && three.first() == Some(&3) && two[1..] == three[1..],
            _ => false,
        }
    }

    /// Shape of a value for one image, as the graph has it.
    fn shape(&self, value: usize) -> Result<&[usize]> {
        match self.shapes[0].get(&value) {
            Some(dims) if !dims.is_empty() => Ok(&dims[1..]),
            _ => bail!("'{}' has no shape", self.graph.names[value]),
        }
    }

    fn value(&self, value: usize) -> Result<Low> {
        match self.low.get(&value) {
            Some(low) => Ok(*low),
            None => bail!("'{}' is no map of the images", self.graph.names[value]),
        }
    }

    fn number(&self, node: &Node, i: usize) -> Result<usize> {
        match node.inputs.get(i).copied().flatten() {
            Some(value) => Ok(value),
            None => bail!("input number {i} is missing"),
        }
    }

    fn given(&self, node: &Node, i: usize) -> Result<Low> {
        self.value(self.number(node, i)?)
    }

    /// Input `i` as a map `[C, H, W]`.
    fn input(&self, node: &Node, i: usize) -> Result<Place> {
        let value = self.number(node, i)?;
        self.map(value, self.value(value)?)
    }

    fn map(&self, value: usize, low: Low) -> Result<Place> {
        match !low.channels_last && self.shape(value)? == self.net.shape(low.place) {
            true => Ok(low.place),
            false => bail!("'{}' is no map of channels, rows and columns", self.graph.names[value]),
        }
    }

    /// That a value is a map, channels first or last.
    fn arranged(&self, value: usize, low: Low) -> Result<()> {
        let [c, h, w] = self.net.shape(low.place);
        let own = if low.channels_last { [h, w, c] } else { [c, h, w] };
        match self.shape(value)? == own {
            true => Ok(()),
            false => bail!("'{}' is no map of channels, rows and columns", self.graph.names[value]),
        }
    }

    /// A value as a vector, in the order of the graph.
    fn flat(&mut self, low: Low) -> Result<Place> {
        let [c, h, w] = self.net.shape(low.place);
        if low.channels_last && c > 1 && h * w > 1 {
            bail!("its elements lie channels last")
        }
        Ok(match h * w {
            1 if self.net.is_flat(low.place) => low.place,
            _ => self.net.flatten(low.place),
        })
    }

    /// Element by element, whatever the order.
    fn same(&mut self, node: &Node, f: impl FnOnce(&mut NetBuilder, Place) -> Result<Place>) -> Result<Low> {
        let low = self.given(node, 0)?;
        let place = f(&mut self.net, low.place)?;
        Ok(Low { place, ..low })
    }

    fn constant(&self, node: &Node, i: usize) -> Option<&'a Tensor> {
        let value = node.inputs.get(i).copied().flatten()?;
        self.graph.constants.get(&value)
    }

    /// A parameter that begins as the constant that it is named after, arranged as its layer has it.
    fn param(&mut self, node: &Node, i: usize, arrange: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Param> {
        let Some(constant) = self.constant(node, i) else {
            bail!("input number {i} is no constant")
        };
        let Some(role) = role(node, i, constant) else {
            bail!("input number {i} is no parameter")
        };
        // Exporters write equal constants once: layers that read the same one get one each, to be trained apart.
        let value = self.number(node, i)?;
        let mut name = self.graph.names[value].clone();
        let before = self.made.entry(value).or_default();
        *before += 1;
        if *before > 1 {
            name += &format!(".{before}");
        }
        self.weights
            .given(&name, &arrange(constant)?, role.init, role.trainable)
    }

    /// A bias of zeros, for layers that have none in the file.
    fn no_bias(&self, node: &Node, size: usize) -> Result<Param> {
        let zeros = Tensor::zeros(size, DType::F64, &advae_sdk::candle_core::Device::Cpu)?;
        let name = format!("{}.no_bias", node.name);
        self.weights.given(&name, &zeros, Init::Zeros, false)
    }

    fn map_low(place: Place) -> Low {
        Low {
            place,
            channels_last: false,
        }
    }

    fn conv(&mut self, node: &Node) -> Result<Low> {
        let Some(weight) = self.constant(node, 1) else {
            bail!("its weight is no constant")
        };
        let &[_, _, kh, kw] = weight.dims() else {
            bail!("it is no convolution of images")
        };
        let (x, mut pads) = self.padded(node)?;
        let [_, h, w] = self.net.shape(x);
        let windows = Spatial::new(node, &[h, w], &[kh, kw])?;
        for (more, own) in pads.iter_mut().zip(&windows.pads) {
            *more = [more[0] + own[0], more[1] + own[1]];
        }
        if node.int("group", 1) != 1 || windows.dilations != [1, 1] || windows.strides[0] != windows.strides[1] {
            bail!("groups, dilations and unequal strides are no form of a fused convolution")
        }
        let stride = windows.strides[0];
        let padding = padding([h, w], [kh, kw], stride, &pads)?;
        let weight = self.param(node, 1, |w| Ok(w.clone()))?;
        let bias = match self.constant(node, 2) {
            Some(_) => Some(self.param(node, 2, |b| b.flatten_all())?),
            None if node.inputs.get(2).copied().flatten().is_some() => bail!("its bias is no constant"),
            None => None,
        };
        let place = self
            .net
            .conv2d(x, &Conv2d::from_params(weight, bias, stride, padding))?;
        Ok(Self::map_low(place))
    }

    /// The map that a convolution reads, without the zeros that a node before it puts around.
    fn padded(&self, node: &Node) -> Result<(Place, Vec<[usize; 2]>)> {
        let value = self.number(node, 0)?;
        let made = self.graph.maker(value).filter(|maker| maker.op == "Pad");
        let (Some(pad), false) = (made, self.low.contains_key(&value)) else {
            return Ok((self.input(node, 0)?, vec![[0, 0]; 2]));
        };
        Ok((self.input(pad, 0)?, self.zeros_around(pad)?))
    }

    /// Zeros around rows and columns, if a node does nothing else.
    fn zeros_around(&self, node: &Node) -> Result<Vec<[usize; 2]>> {
        let widths: Vec<i64> = match (self.constant(node, 1), node.ints("pads")) {
            (Some(widths), _) => widths.to_vec1()?,
            (None, Some(widths)) => widths.to_vec(),
            (None, None) => bail!("its widths are no constants"),
        };
        let number = match self.constant(node, 2) {
            Some(value) => value
                .to_dtype(DType::F64)?
                .flatten_all()?
                .to_vec1()?
                .first()
                .copied()
                .unwrap_or(0.),
            None => node.float("value", 0.),
        };
        let axes = node.inputs.get(3).copied().flatten();
        match widths.as_slice() {
            &[0, 0, top, left, 0, 0, bottom, right]
                if axes.is_none() && node.text("mode", "constant") == "constant" && number == 0. =>
            {
                let width = |v: i64| usize::try_from(v).or_else(|_| bail!("it cuts"));
                Ok(vec![[width(top)?, width(bottom)?], [width(left)?, width(right)?]])
            }
            _ => bail!("it puts something else than zeros around rows and columns"),
        }
    }

    /// Zeros go into the convolutions that read them; none where they do.
    fn pad(&mut self, node: &Node, output: usize) -> Result<Option<Low>> {
        if self.zeros_around(node)?.iter().all(|pads| *pads == [0, 0]) {
            return self.given(node, 0).map(Some);
        }
        match output != self.graph.output && self.graph.readers(output).all(|(_, reader)| reader.op == "Conv") {
            true => Ok(None),
            false => bail!("zeros around a map that not only convolutions read"),
        }
    }

    fn conv_transpose(&mut self, node: &Node) -> Result<Low> {
        let x = self.input(node, 0)?;
        let Some(weight) = self.constant(node, 1) else {
            bail!("its weight is no constant")
        };
        let &[_, outputs, kh, kw] = weight.dims() else {
            bail!("it is no convolution of images")
        };
        let numbers = |name: &str, default: i64| node.ints(name).map_or(vec![default; 2], <[i64]>::to_vec);
        let (strides, pads) = (numbers("strides", 1), pads_of(node, 2)?);
        let plain = node.int("group", 1) == 1
            && numbers("dilations", 1) == [1, 1]
            && node.text("auto_pad", "NOTSET") == "NOTSET"
            && node.ints("output_shape").is_none()
            && strides[0] == strides[1]
            && pads.iter().flatten().all(|p| *p == pads[0][0]);
        if !plain {
            bail!("no form of a fused transposed convolution")
        }
        let [_, h, w] = self.net.shape(x);
        let (stride, zeros) = (strides[0] as usize, pads[0][0]);
        let more = numbers("output_padding", 0);
        let size = |size: usize, kernel: usize, more: i64| {
            ((size - 1) * stride + kernel + more as usize).checked_sub(2 * zeros)
        };
        let (Some(rows), Some(columns)) = (size(h, kh, more[0]), size(w, kw, more[1])) else {
            bail!("more zeros than places")
        };
        let weight = self.param(node, 1, |w| Ok(w.clone()))?;
        let bias = match self.constant(node, 2) {
            Some(_) => self.param(node, 2, |b| b.flatten_all())?,
            None => self.no_bias(node, outputs)?,
        };
        let padding = if zeros == 0 {
            Padding::Valid
        } else {
            Padding::Zeros(zeros)
        };
        let layer = ConvTranspose2d::from_params(weight, bias, stride, padding).with_output([rows, columns]);
        let place = self.net.conv_transpose2d(x, &layer)?;
        Ok(Self::map_low(place))
    }

    fn batch_norm(&mut self, node: &Node) -> Result<Low> {
        let epsilon = node.float("epsilon", 1e-5);
        let value = self.number(node, 0)?;
        let (low, vector) = (self.value(value)?, self.shape(value)?.len() == 1);
        if node.int("training_mode", 0) != 0 {
            bail!("it normalises by the statistics of the batch")
        }
        if !vector && (epsilon - BatchNorm2d::EPSILON).abs() < 1e-9 {
            let x = self.input(node, 0)?;
            let [scale, shift, mean, var] = [1, 2, 3, 4].map(|i| self.param(node, i, |p| p.flatten_all()));
            let place = self
                .net
                .batch_norm(x, &BatchNorm2d::from_params(scale?, shift?, mean?, var?))?;
            return Ok(Self::map_low(place));
        }
        // Of another epsilon, it stays as it is in training.
        let numbers = |i: usize| match self.constant(node, i) {
            Some(values) => values.flatten_all()?.to_vec1::<f64>(),
            None => bail!("input number {i} is no constant"),
        };
        let [gamma, beta, mean, var] = [1, 2, 3, 4].map(numbers);
        let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
        let scale: Vec<f64> = gamma.iter().zip(&var).map(|(g, v)| g / (v + epsilon).sqrt()).collect();
        let shift: Vec<f64> = (beta.iter().zip(&mean).zip(&scale))
            .map(|((b, m), s)| b - m * s)
            .collect();
        let place = if vector { self.flat(low)? } else { self.map(value, low)? };
        Ok(Self::map_low(self.net.scale(place, &scale, &shift)?))
    }

    fn gemm(&mut self, node: &Node) -> Result<Low> {
        if node.int("transA", 0) != 0 || node.float("alpha", 1.) != 1. || node.float("beta", 1.) != 1. {
            bail!("factors and a turned first operand are no form of a linear layer")
        }
        let turned = node.int("transB", 0) == 0;
        let weight = self.param(node, 1, |w| if turned { w.t()?.contiguous() } else { Ok(w.clone()) })?;
        let outputs = weight.var().dims()[0];
        let bias = match self.constant(node, 2) {
            Some(_) => self.param(node, 2, |b| b.broadcast_as((1, outputs))?.contiguous()?.flatten_all())?,
            None if node.inputs.get(2).copied().flatten().is_some() => bail!("its bias is no constant"),
            None => self.no_bias(node, outputs)?,
        };
        self.linear(node, weight, bias)
    }

    fn linear(&mut self, node: &Node, weight: Param, bias: Param) -> Result<Low> {
        let value = self.number(node, 0)?;
        let low = self.value(value)?;
        if self.shape(value)?.len() != 1 {
            bail!("a product with something else than a vector an image")
        }
        let x = self.flat(low)?;
        let place = self.net.linear(x, &Linear::from_params(weight, bias))?;
        Ok(Self::map_low(place))
    }

    /// A product with a matrix, and the sum that follows it.
    fn matmul(&mut self, node: &Node) -> Result<Low> {
        match self.constant(node, 1).map(Tensor::rank) {
            Some(2) => {}
            _ => bail!("no product with a constant matrix"),
        }
        let weight = self.param(node, 1, |w| w.t()?.contiguous())?;
        let outputs = weight.var().dims()[0];
        let output = node.outputs.first().copied().flatten();
        let readers: Vec<&Node> = output.map_or(vec![], |v| self.graph.readers(v).map(|(_, n)| n).collect());
        if let [add] = readers.as_slice()
            && add.op == "Add"
            && output != Some(self.graph.output)
        {
            let other = usize::from(add.inputs.first().copied().flatten() == output);
            let fits = self
                .constant(add, other)
                .is_some_and(|b| b.dims().last() == Some(&outputs) && b.elem_count() == outputs);
            if fits && let Some(sum) = add.outputs.first().copied().flatten() {
                let bias = self.param(add, other, |b| b.flatten_all())?;
                let low = self.linear(node, weight, bias)?;
                self.low.insert(sum, low);
                return Ok(low);
            }
        }
        let bias = self.no_bias(node, outputs)?;
        self.linear(node, weight, bias)
    }

    fn pool(&mut self, node: &Node) -> Result<Low> {
        let x = self.input(node, 0)?;
        let [c, h, w] = self.net.shape(x);
        let windows = crate::ops::pooling(node, &[1, c, h, w])?;
        let place = match (windows.blocks(&[h, w]), node.op.as_str()) {
            (Some(k), "MaxPool") => self.net.max_pool2d(x, k)?,
            (Some(k), _) => self.net.avg_pool2d(x, k)?,
            (None, "AveragePool") if windows.kernel == [h, w] && windows.pads.iter().all(|p| *p == [0, 0]) => {
                self.net.global_avg_pool2d(x)?
            }
            _ => bail!("windows that overlap or have zeros around them are no form of a fused pooling"),
        };
        Ok(Self::map_low(place))
    }

    fn mean(&mut self, node: &Node, output: usize) -> Result<Low> {
        let value = self.number(node, 0)?;
        let low = self.value(value)?;
        let rank = self.shape(value)?.len() + 1;
        if node.op == "ReduceMean" {
            let axes: Option<Vec<i64>> = match (self.constant(node, 1), node.ints("axes")) {
                (Some(axes), _) => Some(axes.flatten_all()?.to_vec1()?),
                (None, axes) => axes.map(<[i64]>::to_vec),
            };
            let mut axes = axes.unwrap_or_default();
            axes.iter_mut().filter(|a| **a < 0).for_each(|a| *a += rank as i64);
            axes.sort_unstable();
            let wanted = if low.channels_last { [1, 2] } else { [2, 3] };
            if rank != 4 || axes != wanted {
                bail!("no mean over rows and columns")
            }
        } else if low.channels_last || rank != 4 {
            bail!("no mean over rows and columns")
        }
        self.arranged(value, low)?;
        let place = self.net.global_avg_pool2d(low.place)?;
        let low = Low { place, ..low };
        match self.shape(output)?.len() {
            1 => Ok(Self::map_low(self.flat(low)?)),
            _ => Ok(low),
        }
    }

    fn resize(&mut self, node: &Node) -> Result<Low> {
        let x = self.input(node, 0)?;
        let [c, h, w] = self.net.shape(x);
        let mut inputs = vec![None];
        for i in 1..node.inputs.len() {
            let constant = self.constant(node, i).cloned();
            if constant.is_none() && node.inputs[i].is_some() {
                bail!("its factors are no constants")
            }
            inputs.push(constant);
        }
        let room = Room::new(1, self.graph.work);
        let factor = repeats(&Call::new(node, inputs, &room), &[1, c, h, w])?;
        let Some(factor) = factor else {
            bail!("it does not repeat rows and columns alone")
        };
        let place = self.net.upsample_nearest2d(x, factor)?;
        Ok(Self::map_low(place))
    }

    fn concat(&mut self, node: &Node) -> Result<Low> {
        let rank = self.shape(self.number(node, 0)?)?.len() + 1;
        let axis = crate::ops::axis(node.int("axis", 1), rank)?;
        if rank != 4 || axis != 1 {
            bail!("no maps one after the other")
        }
        let xs: Vec<Place> = (0..node.inputs.len())
            .map(|i| self.input(node, i))
            .collect::<Result<_>>()?;
        let place = self.net.concat(&xs)?;
        Ok(Self::map_low(place))
    }

    /// Sums of two maps, and constants a channel.
    fn arithmetic(&mut self, node: &Node, output: usize) -> Result<Low> {
        let [a, b] = [self.number(node, 0)?, self.number(node, 1)?];
        let maps = [a, b].map(|value| self.low.get(&value).copied());
        let (value, low, constant, first) = match maps {
            [Some(x), Some(y)] => {
                if node.op != "Add" || self.shape(a)? != self.shape(b)? || x.channels_last != y.channels_last {
                    bail!("no sum of two maps of one shape")
                }
                let place = match self.shape(a)?.len() {
                    1 => {
                        let (x, y) = (self.flat(x)?, self.flat(y)?);
                        self.net.add(x, y)?
                    }
                    _ => self.net.add(x.place, y.place)?,
                };
                return Ok(Low { place, ..x });
            }
            [Some(x), None] => (a, x, self.constant(node, 1), true),
            [None, Some(y)] => (b, y, self.constant(node, 0), false),
            [None, None] => bail!("no map of the images"),
        };
        let Some(constant) = constant else {
            bail!("neither a map of the images nor a constant")
        };
        if self.shape(value)? != self.shape(output)? {
            bail!("its constant is larger than its map")
        }
        let numbers = self.by_channel(value, low, constant)?;
        let (scale, shift): (Vec<f64>, Vec<f64>) = (numbers.iter())
            .map(|c| match (node.op.as_str(), first) {
                ("Add", _) => Ok((1., *c)),
                ("Mul", _) => Ok((*c, 0.)),
                ("Sub", true) => Ok((1., -c)),
                ("Sub", false) => Ok((-1., *c)),
                ("Div", true) => Ok((1. / c, 0.)),
                _ => bail!("a constant divided by a map"),
            })
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let place = match self.shape(value)?.len() {
            1 => self.flat(low)?,
            _ => low.place,
        };
        let place = self.net.scale(place, &scale, &shift)?;
        Ok(Low { place, ..low })
    }

    /// A constant that broadcasts to a map, as a number a channel.
    fn by_channel(&self, value: usize, low: Low, constant: &Tensor) -> Result<Vec<f64>> {
        let shape = self.shape(value)?;
        let [c, h, w] = self.net.shape(low.place);
        let channel = match (shape.len(), low.channels_last) {
            (1, _) => 0,
            (3, false) => 0,
            (3, true) => 2,
            _ => bail!("a constant beside something else than a map or a vector"),
        };
        let channels = if shape.len() == 1 { c * h * w } else { c };
        if shape.len() == 3 {
            self.arranged(value, low)?;
        }
        // Axes from the last, the batch's included.
        let from_end = shape.len() - 1 - channel;
        let dims = constant.dims();
        let fits = (dims.iter().rev().enumerate()).all(|(i, d)| *d == 1 || (i == from_end && *d == channels));
        if !fits {
            bail!("its constant {dims:?} is no number a channel")
        }
        let numbers: Vec<f64> = constant.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
        Ok(match numbers.as_slice() {
            [one] => vec![*one; channels],
            _ => numbers,
        })
    }

    fn transpose(&mut self, node: &Node) -> Result<Low> {
        let low = self.given(node, 0)?;
        match (node.ints("perm"), low.channels_last) {
            (Some([0, 3, 1, 2]), true) => Ok(Low {
                channels_last: false,
                ..low
            }),
            (Some([0, 2, 3, 1]), false) => Ok(Low {
                channels_last: true,
                ..low
            }),
            _ => bail!("no change between channels first and channels last"),
        }
    }

    /// Other axes for the same elements in the same order: who reads them looks whether they are a map or a vector.
    fn reshape(&mut self, node: &Node) -> Result<Low> {
        let low = self.given(node, 0)?;
        let [c, h, w] = self.net.shape(low.place);
        if low.channels_last && c > 1 && h * w > 1 {
            bail!("elements that lie channels last are arranged anew")
        }
        Ok(Self::map_low(low.place))
    }
}

/// A convolution's padding, from the zeros around rows and columns.
fn padding([h, w]: [usize; 2], [kh, kw]: [usize; 2], stride: usize, pads: &[[usize; 2]]) -> Result<Padding> {
    let zeros = pads[0][0];
    if pads.iter().flatten().all(|p| *p == zeros) {
        return Ok(if zeros == 0 {
            Padding::Valid
        } else {
            Padding::Zeros(zeros)
        });
    }
    // TensorFlow's: the odd zero behind.
    let same = |size: usize, kernel: usize| {
        let total = ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
        [total / 2, total - total / 2]
    };
    match pads {
        [rows, columns] if *rows == same(h, kh) && *columns == same(w, kw) => Ok(Padding::Same),
        _ => bail!("zeros {pads:?} around a map are no form of a fused convolution"),
    }
}
