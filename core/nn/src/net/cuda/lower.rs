//! From a graph to what a GPU does: correlations, products, and kernels an element a turn.
//!
//! What the processor fuses into a convolution's registers is one kernel behind it here: bias, folded norm, `relu`, pooling or
//! upsampling. All maps of a batch are in memory; what the way back needs of a `relu` is read off its result.

use std::fmt::Write;

use candle_core::{DType, Device, Result, Tensor, bail};

use super::super::draft::{Draft, DraftKind, Drafts};
use super::super::graph::{Graph, Output};
use super::super::operators::Elementwise;
use super::super::step::Post;
use crate::kernels::conv::Correlation;
use crate::kernels::geometry::Geometry;
use crate::{BatchNorm2d, Param, Pass};

/// The functions that kernels call.
const FUNCTIONS: &str = include_str!("kernels.c");

/// The order of maps `[N, C, H, W]` in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Channel by channel, as images come.
    Planes,
    /// Channels last: what tensor cores read.
    ChannelsLast,
}

/// Numbers of one kind, as many for every image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// So many `f32`.
    Floats(usize),
    /// So many bytes.
    Bytes(usize),
}

/// Numbers that are the same for all images.
pub enum Constant {
    /// Of a convolution `[c_out, c_in, kh, kw]`, with the norm behind it; `transposed`: its channels are `c_in`.
    Weight {
        param: Param,
        norm: Option<BatchNorm2d>,
        transposed: bool,
        /// Shape in which its second axis goes last, if it does.
        last: Option<Vec<usize>>,
    },
    /// Of a convolution or fully connected layer of so many channels.
    Bias {
        param: Option<Param>,
        norm: Option<BatchNorm2d>,
        channels: usize,
    },
    /// Scale (0) or shift (1) of a norm.
    Norm(BatchNorm2d, usize),
    Fixed(Vec<f64>),
}

/// One launch.
pub enum Launch {
    /// A convolution from one buffer to another, or its transpose; the result is written, or added.
    Conv {
        conv: usize,
        from: usize,
        to: usize,
        transposed: bool,
        add: bool,
    },
    /// `x W^T` of rows `x`, or its transpose `x W`.
    Product {
        weight: usize,
        inputs: usize,
        outputs: usize,
        from: usize,
        to: usize,
        transposed: bool,
        add: bool,
    },
    /// Kernel number so and so, with as many elements an image.
    Kernel {
        number: usize,
        elements: usize,
        arguments: Vec<Argument>,
        /// The function it calls.
        name: &'static str,
    },
}

/// What a kernel is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    Buffer(usize),
    Constant(usize),
}

/// A convolution that pads alike on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub geometry: Geometry,
    pub weight: usize,
}

/// A network for a GPU.
pub struct Program {
    pub order: Order,
    pub buffers: Vec<Buffer>,
    pub constants: Vec<Constant>,
    pub convs: Vec<Conv>,
    pub forward: Vec<Launch>,
    pub backward: Vec<Launch>,
    /// Buffers in the order of images: images, outputs, the gradient at the outputs and at the images.
    pub images: usize,
    pub outputs: usize,
    pub output_slope: usize,
    pub image_slope: usize,
    pub output: Output,
    /// One line a kernel.
    kernels: String,
    count: usize,
}

impl Program {
    /// The part of the graph that `output` needs.
    ///
    /// # Errors
    /// Where an operator has no kernel.
    pub fn new(graph: &Graph, output: usize, order: Order) -> Result<Program> {
        let drafts = Drafts::new(graph, output, false);
        let mut program = Program {
            order,
            buffers: vec![],
            constants: vec![],
            convs: vec![],
            forward: vec![],
            backward: vec![],
            images: 0,
            outputs: 0,
            output_slope: 0,
            image_slope: 0,
            output: graph.0[output].output(),
            kernels: String::new(),
            count: 0,
        };
        let floats = |shape: &[usize; 3]| Buffer::Floats(shape.iter().product());
        let mut lowering = Lowering {
            values: drafts.shapes.iter().map(|s| program.buffer(floats(s))).collect(),
            slopes: drafts.shapes.iter().map(|s| program.buffer(floats(s))).collect(),
            shapes: drafts.shapes.clone(),
            written: vec![false; drafts.shapes.len()],
            backs: vec![],
            program: &mut program,
        };
        lowering.ends(drafts.output);
        for draft in &drafts.steps {
            lowering.step(draft)?;
        }
        lowering.way_back(drafts.output)?;
        Ok(program)
    }

    /// The source of its kernels, `k0` and so on.
    pub fn source(&self) -> String {
        self.source_with(DEVICE_ENTRY)
    }

    /// The same for the processor, with an array of pointers in place of arguments.
    #[cfg(test)]
    pub fn host_source(&self) -> String {
        self.source_with(HOST_ENTRY)
    }

    fn source_with(&self, entry: &str) -> String {
        let last = usize::from(self.order == Order::ChannelsLast);
        format!("#define LAST {last}\n{FUNCTIONS}\n{entry}\n{}", self.kernels)
    }

    /// Number of kernels.
    pub fn kernels(&self) -> usize {
        self.count
    }

    /// Bytes an image takes.
    pub fn bytes(&self) -> usize {
        self.buffers.iter().map(|buffer| buffer.bytes()).sum()
    }

    /// The constants as they are now, in one row each.
    ///
    /// # Errors
    /// Where an operation fails.
    pub fn constants(&self, device: &Device) -> Result<Vec<Tensor>> {
        self.constants.iter().map(|constant| constant.value(device)).collect()
    }

    fn buffer(&mut self, buffer: Buffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    fn constant(&mut self, constant: Constant) -> usize {
        self.constants.push(constant);
        self.constants.len() - 1
    }

    /// A kernel that calls a function of `kernels.c` for each of so many elements an image: with its arguments and these numbers.
    fn kernel(&mut self, name: &'static str, elements: usize, arguments: &[Argument], numbers: &[usize]) -> Launch {
        let types = arguments.iter().map(|argument| match argument {
            Argument::Buffer(buffer) if matches!(self.buffers[*buffer], Buffer::Bytes(_)) => "byte *",
            _ => "float *",
        });
        let types: Vec<&str> = types.collect();
        let parameters: Vec<String> = types
            .iter()
            .enumerate()
            .map(|(i, t)| format!("{t}__restrict__ p{i}"))
            .collect();
        let casts: String = types.iter().enumerate().fold(String::new(), |mut text, (i, t)| {
            let _ = write!(text, "{t}p{i} = ({t})p[{i}]; ");
            text
        });
        let names = (0..types.len()).map(|i| format!("p{i}"));
        let call: Vec<String> = names.chain(numbers.iter().map(usize::to_string)).collect();
        let number = self.count;
        self.count += 1;
        let _ = writeln!(
            self.kernels,
            "KERNEL(k{number}, ({}), ({casts})) {{ EACH(i) {name}(i, {}); }} END",
            parameters.join(", "),
            call.join(", ")
        );
        Launch::Kernel {
            number,
            elements,
            arguments: arguments.to_vec(),
            name,
        }
    }
}

/// `KERNEL(name, parameters, casts) body END` on a GPU and on the processor.
const DEVICE_ENTRY: &str = "#define KERNEL(name, parameters, casts) ENTRY(name, WITH_TOTAL parameters)
#define WITH_TOTAL(...) (__VA_ARGS__, unsigned total)
#define ENTRY(name, parameters) extern \"C\" __global__ void __launch_bounds__(256) name parameters
#define END";
#[cfg(test)]
const HOST_ENTRY: &str = "#define KERNEL(name, parameters, casts) void name(void **p, unsigned total) { BARE casts
#define BARE(...) __VA_ARGS__
#define END }";

impl Buffer {
    /// Bytes an image.
    pub fn bytes(self) -> usize {
        match self {
            Buffer::Floats(n) => n * size_of::<f32>(),
            Buffer::Bytes(n) => n,
        }
    }
}

impl Constant {
    fn value(&self, device: &Device) -> Result<Tensor> {
        let now = |param: &Param| param.var().as_detached_tensor();
        let affine = |norm: &BatchNorm2d| norm.affine(&Pass::eval());
        let value = match self {
            Constant::Weight {
                param,
                norm,
                transposed,
                last,
            } => {
                let mut weight = now(param);
                if let Some(norm) = norm {
                    let [scale, _] = affine(norm)?;
                    let channels = scale.elem_count();
                    weight = match transposed {
                        true => weight.broadcast_mul(&scale.reshape((1, channels, 1, 1))?)?,
                        false => weight.broadcast_mul(&scale.reshape((channels, 1, 1, 1))?)?,
                    };
                }
                match last {
                    Some(shape) => weight.reshape(shape.as_slice())?.permute((0, 2, 3, 1))?.contiguous()?,
                    None => weight,
                }
            }
            Constant::Bias { param, norm, channels } => {
                let bias = match param {
                    Some(param) => now(param),
                    None => Tensor::zeros(*channels, DType::F32, device)?,
                };
                match norm {
                    Some(norm) => {
                        let [scale, shift] = affine(norm)?;
                        ((bias * scale)? + shift)?
                    }
                    None => bias,
                }
            }
            Constant::Norm(norm, which) => affine(norm)?[*which].clone(),
            Constant::Fixed(values) => Tensor::new(values.as_slice(), device)?,
        };
        value.to_dtype(DType::F32)?.flatten_all()?.contiguous()
    }
}

/// What the way back of a step does.
enum Back {
    Conv {
        source: usize,
        target: usize,
        post: Post,
        /// Where the convolution's result was, and its gradient will be, if that is no value; and which of a pool was largest.
        raw: Option<usize>,
        which: Option<usize>,
        result: [usize; 3],
        way: Way,
    },
    Norm {
        source: usize,
        target: usize,
        scale: usize,
        relu: bool,
    },
    Plain {
        sources: Vec<usize>,
        target: usize,
        operator: Elementwise,
        which: Option<usize>,
        scale: Option<usize>,
    },
    /// A map as a vector in the order of images.
    Widen { source: usize, target: usize },
}

/// How a layer with weights goes, forward; the other way it is the transpose.
#[derive(Clone, Copy)]
enum Way {
    Conv {
        conv: usize,
        transposed: bool,
        padding: Option<Padding>,
    },
    Product {
        weight: usize,
        inputs: usize,
        outputs: usize,
    },
}

/// Zeros that a convolution needs around its input where they are not alike on both sides.
#[derive(Clone, Copy)]
struct Padding {
    /// The map `[C, H, W]` with them.
    padded: [usize; 3],
    bare: [usize; 3],
    top: usize,
    left: usize,
    buffer: usize,
}

struct Lowering<'a> {
    program: &'a mut Program,
    /// Buffers of values and of their gradients.
    values: Vec<usize>,
    slopes: Vec<usize>,
    shapes: Vec<[usize; 3]>,
    /// Whether a gradient was written, so that more is added to it.
    written: Vec<bool>,
    backs: Vec<Back>,
}

use Argument::{Buffer as B, Constant as K};

impl Lowering<'_> {
    fn len(&self, value: usize) -> usize {
        self.shapes[value].iter().product()
    }

    fn push(&mut self, name: &'static str, elements: usize, arguments: &[Argument], numbers: &[usize]) {
        let launch = self.program.kernel(name, elements, arguments, numbers);
        self.program.forward.push(launch);
    }

    fn push_back(&mut self, name: &'static str, elements: usize, arguments: &[Argument], numbers: &[usize]) {
        let launch = self.program.kernel(name, elements, arguments, numbers);
        self.program.backward.push(launch);
    }

    /// Images and outputs in their own order: other buffers where memory has another.
    fn ends(&mut self, output: usize) {
        let same = |[c, h, w]: [usize; 3]| c == 1 || h * w == 1;
        let (input, out) = (self.shapes[0], self.shapes[output]);
        let planes = self.program.order == Order::Planes;
        let [images, image_slope] = match planes || same(input) {
            true => [self.values[0], self.slopes[0]],
            false => [0; 2].map(|_| self.program.buffer(Buffer::Floats(input.iter().product()))),
        };
        let [outputs, output_slope] = match planes || same(out) {
            true => [self.values[output], self.slopes[output]],
            false => [0; 2].map(|_| self.program.buffer(Buffer::Floats(out.iter().product()))),
        };
        (self.program.images, self.program.image_slope) = (images, image_slope);
        (self.program.outputs, self.program.output_slope) = (outputs, output_slope);
        if images != self.values[0] {
            self.push("take_in", self.len(0), &[B(images), B(self.values[0])], &input);
        }
    }

    fn step(&mut self, draft: &Draft) -> Result<()> {
        let target = draft.target;
        let (sources, shape) = (draft.sources.clone(), self.shapes[target]);
        let values: Vec<usize> = sources.iter().map(|s| self.values[*s]).collect();
        let (to, len) = (self.values[target], self.len(target));
        let [c, h, w] = shape;
        let back = match &draft.kind {
            DraftKind::Conv {
                weight,
                bias,
                correlation,
                norm,
                post,
            } => {
                let norm = norm.cloned();
                let way = self.way(weight, correlation, norm.clone(), self.shapes[sources[0]]);
                let result = correlation.output();
                let shift = self.program.constant(Constant::Bias {
                    param: bias.cloned(),
                    norm: norm.clone(),
                    channels: result[0],
                });
                let biased = bias.is_some() || norm.is_some();
                let raw = match post {
                    Post::None | Post::Relu => None,
                    _ => Some(self.program.buffer(Buffer::Floats(result.iter().product()))),
                };
                self.go(way, values[0], raw.unwrap_or(to), false, false);
                let mut which = None;
                match (*post, raw) {
                    (Post::Pool { relu }, Some(raw)) => {
                        let bytes = self.program.buffer(Buffer::Bytes(len));
                        which = Some(bytes);
                        let numbers = [c, h, w, result[1], result[2], usize::from(relu)];
                        self.push("bias_pool", len, &[B(raw), K(shift), B(to), B(bytes)], &numbers);
                    }
                    (Post::Upsample, Some(raw)) => {
                        self.push("bias_upsample", len, &[B(raw), K(shift), B(to)], &shape);
                    }
                    (post, _) if biased || post == Post::Relu => {
                        let relu = usize::from(post == Post::Relu);
                        self.push("bias", len, &[B(to), K(shift)], &[c, h, w, relu]);
                    }
                    _ => {}
                }
                Back::Conv {
                    source: sources[0],
                    target,
                    post: *post,
                    raw,
                    which,
                    result,
                    way,
                }
            }
            DraftKind::Norm(norm, relu) => {
                let [scale, shift] = [0, 1].map(|i| self.program.constant(Constant::Norm((*norm).clone(), i)));
                let numbers = [c, h, w, usize::from(*relu)];
                self.push("affine", len, &[B(values[0]), K(scale), K(shift), B(to)], &numbers);
                Back::Norm {
                    source: sources[0],
                    target,
                    scale,
                    relu: *relu,
                }
            }
            DraftKind::Widen => {
                self.push(
                    "give_out",
                    len,
                    &[B(values[0]), B(to)],
                    &with(self.shapes[sources[0]], &[0]),
                );
                Back::Widen {
                    source: sources[0],
                    target,
                }
            }
            DraftKind::Plain(operator) => {
                let Some(operator) = operator.elementwise() else {
                    bail!("{operator:?} has no kernel for a GPU")
                };
                self.plain(operator, &sources, target)?
            }
        };
        self.backs.push(back);
        Ok(())
    }

    fn plain(&mut self, operator: Elementwise, sources: &[usize], target: usize) -> Result<Back> {
        let values: Vec<usize> = sources.iter().map(|s| self.values[*s]).collect();
        let (to, len) = (self.values[target], self.len(target));
        let shape @ [c, h, w] = self.shapes[target];
        let [_, sh, sw] = self.shapes[sources[0]];
        let (mut which, mut factors) = (None, None);
        match &operator {
            Elementwise::Add => self.push("add", len, &[B(values[0]), B(values[1]), B(to)], &[]),
            Elementwise::Concat => {
                let mut first = 0;
                for source in sources {
                    let own = self.shapes[*source];
                    let arguments = [B(self.values[*source]), B(to)];
                    self.push("concat", self.len(*source), &arguments, &with(own, &[c, first]));
                    first += own[0];
                }
            }
            Elementwise::MaxPool(k) => {
                let bytes = self.program.buffer(Buffer::Bytes(len));
                which = Some(bytes);
                self.push(
                    "max_pool",
                    len,
                    &[B(values[0]), B(to), B(bytes)],
                    &[c, h, w, sh, sw, *k],
                );
            }
            Elementwise::AveragePool([kh, kw]) => {
                self.push(
                    "average_pool",
                    len,
                    &[B(values[0]), B(to)],
                    &[c, h, w, sh, sw, *kh, *kw],
                );
            }
            Elementwise::Relu => self.push("relu", len, &[B(values[0]), B(to)], &[]),
            Elementwise::Sigmoid => self.push("sigmoid", len, &[B(values[0]), B(to)], &[]),
            Elementwise::Upsample(k) => self.push("upsample", len, &[B(values[0]), B(to)], &with(shape, &[*k])),
            Elementwise::Scale(scale, shift) => {
                let scale = self.program.constant(Constant::Fixed(scale.clone()));
                let shift = self.program.constant(Constant::Fixed(shift.clone()));
                factors = Some(scale);
                self.push(
                    "affine",
                    len,
                    &[B(values[0]), K(scale), K(shift), B(to)],
                    &with(shape, &[0]),
                );
            }
        }
        Ok(Back::Plain {
            sources: sources.to_vec(),
            target,
            operator,
            which,
            scale: factors,
        })
    }

    /// How a layer with weights goes.
    fn way(&mut self, weight: &Param, correlation: &Correlation, norm: Option<BatchNorm2d>, source: [usize; 3]) -> Way {
        let Correlation {
            geometry: g,
            transposed,
        } = *correlation;
        let last = self.program.order == Order::ChannelsLast;
        let constant = |last: Option<Vec<usize>>| Constant::Weight {
            param: weight.clone(),
            norm,
            transposed,
            last,
        };
        let whole = (g.h_out, g.w_out, g.top, g.left) == (1, 1, 0, 0) && (g.kh, g.kw) == (g.h, g.w);
        if whole && !transposed {
            let shape = (last && g.taps() > 1).then(|| vec![g.c_out, source[0], source[1], source[2]]);
            return Way::Product {
                weight: self.program.constant(constant(shape)),
                inputs: g.c_in * g.taps(),
                outputs: g.c_out,
            };
        }
        let shape = (last && g.taps() > 1).then(|| vec![g.c_out, g.c_in, g.kh, g.kw]);
        let weight = self.program.constant(constant(shape));
        // What it gives where zeros are alike on both sides.
        let alike =
            |size: usize, k: usize, before: usize| (size + 2 * before).checked_sub(k).map(|room| room / g.stride + 1);
        let symmetric = alike(g.h, g.kh, g.top) == Some(g.h_out) && alike(g.w, g.kw, g.left) == Some(g.w_out);
        let (geometry, padding) = match symmetric {
            true => (g, None),
            false => {
                let border = g.reach();
                let padded = [
                    g.c_in,
                    g.h + border.top + border.bottom,
                    g.w + border.left + border.right,
                ];
                let padding = Padding {
                    padded,
                    bare: g.input(),
                    top: border.top,
                    left: border.left,
                    buffer: self.program.buffer(Buffer::Floats(padded.iter().product())),
                };
                let geometry = Geometry {
                    h: padded[1],
                    w: padded[2],
                    top: 0,
                    left: 0,
                    ..g
                };
                (geometry, Some(padding))
            }
        };
        self.program.convs.push(Conv { geometry, weight });
        Way::Conv {
            conv: self.program.convs.len() - 1,
            transposed,
            padding,
        }
    }

    /// A layer with weights from one buffer to another, or its transpose; forward or on the way back.
    fn go(&mut self, way: Way, from: usize, to: usize, backward: bool, add: bool) {
        let mut launches = vec![];
        match way {
            Way::Product {
                weight,
                inputs,
                outputs,
            } => launches.push(Launch::Product {
                weight,
                inputs,
                outputs,
                from,
                to,
                transposed: backward,
                add,
            }),
            Way::Conv {
                conv,
                transposed,
                padding,
            } => {
                let transposed = transposed != backward;
                let conv = |from, to, add| Launch::Conv {
                    conv,
                    from,
                    to,
                    transposed,
                    add,
                };
                match padding {
                    None => launches.push(conv(from, to, add)),
                    Some(Padding {
                        padded,
                        bare,
                        top,
                        left,
                        buffer,
                    }) => {
                        let numbers = with(bare, &[padded[1], padded[2], top, left]);
                        if transposed {
                            launches.push(conv(from, buffer, false));
                            let numbers = [numbers.as_slice(), &[usize::from(add)]].concat();
                            let elements = bare.iter().product();
                            launches.push(self.program.kernel("crop", elements, &[B(buffer), B(to)], &numbers));
                        } else {
                            let elements = padded.iter().product();
                            launches.push(self.program.kernel("pad", elements, &[B(from), B(buffer)], &numbers));
                            launches.push(conv(buffer, to, add));
                        }
                    }
                }
            }
        }
        match backward {
            true => self.program.backward.append(&mut launches),
            false => self.program.forward.append(&mut launches),
        }
    }

    /// Marks a gradient as written: whether it was before.
    fn write(&mut self, value: usize) -> bool {
        std::mem::replace(&mut self.written[value], true)
    }

    fn way_back(&mut self, output: usize) -> Result<()> {
        let (out, outputs) = (self.shapes[output], self.program.outputs);
        if outputs != self.values[output] {
            self.push(
                "give_out",
                self.len(output),
                &[B(self.values[output]), B(outputs)],
                &with(out, &[0]),
            );
            let arguments = [B(self.program.output_slope), B(self.slopes[output])];
            self.push_back("take_in", self.len(output), &arguments, &out);
        }
        self.written[output] = true;
        for back in std::mem::take(&mut self.backs).into_iter().rev() {
            self.back(back);
        }
        if !self.written[0] {
            bail!("the output does not depend on the images");
        }
        if self.program.image_slope != self.slopes[0] {
            let arguments = [B(self.slopes[0]), B(self.program.image_slope)];
            self.push_back("give_out", self.len(0), &arguments, &with(self.shapes[0], &[0]));
        }
        Ok(())
    }

    fn back(&mut self, back: Back) {
        match back {
            Back::Conv {
                source,
                target,
                post,
                raw,
                which,
                result,
                way,
            } => {
                let (slope, value) = (self.slopes[target], self.values[target]);
                let [c, h, w] = self.shapes[target];
                let elements = result.iter().product();
                match (post, raw, which) {
                    (Post::Relu, ..) => self.push_back("relu_back_here", elements, &[B(slope), B(value)], &[]),
                    (Post::Pool { .. }, Some(raw), Some(which)) => {
                        let numbers = [c, h, w, result[1], result[2]];
                        self.push_back("pool_back", elements, &[B(slope), B(which), B(raw)], &numbers);
                    }
                    (Post::Upsample, Some(raw), _) => {
                        self.push_back(
                            "upsample_relu_back",
                            elements,
                            &[B(slope), B(value), B(raw)],
                            &[c, h, w],
                        );
                    }
                    _ => {}
                }
                let add = self.write(source);
                self.go(way, raw.unwrap_or(slope), self.slopes[source], true, add);
            }
            Back::Norm {
                source,
                target,
                scale,
                relu,
            } => {
                let add = self.write(source);
                let arguments = [
                    B(self.slopes[target]),
                    K(scale),
                    B(self.values[target]),
                    B(self.slopes[source]),
                ];
                let numbers = with(self.shapes[target], &[usize::from(relu), usize::from(add)]);
                self.push_back("affine_back", self.len(target), &arguments, &numbers);
            }
            Back::Widen { source, target } => {
                let add = usize::from(self.write(source));
                let arguments = [B(self.slopes[target]), B(self.slopes[source])];
                self.push_back(
                    "take_back",
                    self.len(source),
                    &arguments,
                    &with(self.shapes[source], &[add]),
                );
            }
            Back::Plain {
                sources,
                target,
                operator,
                which,
                scale,
            } => {
                let mut first = 0;
                for source in sources {
                    let own = self.shapes[source];
                    self.plain_back(&operator, source, target, [which, scale], first);
                    first += own[0];
                }
            }
        }
    }

    /// The gradient of one of an operator's sources, whose channels are those from `first` on where it is a part.
    fn plain_back(
        &mut self,
        operator: &Elementwise,
        source: usize,
        target: usize,
        [which, scale]: [Option<usize>; 2],
        first: usize,
    ) {
        let add = usize::from(self.write(source));
        let (from, to, value) = (B(self.slopes[target]), B(self.slopes[source]), B(self.values[target]));
        let own @ [_, sh, sw] = self.shapes[source];
        let shape @ [c, h, w] = self.shapes[target];
        let len = self.len(source);
        match operator {
            Elementwise::Add => self.push_back("copy", len, &[from, to], &[add]),
            Elementwise::Concat => self.push_back("concat_back", len, &[from, to], &with(own, &[c, first, add])),
            Elementwise::MaxPool(k) => {
                let which = B(which.unwrap_or_default());
                self.push_back("max_pool_back", len, &[from, which, to], &[c, h, w, sh, sw, *k, add]);
            }
            Elementwise::AveragePool([kh, kw]) => {
                self.push_back("average_pool_back", len, &[from, to], &[c, h, w, sh, sw, *kh, *kw, add]);
            }
            Elementwise::Relu => self.push_back("relu_back", len, &[from, value, to], &[add]),
            Elementwise::Sigmoid => self.push_back("sigmoid_back", len, &[from, value, to], &[add]),
            Elementwise::Upsample(k) => self.push_back("upsample_back", len, &[from, to], &with(shape, &[*k, add])),
            Elementwise::Scale(..) => {
                let arguments = [from, K(scale.unwrap_or_default()), value, to];
                self.push_back("affine_back", len, &arguments, &with(shape, &[0, add]));
            }
        }
    }
}

/// A shape, and more numbers.
fn with(shape: [usize; 3], more: &[usize]) -> Vec<usize> {
    [&shape, more].concat()
}
