//! From a graph to what a GPU does: correlations, products, and kernels an element a turn.
//!
//! What the processor fuses into a convolution's registers is one kernel behind it here: bias, folded norm, `relu`, pooling or
//! upsampling. All maps of a batch are in memory; what the way back needs of a `relu` is read off its result.

mod back;
mod narrow;

use candle_core::{Result, bail};

use super::super::draft::{Draft, DraftKind, Drafts};
use super::super::graph::Graph;
use super::super::operators::Elementwise;
use super::super::step::Post;
use super::program::{Argument, Buffer, Constant, Conv, Launch, Order, Program};
use crate::kernels::conv::Correlation;
use crate::kernels::geometry::Geometry;
use crate::{BatchNorm2d, Param};
use narrow::{Fused, WARP, few_in, narrow};

impl Program {
    /// The part of the graph that `output` needs.
    ///
    /// # Errors
    /// Where an operator has no kernel.
    pub fn new(graph: &Graph, output: usize, order: Order) -> Result<Program> {
        let drafts = Drafts::new(graph, output, false);
        let mut program = Program::empty(order, graph.0[output].output());
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
}

/// A shape, and more numbers.
fn with(shape: [usize; 3], more: &[usize]) -> Vec<usize> {
    [&shape, more].concat()
}
