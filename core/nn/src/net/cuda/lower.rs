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

/// Buffers begin at multiples of so many bytes.
const ALIGNED: usize = 256;

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
        /// Another shape and order of its axes, if it has one.
        axes: Option<(Vec<usize>, [usize; 4])>,
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

impl Launch {
    /// The buffers it reads and writes.
    fn buffers(&self) -> Vec<usize> {
        match self {
            Launch::Conv { from, to, .. } | Launch::Product { from, to, .. } => vec![*from, *to],
            Launch::Kernel { arguments, .. } => {
                let buffers = arguments.iter().filter_map(|argument| match argument {
                    Argument::Buffer(buffer) => Some(*buffer),
                    Argument::Constant(_) => None,
                });
                buffers.collect()
            }
        }
    }
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
        let count = drafts.shapes.len();
        let (mut maker, mut readers, mut summed) = (vec![None; count], vec![vec![]; count], vec![false; count]);
        for (i, draft) in drafts.steps.iter().enumerate() {
            maker[draft.target] = Some(i);
            draft.sources.iter().for_each(|source| readers[*source].push(i));
        }
        for draft in &drafts.steps {
            if let DraftKind::Plain(operator) = &draft.kind
                && matches!(operator.elementwise(), Some(Elementwise::Add))
            {
                let alone = |source: usize| readers[source].len() == 1 && source != drafts.output;
                draft.sources.iter().for_each(|source| summed[*source] = alone(*source));
            }
        }
        let mut lowering = Lowering {
            left: vec![None; count],
            gradients: vec![None; drafts.steps.len()],
            maker,
            readers,
            summed,
            values: drafts.shapes.iter().map(|s| program.buffer(floats(s))).collect(),
            slopes: drafts.shapes.iter().map(|s| program.buffer(floats(s))).collect(),
            shapes: drafts.shapes.clone(),
            written: vec![false; count],
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

    /// Where each buffer begins for so many images, and how many bytes they take together. Buffers that are never of use at the same time
    /// share memory; what the way back reads of the way forward stays, so that the way back may be gone again.
    pub fn places(&self, images: usize) -> (Vec<usize>, usize) {
        let lives = self.lives();
        let sizes: Vec<usize> = self
            .buffers
            .iter()
            .map(|b| (b.bytes() * images).next_multiple_of(ALIGNED))
            .collect();
        let mut order: Vec<usize> = (0..sizes.len()).filter(|i| lives[*i].is_some()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(sizes[*i]));
        let (mut places, mut placed, mut total) = (vec![0; sizes.len()], Vec::<usize>::new(), 0);
        for i in order {
            // The first gap between those that live at the same time.
            let together =
                |j: &usize| matches!((lives[i], lives[*j]), (Some([a, b]), Some([c, d])) if a <= d && c <= b);
            let mut others: Vec<usize> = placed.iter().copied().filter(together).collect();
            others.sort_by_key(|j| places[*j]);
            let mut place = 0;
            for j in others {
                if place + sizes[i] <= places[j] {
                    break;
                }
                place = place.max(places[j] + sizes[j]);
            }
            places[i] = place;
            total = total.max(place + sizes[i]);
            placed.push(i);
        }
        (places, total)
    }

    /// The first and the last launch that each buffer is of use in, numbered from the way forward to the way back.
    fn lives(&self) -> Vec<Option<[usize; 2]>> {
        let (forward, end) = (self.forward.len(), self.forward.len() + self.backward.len() + 1);
        let mut lives: Vec<Option<[usize; 2]>> = vec![None; self.buffers.len()];
        let mut live = |buffer: usize, at: usize| {
            let [first, last] = lives[buffer].get_or_insert([at, at]);
            (*first, *last) = ((*first).min(at), (*last).max(at));
        };
        live(self.images, 0);
        live(self.outputs, forward);
        live(self.output_slope, forward + 1);
        live(self.image_slope, end);
        for (i, launch) in self.forward.iter().chain(&self.backward).enumerate() {
            // The outputs leave between the ways.
            let at = if i < forward { i } else { i + 1 };
            launch.buffers().into_iter().for_each(|buffer| live(buffer, at));
        }
        for life in lives.iter_mut().flatten() {
            if life[0] < forward && life[1] > forward {
                life[1] = end;
            }
        }
        lives
    }

    /// Bytes an image takes.
    #[cfg(feature = "cudnn")]
    pub fn bytes(&self) -> usize {
        self.places(64).1.div_ceil(64)
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

    /// Takes back the kernel that was made last, the last of the way forward.
    fn forget_last(&mut self) {
        self.forward.pop();
        self.count -= 1;
        let end = self.kernels.trim_end().rfind('\n').map_or(0, |at| at + 1);
        self.kernels.truncate(end);
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
                axes,
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
                match axes {
                    Some((shape, [a, b, c, d])) => {
                        let weight = weight.reshape(shape.as_slice())?;
                        weight.permute((*a, *b, *c, *d))?.contiguous()?
                    }
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
#[derive(Clone)]
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
        /// What the convolution reads in place of its input, if it does.
        other: Option<Other>,
    },
    Product {
        weight: usize,
        inputs: usize,
        outputs: usize,
    },
    /// Few channels on one side.
    Narrow { weight: usize, geometry: Geometry },
}

/// A map that a convolution reads in place of its input, and how it is made.
#[derive(Clone, Copy)]
struct Other {
    buffer: usize,
    /// Its shape, and that of the input.
    shape: [usize; 3],
    input: [usize; 3],
    made: Made,
}

#[derive(Clone, Copy)]
enum Made {
    /// Zeros around the input, not as many on both sides: rows above, columns to the left.
    Padded([usize; 2]),
    /// The places that a convolution of one tap reads, at a stride: cuDNN's gradient of such a convolution takes many times as long.
    Every(usize),
}

struct Lowering<'a> {
    program: &'a mut Program,
    /// Buffers of values and of their gradients.
    values: Vec<usize>,
    slopes: Vec<usize>,
    shapes: Vec<[usize; 3]>,
    /// Whether a gradient was written, so that more is added to it.
    written: Vec<bool>,
    /// Values that a sum alone reads, and the bias that their convolution left to it.
    summed: Vec<bool>,
    left: Vec<Option<usize>>,
    /// The step that makes each value, and those that read it.
    maker: Vec<Option<usize>>,
    readers: Vec<Vec<usize>>,
    backs: Vec<Back>,
    /// Gradients of convolutions' results that another step found.
    gradients: Vec<Option<usize>>,
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
                if let Some(which) = self.fused(way, *post, [values[0], to], shift, len) {
                    self.backs.push(Back::Conv {
                        source: sources[0],
                        target,
                        post: *post,
                        raw,
                        which,
                        result,
                        way,
                    });
                    return Ok(());
                }
                let mut which = None;
                self.go(way, values[0], raw.unwrap_or(to), false, false);
                match (*post, raw) {
                    (Post::Pool { relu }, Some(raw)) => {
                        let bytes = self.program.buffer(Buffer::Bytes(len));
                        which = Some(bytes);
                        let numbers = [c, h, w, result[1], result[2], usize::from(relu)];
                        let peaks = self.peaks(raw, Some(shift), result, relu);
                        self.push(
                            "bias_pool",
                            len,
                            &[B(raw), K(shift), B(peaks), B(to), B(bytes)],
                            &numbers,
                        );
                    }
                    (Post::Upsample, Some(raw)) => {
                        self.push("bias_upsample", len, &[B(raw), K(shift), B(to)], &shape);
                    }
                    // The sum that reads it adds the bias, too.
                    (Post::None, _) if biased && self.summed[target] => self.left[target] = Some(shift),
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
                match self.program.forward.last() {
                    Some(Launch::Kernel {
                        name: name @ ("add" | "add_bias" | "add_biases"),
                        arguments,
                        ..
                    }) if arguments[2] == B(values[0]) => {
                        let arguments = [arguments.as_slice(), &[K(scale), K(shift), B(to)]].concat();
                        let name = match *name {
                            "add" => "add_affine",
                            "add_bias" => "add_bias_affine",
                            _ => "add_biases_affine",
                        };
                        self.program.forget_last();
                        self.push(name, len, &arguments, &numbers);
                    }
                    _ => self.push("affine", len, &[B(values[0]), K(scale), K(shift), B(to)], &numbers),
                }
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

    /// The largest absolute value of every image's map, with a bias and behind `relu` where there are such: what ties are told by.
    fn peaks(&mut self, from: usize, bias: Option<usize>, [c, h, w]: [usize; 3], relu: bool) -> usize {
        let peaks = self.program.buffer(Buffer::Floats(1));
        // A pointer that is not read stands for a bias that is not there.
        let shift = bias.map_or(B(from), K);
        let numbers = [c, h, w, usize::from(bias.is_some()), usize::from(relu)];
        self.push("peak", WARP, &[B(from), shift, B(peaks)], &numbers);
        peaks
    }

    /// A convolution of few channels with what follows it, where one kernel does both: which of a pool was largest, if it pools.
    fn fused(
        &mut self,
        way: Way,
        post: Post,
        [from, to]: [usize; 2],
        shift: usize,
        len: usize,
    ) -> Option<Option<usize>> {
        let Way::Narrow { weight, geometry } = way else {
            return None;
        };
        match post {
            Post::None | Post::Relu if few_in(&geometry) || post == Post::None => {
                let fused = Fused {
                    relu: post == Post::Relu,
                    bias: Some(shift),
                    ..Fused::default()
                };
                let launch = self.narrow(weight, &geometry, [from, to], false, fused);
                self.program.forward.push(launch);
                Some(None)
            }
            Post::Pool { relu } if few_in(&geometry) => {
                let ends = Narrow::new(&geometry, false);
                let which = self.program.buffer(Buffer::Bytes(len));
                let arguments = [B(from), K(weight), K(shift), B(to), B(which)];
                let numbers = [ends.sizes().as_slice(), &[usize::from(relu)]].concat();
                self.push("few_to_many_pool", self.narrow_elements(&ends), &arguments, &numbers);
                Some(Some(which))
            }
            _ => None,
        }
    }

    fn plain(&mut self, operator: Elementwise, sources: &[usize], target: usize) -> Result<Back> {
        let values: Vec<usize> = sources.iter().map(|s| self.values[*s]).collect();
        let (to, len) = (self.values[target], self.len(target));
        let shape @ [c, h, w] = self.shapes[target];
        let [_, sh, sw] = self.shapes[sources[0]];
        let (mut which, mut factors) = (None, None);
        match &operator {
            Elementwise::Add => {
                let biases: Vec<usize> = sources.iter().filter_map(|s| self.left[*s]).collect();
                let [mut a, mut b] = [values[0], values[1]];
                if self.left[sources[0]].is_none() {
                    (a, b) = (b, a);
                }
                let ends = [B(a), B(b), B(to)];
                match *biases.as_slice() {
                    [] => self.push("add", len, &ends, &[]),
                    [one] => self.push("add_bias", len, &[&ends, [K(one)].as_slice()].concat(), &shape),
                    [one, other, ..] => {
                        self.push(
                            "add_biases",
                            len,
                            &[&ends, [K(one), K(other)].as_slice()].concat(),
                            &shape,
                        );
                    }
                }
            }
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
                let peaks = self.peaks(values[0], None, [c, sh, sw], false);
                let ends = [B(values[0]), B(peaks), B(to), B(bytes)];
                self.push("max_pool", len, &ends, &[c, h, w, sh, sw, *k]);
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
        let mut constant = |axes: Option<(Vec<usize>, [usize; 4])>| {
            let param = weight.clone();
            let norm = norm.clone();
            self.program.constant(Constant::Weight {
                param,
                norm,
                transposed,
                axes,
            })
        };
        let shape = vec![g.c_out, g.c_in, g.kh, g.kw];
        let whole = (g.h_out, g.w_out, g.top, g.left) == (1, 1, 0, 0) && (g.kh, g.kw) == (g.h, g.w);
        if whole && !transposed {
            let shape = vec![g.c_out, source[0], source[1], source[2]];
            return Way::Product {
                weight: constant((last && g.taps() > 1).then_some((shape, [0, 2, 3, 1]))),
                inputs: g.c_in * g.taps(),
                outputs: g.c_out,
            };
        }
        if !transposed && narrow(&g) {
            let order = if few_in(&g) { [2, 3, 1, 0] } else { [2, 3, 0, 1] };
            return Way::Narrow {
                weight: constant(Some((shape, order))),
                geometry: g,
            };
        }
        let weight = constant((last && g.taps() > 1).then_some((shape, [0, 2, 3, 1])));
        // What it gives where zeros are alike on both sides.
        let alike =
            |size: usize, k: usize, before: usize| (size + 2 * before).checked_sub(k).map(|room| room / g.stride + 1);
        let symmetric = alike(g.h, g.kh, g.top) == Some(g.h_out) && alike(g.w, g.kw, g.left) == Some(g.w_out);
        let (geometry, made) = if g.taps() == 1 && g.stride > 1 && (g.top, g.left) == (0, 0) {
            let geometry = Geometry {
                h: g.h_out,
                w: g.w_out,
                stride: 1,
                ..g
            };
            (geometry, Some(Made::Every(g.stride)))
        } else if symmetric {
            (g, None)
        } else {
            let border = g.reach();
            let geometry = Geometry {
                h: g.h + border.top + border.bottom,
                w: g.w + border.left + border.right,
                top: 0,
                left: 0,
                ..g
            };
            (geometry, Some(Made::Padded([border.top, border.left])))
        };
        let other = made.map(|made| Other {
            buffer: self.program.buffer(Buffer::Floats(geometry.input().iter().product())),
            shape: geometry.input(),
            input: g.input(),
            made,
        });
        self.program.convs.push(Conv { geometry, weight });
        Way::Conv {
            conv: self.program.convs.len() - 1,
            transposed,
            other,
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
            Way::Narrow { weight, geometry } => {
                let fused = Fused {
                    add,
                    ..Fused::default()
                };
                launches.push(self.narrow(weight, &geometry, [from, to], backward, fused));
            }
            Way::Conv {
                conv,
                transposed,
                other,
            } => {
                let transposed = transposed != backward;
                let conv = |from, to, add| Launch::Conv {
                    conv,
                    from,
                    to,
                    transposed,
                    add,
                };
                match other {
                    None => launches.push(conv(from, to, add)),
                    Some(other) => {
                        let [_, h, w] = other.shape;
                        let buffer = match backward {
                            false => other.buffer,
                            true => self.program.buffer(self.program.buffers[other.buffer]),
                        };
                        let (there, back, last) = match other.made {
                            Made::Padded(zeros) => ("pad", "crop", zeros.to_vec()),
                            Made::Every(stride) => ("take_every", "spread", vec![stride]),
                        };
                        let numbers = [&with(other.input, &[h, w]), last.as_slice()].concat();
                        if transposed {
                            launches.push(conv(from, buffer, false));
                            let numbers = [numbers.as_slice(), &[usize::from(add)]].concat();
                            let elements = other.input.iter().product();
                            launches.push(self.program.kernel(back, elements, &[B(buffer), B(to)], &numbers));
                        } else {
                            let elements = other.shape.iter().product();
                            launches.push(self.program.kernel(there, elements, &[B(from), B(buffer)], &numbers));
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

    /// A convolution with few channels on one side, or its way back.
    fn narrow(&mut self, weight: usize, g: &Geometry, [from, to]: [usize; 2], backward: bool, fused: Fused) -> Launch {
        let ends = Narrow::new(g, backward);
        let sizes = ends.sizes();
        // A pointer that is not read stands for a bias or mask that is not there.
        let bias = K(fused.bias.unwrap_or(weight));
        let biased = usize::from(fused.bias.is_some());
        let flip = usize::from(backward);
        let elements = self.narrow_elements(&ends);
        if ends.to_many {
            let arguments = [B(from), K(weight), bias, B(to)];
            let numbers = [
                sizes.as_slice(),
                &[flip, biased, usize::from(fused.relu), usize::from(fused.add)],
            ]
            .concat();
            return self.program.kernel("few_to_many", elements, &arguments, &numbers);
        }
        let mask = B(fused.mask.unwrap_or(from));
        let masked = usize::from(fused.mask.is_some());
        let arguments = [B(from), mask, K(weight), bias, B(to)];
        let numbers = [sizes.as_slice(), &[flip, masked, biased, usize::from(fused.add)]].concat();
        self.program.kernel("many_to_few", elements, &arguments, &numbers)
    }

    /// Turns an image.
    fn narrow_elements(&self, ends: &Narrow) -> usize {
        let [_, oh, ow] = ends.target;
        let blocks = oh.div_ceil(2) * ow.div_ceil(2);
        let last = self.program.order == Order::ChannelsLast;
        match (ends.to_many, last) {
            (true, true) => blocks * ends.target[0],
            (true, false) => blocks * ends.target[0].div_ceil(CHANNELS),
            (false, true) => blocks * WARP,
            (false, false) => blocks,
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
        for step in (0..self.backs.len()).rev() {
            self.back(step, self.backs[step].clone());
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

    fn back(&mut self, step: usize, back: Back) {
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
                // Of the convolution's result nothing is left; its gradient is another buffer.
                let raw =
                    raw.map(|_| self.gradients[step].unwrap_or_else(|| self.program.buffer(Buffer::Floats(elements))));
                if let Way::Narrow { weight, geometry } = way
                    && self.narrow_back(weight, &geometry, source, target, post)
                {
                    return;
                }
                match (post, raw, which) {
                    _ if self.gradients[step].is_some() => {}
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
                operator: Elementwise::Add,
                ..
            } => self.add_back(step, &sources, target),
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

    /// The way back of a convolution with few channels, with what is beside it, where one kernel does both.
    fn narrow_back(&mut self, weight: usize, g: &Geometry, source: usize, target: usize, post: Post) -> bool {
        if few_in(g) && post == Post::Relu {
            let fused = Fused {
                add: self.write(source),
                mask: Some(self.values[target]),
                ..Fused::default()
            };
            let ends = [self.slopes[target], self.slopes[source]];
            let launch = self.narrow(weight, g, ends, true, fused);
            self.program.backward.push(launch);
            return true;
        }
        let Some(maker) = self.maker[source].filter(|_| self.readers[source].len() == 1 && !few_in(g)) else {
            return false;
        };
        let Back::Conv {
            post: Post::Upsample,
            result,
            ..
        } = self.backs[maker]
        else {
            return false;
        };
        let ends = Narrow::new(g, true);
        let raw = self.program.buffer(Buffer::Floats(result.iter().product()));
        let arguments = [B(self.slopes[target]), K(weight), B(self.values[source]), B(raw)];
        self.push_back(
            "few_to_many_sum",
            self.narrow_elements(&ends),
            &arguments,
            &ends.sizes(),
        );
        self.gradients[maker] = Some(raw);
        self.write(source);
        true
    }

    /// Gives the gradient of a sum to its terms: as the same buffer where nobody writes into one that another still reads.
    fn add_back(&mut self, step: usize, sources: &[usize], target: usize) {
        // The steps that write into a term's gradient after this one: those that read the term before, and its maker where that is a `relu`.
        let writers = |this: &Self, term: usize| -> Vec<usize> {
            let readers = this.readers[term].iter().copied().filter(|reader| *reader < step);
            let relu = |maker: &usize| matches!(this.backs[*maker], Back::Conv { post: Post::Relu, .. });
            readers.chain(this.maker[term].filter(relu)).collect()
        };
        let free = |this: &Self, term: usize| this.maker[term].is_some() && !this.written[term];
        let (mut terms, mut shared) = (sources.to_vec(), vec![]);
        terms.sort_by_key(|term| writers(self, *term).len());
        for term in terms {
            // A term's own step reads its gradient last; steps go back from the last to the first.
            let spoils = |writer: &usize, other: usize| self.maker[other].is_none_or(|maker| maker <= *writer);
            let apart = |a: usize, b: usize| a != b && !writers(self, a).iter().any(|writer| spoils(writer, b));
            let alone = shared.iter().all(|other| apart(term, *other) && apart(*other, term));
            if free(self, term) && alone && sources[0] != sources[1] {
                self.written[term] = true;
                self.slopes[term] = self.slopes[target];
                shared.push(term);
                continue;
            }
            let add = usize::from(self.write(term));
            let arguments = [B(self.slopes[target]), B(self.slopes[term])];
            self.push_back("copy", self.len(term), &arguments, &[add]);
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
            // Its gradient is given by `add_back`.
            Elementwise::Add => {}
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

/// Channels a turn of `few_to_many` makes where channels are first, and the threads that share one of `many_to_few` where they are last.
const CHANNELS: usize = 8;
const WARP: usize = 32;
/// Numbers of a patch of `few_to_many`, and outputs of a turn of `many_to_few`.
const PATCH: usize = 64;
const FEW: usize = 4;

/// Whether the kernels for few channels are for this convolution.
fn narrow(g: &Geometry) -> bool {
    let few = g.c_in.min(g.c_out);
    g.stride == 1 && few <= FEW && g.taps() > 1 && few * (g.kh + 1) * (g.kw + 1) <= PATCH
}

/// Whether it reads few channels: the fewer of both sides.
fn few_in(g: &Geometry) -> bool {
    g.c_in <= g.c_out
}

/// Ends of a convolution with few channels on one side, or of its way back.
struct Narrow {
    to_many: bool,
    source: [usize; 3],
    target: [usize; 3],
    kernel: [usize; 2],
    /// Zeros above and to the left.
    zeros: [usize; 2],
}

impl Narrow {
    fn new(g: &Geometry, backward: bool) -> Narrow {
        let (source, target, zeros) = match backward {
            false => (g.input(), g.output(), [g.top, g.left]),
            true => (g.output(), g.input(), [g.kh - 1 - g.top, g.kw - 1 - g.left]),
        };
        Narrow {
            to_many: few_in(g) != backward,
            source,
            target,
            kernel: [g.kh, g.kw],
            zeros,
        }
    }

    /// As the kernels take them.
    fn sizes(&self) -> Vec<usize> {
        [self.source.as_slice(), &self.target, &self.kernel, &self.zeros].concat()
    }
}

/// What a convolution with few channels does besides.
#[derive(Default)]
struct Fused {
    relu: bool,
    /// Added to what is there.
    add: bool,
    /// Added to the result.
    bias: Option<usize>,
    /// Only where this buffer is above 0 the source counts.
    mask: Option<usize>,
}

/// A shape, and more numbers.
fn with(shape: [usize; 3], more: &[usize]) -> Vec<usize> {
    [&shape, more].concat()
}
