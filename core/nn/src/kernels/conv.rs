//! Convolutions and their input gradients: the kernel that fits the shape, its packed weights, and where it reads.

use super::Real;
use super::direct::{Direct, Grid, Product};
use super::frame::{Border, Frame, NARROW};
use super::geometry::Geometry;
use super::narrow::{Narrow, Planes};
use super::sink::{Place, Sink};
use super::vector::Vector;
use super::winograd::{Convolve, Tiling, Winograd};

/// A convolution, or the input gradient of one, with its weights.
#[derive(Clone, Debug)]
pub(crate) enum Kernel<T> {
    /// 3 x 3, stride 1.
    Winograd(Winograd<T>, Tiling),
    /// Products at the places of several grids, which together make up the outputs.
    Direct(Vec<Part<T>>),
    /// Few outputs, plane by plane.
    Narrow(Narrow<T>),
}

/// Outputs `(y * stride + first.0, x * stride + first.1)` for `(y, x)` of a grid.
#[derive(Clone, Debug)]
pub(crate) struct Part<T> {
    direct: Direct<T>,
    grid: Grid,
    first: (usize, usize),
    stride: usize,
}

impl<T: Real> Kernel<T> {
    /// The convolution itself. `source` is the layout of the inputs, with [`border`] at least; `weight` is
    /// `[c_out, c_in, kh, kw]`.
    pub fn forward(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        if g.c_out <= NARROW && g.dense() {
            return Self::Narrow(Narrow::forward(g, source, weight));
        }
        let corner = source.corner(g.top, g.left);
        if winograd(g, source) {
            let packed = Winograd::new(source.channels(), [g.c_out, g.c_in], |co, ci, r, s| {
                weight[g.weight(co, ci, r, s)]
            });
            return Self::Winograd(packed, tiling(g, source, corner));
        }
        let [channel, row, column] = source.strides();
        let terms = terms(g, source.narrow);
        let offsets = terms
            .iter()
            .map(|(ci, r, s)| ci * channel + r * row + s * column)
            .collect();
        let direct = Direct::new(offsets, g.c_out, |k, co| {
            let (ci, r, s) = terms[k];
            weight[g.weight(co, ci, r, s)]
        });
        let grid = Grid {
            h: g.h_out,
            w: g.w_out,
            row: g.stride * row,
            column: g.stride * column,
            base: corner,
            image: source.len(),
        };
        Self::Direct(vec![Part {
            direct,
            grid,
            first: (0, 0),
            stride: 1,
        }])
    }

    /// Its input gradient. `source` is the layout of the output's gradient, with [`gradient_border`] at least.
    pub fn input_gradient(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        if g.c_in <= NARROW {
            return Self::Narrow(Narrow::input_gradient(g, source, weight));
        }
        if winograd(g, source) {
            let turned = g.turned();
            let packed = Winograd::new(source.channels(), [g.c_in, g.c_out], |ci, co, r, s| {
                weight[g.weight(co, ci, 2 - r, 2 - s)]
            });
            return Self::Winograd(packed, tiling(&turned, source, source.corner(turned.top, turned.left)));
        }
        let rows = Spread::new(g.h, g.top, g.kh, g.stride);
        let columns = Spread::new(g.w, g.left, g.kw, g.stride);
        let parts = rows.phases().flat_map(|r| columns.phases().map(move |s| (r, s)));
        Self::Direct(parts.map(|(r, s)| Self::part(g, source, weight, r, s)).collect())
    }

    /// The inputs of one remainder of row and column by the stride.
    fn part(g: &Geometry, source: &Frame, weight: &[T], rows: Phase, columns: Phase) -> Part<T> {
        let [channel, row, column] = source.strides();
        let mut terms = Vec::new();
        // Backwards, so that offsets grow.
        for (i, r) in rows.taps().rev() {
            for (j, s) in columns.taps().rev() {
                terms.extend((0..g.c_out).map(|co| (co, (rows.last - i) * row + (columns.last - j) * column, r, s)));
            }
        }
        let offsets = terms.iter().map(|(co, at, ..)| co * channel + at).collect();
        let direct = Direct::new(offsets, g.c_in, |k, ci| {
            let (co, _, r, s) = terms[k];
            weight[g.weight(co, ci, r, s)]
        });
        Part {
            direct,
            grid: Grid {
                h: rows.count,
                w: columns.count,
                row,
                column,
                base: source.at(0, 0) + rows.start * row + columns.start * column
                    - (rows.last * row + columns.last * column),
                image: source.len(),
            },
            first: (rows.first, columns.first),
            stride: g.stride,
        }
    }

    /// Whether outputs come as 2 x 2 blocks, as a [`Sink`] may ask.
    pub fn blocks(&self) -> bool {
        match self {
            Self::Winograd(..) => true,
            Self::Direct(parts) => parts.len() == 1 && parts[0].stride == 1,
            Self::Narrow(_) => false,
        }
    }

    /// Computes the outputs of a batch and gives them to `sink`.
    ///
    /// # Safety
    /// `source` holds `images` maps of the layout the kernel was made for, and `sink` takes every output. The kernel is
    /// not [`Kernel::Narrow`].
    pub unsafe fn run<S: Sink<T> + Copy>(&self, images: usize, source: *const T, sink: S) {
        match self {
            Self::Winograd(winograd, tiling) => {
                let (winograd, tiling) = (winograd, *tiling);
                // SAFETY: the caller's.
                unsafe {
                    T::dispatch(Convolve {
                        winograd,
                        tiling,
                        images,
                        source,
                        sink,
                    });
                }
            }
            Self::Direct(parts) => {
                for Part {
                    direct,
                    grid,
                    first,
                    stride,
                } in parts
                {
                    let (grid, first, stride) = (*grid, *first, *stride);
                    // SAFETY: the caller's.
                    unsafe {
                        match stride {
                            1 => T::dispatch(Product {
                                direct,
                                grid,
                                images,
                                source,
                                sink,
                            }),
                            _ => T::dispatch(Product {
                                direct,
                                grid,
                                images,
                                source,
                                sink: Spaced { first, stride, sink },
                            }),
                        }
                    }
                }
            }
            Self::Narrow(_) => unreachable!("narrow outputs are planes"),
        }
    }

    /// Computes the outputs of a narrow kernel; see [`Narrow::run`].
    ///
    /// # Safety
    /// As for [`Kernel::run`]; the kernel is [`Kernel::Narrow`].
    pub unsafe fn run_narrow(&self, images: usize, source: *const T, f: impl FnMut(usize, &Planes, &[T])) {
        match self {
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

fn tiling(g: &Geometry, source: &Frame, base: usize) -> Tiling {
    let [_, row, column] = source.strides();
    Tiling {
        h: g.h_out,
        w: g.w_out,
        row,
        column,
        base,
        image: source.len(),
    }
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
pub(crate) fn gradient_border(g: &Geometry) -> Border {
    if g.c_in <= NARROW {
        return Border::default();
    }
    if g.three_by_three() {
        return border(&g.turned());
    }
    let (top, bottom) = Spread::new(g.h, g.top, g.kh, g.stride).reach(g.h_out);
    let (left, right) = Spread::new(g.w, g.left, g.kw, g.stride).reach(g.w_out);
    Border {
        top,
        left,
        bottom,
        right,
    }
}

/// How one axis of the output's gradient reaches the input's: input `i` is reached by output `(i + before - tap) /
/// stride` for every tap that leaves no remainder.
#[derive(Clone, Copy)]
struct Spread {
    size: usize,
    before: usize,
    taps: usize,
    stride: usize,
}

/// The inputs of one remainder.
#[derive(Clone, Copy)]
struct Phase {
    /// The first input.
    first: usize,
    /// How many there are.
    count: usize,
    /// First tap.
    tap: usize,
    /// Number of taps, less one.
    last: usize,
    /// Output that reaches the first input by the first tap.
    start: usize,
    taps: usize,
    stride: usize,
}

impl Phase {
    /// The taps, numbered.
    fn taps(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + ExactSizeIterator + use<> {
        let (tap, stride) = (self.tap, self.stride);
        (0..self.taps).map(move |i| (i, tap + i * stride))
    }
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

    fn phases(self) -> impl Iterator<Item = Phase> + Clone {
        (0..self.stride.min(self.size)).map(move |first| {
            let tap = (first + self.before) % self.stride;
            let taps = self.taps.saturating_sub(tap).div_ceil(self.stride);
            Phase {
                first,
                count: (self.size - first).div_ceil(self.stride),
                tap,
                last: taps.saturating_sub(1),
                start: (first + self.before) / self.stride,
                taps,
                stride: self.stride,
            }
        })
    }

    /// Zeros read before and after `out` outputs.
    fn reach(self, out: usize) -> (usize, usize) {
        let before = self.phases().map(|p| p.last.saturating_sub(p.start)).max();
        let after = self.phases().map(|p| (p.start + p.count).saturating_sub(out)).max();
        (before.unwrap_or(0), after.unwrap_or(0))
    }
}

/// A sink for outputs that lie `stride` apart.
#[derive(Clone, Copy)]
struct Spaced<S> {
    first: (usize, usize),
    stride: usize,
    sink: S,
}

impl<T: Real, S: Sink<T>> Sink<T> for Spaced<S> {
    const BLOCKS: bool = false;
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, at: Place, c: usize, v: V) {
        let at = Place {
            image: at.image,
            y: at.y * self.stride + self.first.0,
            x: at.x * self.stride + self.first.1,
        };
        // SAFETY: the caller's.
        unsafe { self.sink.place(at, c, v) }
    }
}
