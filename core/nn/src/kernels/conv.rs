//! Convolutions and their input gradients: the kernel that fits the shape, its packed weights, and where it reads.

use super::Real;
use std::ops::Range;

use super::direct::{Direct, Grid, Product, blocks};
use super::dots::Dots;
use super::frame::{Border, Frame, NARROW};
use super::geometry::Geometry;
use super::narrow::{Narrow, Planes};
use super::sink::Sink;
use super::winograd::{Convolve, Exact, Winograd};

/// A convolution, or the input gradient of one, with its weights.
#[derive(Clone, Debug)]
pub(crate) enum Kernel<T> {
    /// 3 x 3, stride 1.
    Winograd(Winograd<T>, Grid, Exact),
    /// Products at the places of several grids, which together make up the outputs.
    Direct(Direct<T>, Vec<Part>),
    /// Few outputs, plane by plane, from many channels.
    Dots(Dots<T>),
    /// Few outputs, plane by plane, from few channels or a single place.
    Narrow(Narrow<T>),
}

/// Outputs `(y * stride + first.0, x * stride + first.1)` for `(y, x)` of a grid, and the terms that reach them.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    grid: Grid,
    blocks: Vec<Range<usize>>,
    first: (usize, usize),
    stride: usize,
}

/// A convolution, or its transpose, which takes the output's gradient to the input's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correlation {
    pub geometry: Geometry,
    pub transposed: bool,
}

impl Correlation {
    /// The convolution itself.
    pub fn new(geometry: Geometry) -> Self {
        Self {
            geometry,
            transposed: false,
        }
    }

    /// What takes the gradient at its outputs to the one at its inputs.
    pub fn transpose(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Shape of the input.
    pub fn input(&self) -> [usize; 3] {
        match self.transposed {
            false => self.geometry.input(),
            true => self.geometry.output(),
        }
    }

    /// Shape of the output.
    pub fn output(&self) -> [usize; 3] {
        self.transpose().input()
    }

    /// Zeros that its kernel needs around the input.
    pub fn border(&self) -> Border {
        match self.transposed {
            false => border(&self.geometry),
            true => gradient_border(&self.geometry),
        }
    }

    /// The kernel for inputs of a layout with [`border`](Self::border) at least; `weight` is `[c_out, c_in, kh, kw]` of
    /// the convolution, which is not the transposed one.
    pub fn kernel<T: Real>(&self, source: &Frame, weight: &[T]) -> Kernel<T> {
        match self.transposed {
            false => Kernel::forward(&self.geometry, source, weight),
            true => Kernel::input_gradient(&self.geometry, source, weight),
        }
    }
}

impl<T: Real> Kernel<T> {
    /// The convolution itself. `source` is the layout of the inputs, with [`border`] at least; `weight` is
    /// `[c_out, c_in, kh, kw]`.
    fn forward(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        let corner = source.corner(g.top, g.left);
        if dots(g.c_out, g.input()) {
            let [_, row, column] = source.strides();
            let taps: Vec<usize> = (0..g.taps())
                .map(|tap| tap / g.kw * row + tap % g.kw * column)
                .collect();
            let mut dots = Dots::new(g.output());
            dots.push(
                grid(g, source, corner),
                ((0, 0), 1),
                &taps,
                source.channels(),
                |co, tap, ci| match ci < g.c_in {
                    true => weight[g.weight(co, ci, tap / g.kw, tap % g.kw)],
                    false => T::ZERO,
                },
            );
            return Self::Dots(dots);
        }
        if g.c_out <= NARROW && g.dense() {
            return Self::Narrow(Narrow::forward(g, source, weight));
        }
        if winograd(g, source) {
            let packed = Winograd::new(source.channels(), [g.c_out, g.c_in], |co, ci, r, s| {
                weight[g.weight(co, ci, r, s)]
            });
            return Self::Winograd(packed, grid(g, source, corner), Exact::Ties);
        }
        let [channel, row, column] = source.strides();
        let terms = terms(g, source.narrow);
        let offsets = terms
            .iter()
            .map(|(ci, r, s)| ci * channel + r * row + s * column)
            .collect();
        let firsts: Vec<usize> = terms.iter().map(|(ci, r, s)| g.weight(0, *ci, *r, *s)).collect();
        let direct = Direct::gathered(offsets, g.c_out, weight, &firsts, g.c_in * g.taps());
        let part = Part {
            grid: grid(g, source, corner),
            blocks: direct.blocks(),
            first: (0, 0),
            stride: 1,
        };
        Self::Direct(direct, vec![part])
    }

    /// Its input gradient. `source` is the layout of the output's gradient, with [`gradient_border`] at least.
    fn input_gradient(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        if g.c_in <= NARROW && !dots(g.c_in, g.output()) {
            return Self::Narrow(Narrow::input_gradient(g, source, weight));
        }
        if winograd(g, source) && g.c_in > NARROW {
            let turned = g.turned();
            let packed = Winograd::new(source.channels(), [g.c_in, g.c_out], |ci, co, r, s| {
                weight[g.weight(co, ci, 2 - r, 2 - s)]
            });
            let corner = source.corner(turned.top, turned.left);
            return Self::Winograd(packed, grid(&turned, source, corner), Exact::Zeros);
        }
        let [channel, row, column] = source.strides();
        // Later taps reach earlier outputs.
        let back = |taps: usize, tap: usize| (taps - 1) / g.stride - tap / g.stride;
        let tap_offset = |tap: usize| back(g.kh, tap / g.kw) * row + back(g.kw, tap % g.kw) * column;
        if g.c_in <= NARROW {
            let mut dots = Dots::new(g.input());
            for reach in reaches(g, source, true) {
                let taps: Vec<usize> = reach.taps.iter().map(|tap| tap_offset(*tap)).collect();
                let placed = (reach.first, g.stride);
                dots.push(reach.grid, placed, &taps, source.channels(), |ci, i, co| {
                    let tap = reach.taps[i];
                    match co < g.c_out {
                        true => weight[g.weight(co, ci, tap / g.kw, tap % g.kw)],
                        false => T::ZERO,
                    }
                });
            }
            return Self::Dots(dots);
        }
        // Tap after tap, each over all channels.
        let offset = |k: usize| tap_offset(k / g.c_out) + k % g.c_out * channel;
        let first = |k: usize| k % g.c_out * g.c_in * g.taps() + k / g.c_out;
        let [offsets, firsts] = [&offset as &dyn Fn(usize) -> usize, &first]
            .map(|f| (0..g.taps() * g.c_out).map(f).collect::<Vec<usize>>());
        let direct = Direct::gathered(offsets, g.c_in, weight, &firsts, g.taps());
        let part = |reach: Reach| Part {
            grid: reach.grid,
            blocks: (reach.taps.iter())
                .flat_map(|tap| blocks(tap * g.c_out..(tap + 1) * g.c_out))
                .collect(),
            first: reach.first,
            stride: g.stride,
        };
        Self::Direct(direct, reaches(g, source, false).into_iter().map(part).collect())
    }

    /// Whether outputs are few, for [`Kernel::run_narrow`].
    pub fn is_narrow(&self) -> bool {
        matches!(self, Self::Dots(_) | Self::Narrow(_))
    }

    /// Whether outputs come as 2 x 2 blocks, as a [`Sink`] may ask.
    pub fn blocks(&self) -> bool {
        match self {
            Self::Winograd(..) => true,
            Self::Direct(_, parts) => parts.len() == 1 && parts[0].is_whole(),
            Self::Dots(_) | Self::Narrow(_) => false,
        }
    }

    /// Computes the outputs of a batch and gives them to `sink`.
    ///
    /// # Safety
    /// `source` holds `images` maps of the layout the kernel was made for, and `sink` takes every output. The kernel is
    /// not [narrow](Kernel::is_narrow).
    pub unsafe fn run<S: Sink<T> + Copy>(&self, images: usize, source: *const T, sink: S) {
        match self {
            Self::Winograd(winograd, grid, exact) => {
                let (grid, exact) = (*grid, *exact);
                // SAFETY: the caller's.
                unsafe {
                    Convolve {
                        winograd,
                        grid,
                        images,
                        source,
                        exact,
                        sink,
                    }
                    .run();
                }
            }
            Self::Direct(direct, parts) => {
                for part in parts {
                    let (grid, blocks) = (part.grid, part.blocks.as_slice());
                    let product = Product {
                        direct,
                        blocks,
                        grid,
                        first: part.first,
                        stride: part.stride,
                        images,
                        source,
                        sink,
                    };
                    // SAFETY: the caller's.
                    unsafe { product.run() };
                }
            }
            Self::Dots(_) | Self::Narrow(_) => unreachable!("narrow outputs are planes"),
        }
    }

    /// Calls `f(image, planes, values)` with the outputs of each map of a batch, without a bias.
    ///
    /// # Safety
    /// As for [`Kernel::run`]; the kernel is [narrow](Kernel::is_narrow).
    pub unsafe fn run_narrow(&self, images: usize, source: *const T, f: impl FnMut(usize, &Planes, &[T])) {
        match self {
            // SAFETY: the caller's.
            Self::Dots(dots) => unsafe { dots.run(images, source, f) },
            // SAFETY: the caller's.
            Self::Narrow(narrow) => unsafe { narrow.run(images, source, f) },
            _ => unreachable!("wide outputs go to a sink"),
        }
    }
}

/// Whether inputs of this layout and outputs of these channels are worth a transform.
fn winograd(g: &Geometry, source: &Frame) -> bool {
    g.three_by_three() && !source.narrow
}

/// Whether so many outputs of maps `[channels, h, w]` are sums over vectors of channels.
fn dots(outputs: usize, [channels, h, w]: [usize; 3]) -> bool {
    outputs <= NARROW && channels > NARROW && h * w > 1
}

/// The places of the outputs of `g`, whose patches begin at `base` for the first.
fn grid(g: &Geometry, source: &Frame, base: usize) -> Grid {
    let [_, row, column] = source.strides();
    Grid {
        h: g.h_out,
        w: g.w_out,
        row: g.stride * row,
        column: g.stride * column,
        base,
        image: source.len(),
    }
}

/// Inputs that the same taps reach: `(y * stride + first.0, x * stride + first.1)` for `(y, x)` of a grid of outputs.
struct Reach {
    grid: Grid,
    taps: Vec<usize>,
    first: (usize, usize),
}

/// All inputs of `g` by the taps that reach them, from outputs or, if `beyond`, from the zeros around them too; `source` is
/// the layout of the output's gradient.
fn reaches(g: &Geometry, source: &Frame, beyond: bool) -> Vec<Reach> {
    let rows = Spread::new(g.h, g.top, g.kh, g.stride).bands((!beyond).then_some(g.h_out));
    let columns = Spread::new(g.w, g.left, g.kw, g.stride).bands((!beyond).then_some(g.w_out));
    let [_, row, column] = source.strides();
    let reach = |(r, s): (&Band, &Band)| {
        // The place that the first tap of all would reach, be it on the map or before it.
        let base = source
            .at(0, 0)
            .wrapping_add(r.reach.wrapping_sub((g.kh - 1) / g.stride).wrapping_mul(row))
            .wrapping_add(s.reach.wrapping_sub((g.kw - 1) / g.stride).wrapping_mul(column));
        Reach {
            grid: Grid {
                h: r.count,
                w: s.count,
                row,
                column,
                base,
                image: source.len(),
            },
            taps: (r.taps.iter().flat_map(|r| s.taps.iter().map(move |s| r * g.kw + s))).collect(),
            first: (r.first, s.first),
        }
    };
    rows.iter()
        .flat_map(|r| columns.iter().map(move |s| (r, s)))
        .map(reach)
        .collect()
}

/// `(ci, r, s)` of every term, in the order of memory.
fn terms(g: &Geometry, narrow: bool) -> Vec<(usize, usize, usize)> {
    let taps = (0..g.kh).flat_map(|r| (0..g.kw).map(move |s| (r, s)));
    match narrow {
        true => (0..g.c_in)
            .flat_map(|ci| taps.clone().map(move |(r, s)| (ci, r, s)))
            .collect(),
        false => taps.flat_map(|(r, s)| (0..g.c_in).map(move |ci| (ci, r, s))).collect(),
    }
}

/// Zeros that the convolution needs around inputs `[c_in, h, w]`.
pub(crate) fn border(g: &Geometry) -> Border {
    let reach = g.reach();
    if !g.three_by_three() || g.c_in <= NARROW {
        return reach;
    }
    // Whole tiles of 4 outputs read 6 inputs.
    let beyond = |out: usize, before: usize, size: usize| (out.next_multiple_of(4) + 2).saturating_sub(before + size);
    Border {
        bottom: beyond(g.h_out, g.top, g.h),
        right: beyond(g.w_out, g.left, g.w),
        ..reach
    }
}

/// Zeros that the input gradient needs around the output's gradient `[c_out, h_out, w_out]`.
fn gradient_border(g: &Geometry) -> Border {
    if dots(g.c_in, g.output()) {
        let [top, bottom] = Spread::new(g.h, g.top, g.kh, g.stride).beyond(g.h_out);
        let [left, right] = Spread::new(g.w, g.left, g.kw, g.stride).beyond(g.w_out);
        return Border {
            top,
            left,
            bottom,
            right,
        };
    }
    match g.three_by_three() && g.c_in > NARROW && g.c_out > NARROW {
        true => border(&g.turned()),
        false => Border::default(),
    }
}

/// One axis of an input gradient: input `i` is reached by output `(i + before - tap) / stride` for every tap that
/// leaves no remainder and falls on an output.
#[derive(Clone, Copy)]
struct Spread {
    size: usize,
    before: usize,
    taps: usize,
    stride: usize,
}

/// Inputs that lie `stride` apart and are reached by the same taps.
struct Band {
    /// The first input.
    first: usize,
    /// How many there are.
    count: usize,
    taps: Vec<usize>,
    /// The output, or what would be one, that reaches the first input by the first tap of its remainder.
    reach: usize,
}

impl Spread {
    fn new(size: usize, before: usize, taps: usize, stride: usize) -> Self {
        Self {
            size,
            before,
            taps,
            stride,
        }
    }

    /// The taps that reach input `i` from one of `out` outputs, or from as many as it takes.
    fn taps(self, i: usize, out: Option<usize>) -> Vec<usize> {
        let at = i + self.before;
        let on_output = |tap: usize| out.is_none_or(|out| tap <= at && (at - tap) / self.stride < out);
        (at % self.stride..self.taps)
            .step_by(self.stride)
            .filter(|tap| on_output(*tap))
            .collect()
    }

    /// Outputs before the first and behind the last of `out` that taps would reach inputs from.
    fn beyond(self, out: usize) -> [usize; 2] {
        let before = (self.taps - 1).saturating_sub(self.before).div_ceil(self.stride);
        let behind = ((self.size + self.before - 1) / self.stride + 1).saturating_sub(out);
        [before, behind]
    }

    /// All inputs, in bands.
    fn bands(self, out: Option<usize>) -> Vec<Band> {
        let mut bands: Vec<Band> = Vec::new();
        for phase in 0..self.stride.min(self.size) {
            for first in (phase..self.size).step_by(self.stride) {
                let taps = self.taps(first, out);
                match bands.last_mut() {
                    Some(band) if band.first % self.stride == phase && band.taps == taps => band.count += 1,
                    _ => bands.push(Band {
                        first,
                        count: 1,
                        taps,
                        reach: (first + self.before) / self.stride,
                    }),
                }
            }
        }
        bands
    }
}

impl Part {
    /// Whether it makes up the outputs by itself, in order.
    fn is_whole(&self) -> bool {
        self.first == (0, 0) && self.stride == 1
    }
}
