//! What a GPU is told: launches in order, the buffers they read and write, and the kernels they call.

use std::fmt::Write;

use candle_core::{DType, Device, Result, Tensor};

use super::super::graph::Output;
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
    /// One that does nothing yet.
    pub(super) fn empty(order: Order, output: Output) -> Program {
        Program {
            order,
            output,
            buffers: vec![],
            constants: vec![],
            convs: vec![],
            forward: vec![],
            backward: vec![],
            images: 0,
            outputs: 0,
            output_slope: 0,
            image_slope: 0,
            kernels: String::new(),
            count: 0,
        }
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

    pub(super) fn buffer(&mut self, buffer: Buffer) -> usize {
        self.buffers.push(buffer);
        self.buffers.len() - 1
    }

    pub(super) fn constant(&mut self, constant: Constant) -> usize {
        self.constants.push(constant);
        self.constants.len() - 1
    }

    /// Takes back the kernel that was made last, the last of the way forward.
    pub(super) fn forget_last(&mut self) {
        self.forward.pop();
        self.count -= 1;
        let end = self.kernels.trim_end().rfind('\n').map_or(0, |at| at + 1);
        self.kernels.truncate(end);
    }

    /// A kernel that calls a function of `kernels.c` for each of so many elements an image: with its arguments and these numbers.
    pub(super) fn kernel(
        &mut self,
        name: &'static str,
        elements: usize,
        arguments: &[Argument],
        numbers: &[usize],
    ) -> Launch {
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
