//! Convolutions to few channels, such as the input gradient of a first layer: sixteen channels at a time would be
//! mostly padding. Instead the taps are the columns of one product over the source's places, and each place's
//! products are then added where its taps fall. Bound by compute, at the share of columns that taps fill (9 of 16 for
//! 3 x 3 and one channel, 25 of 32 for 5 x 5); the additions take another fifth.

use std::ops::Range;

use super::Real;
use super::direct::{Direct, Grid, Product};
use super::frame::Frame;
use super::geometry::Geometry;
use super::scratch::with_scratch;
use super::sink::{Place, Sink};
use super::vector::{LANES, Vector};

/// A convolution whose outputs are stored plane by plane.
#[derive(Clone, Debug)]
pub(crate) struct Narrow<T> {
    direct: Direct<T>,
    blocks: Vec<Range<usize>>,
    source: Grid,
    planes: Planes,
    /// Steps between the places that neighbours of the source reach.
    stride: usize,
    /// Where each tap of place (0, 0) falls, one a column.
    taps: Vec<usize>,
}

/// Planes with room for every tap to fall beside them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    count: usize,
    w: usize,
    top: usize,
    left: usize,
    rows: usize,
    columns: usize,
}

impl Planes {
    fn len(&self) -> usize {
        self.count * self.rows * self.columns
    }

    /// Row `y` of plane `c`.
    pub fn row<'a, T>(&self, values: &'a [T], c: usize, y: usize) -> &'a [T] {
        &values[(c * self.rows + self.top + y) * self.columns + self.left..][..self.w]
    }
}

impl<T: Real> Narrow<T> {
    /// The convolution itself, of stride 1; `weight` is `[c_out, c_in, kh, kw]`.
    pub fn forward(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        // A place falls on the output that its tap is before.
        let fall = |r: usize, s: usize| (g.kh - 1 - r, g.kw - 1 - s);
        let start = (g.kh - 1 - g.top, g.kw - 1 - g.left);
        Self::new(g.output(), source, [g.kh, g.kw], 1, start, fall, |c, plane, r, s| {
            weight[g.weight(plane, c, r, s)]
        })
    }

    /// Its input gradient, from a source that holds the output's.
    pub fn input_gradient(g: &Geometry, source: &Frame, weight: &[T]) -> Self {
        Self::new(
            g.input(),
            source,
            [g.kh, g.kw],
            g.stride,
            (g.top, g.left),
            |r, s| (r, s),
            |c, plane, r, s| weight[g.weight(c, plane, r, s)],
        )
    }

    fn new(
        [count, h, w]: [usize; 3],
        source: &Frame,
        [kh, kw]: [usize; 2],
        stride: usize,
        (top, left): (usize, usize),
        fall: impl Fn(usize, usize) -> (usize, usize),
        weight: impl Fn(usize, usize, usize, usize) -> T,
    ) -> Self {
        let planes = Planes {
            count,
            w,
            top,
            left,
            rows: ((source.h - 1) * stride + kh).max(top + h),
            columns: ((source.w - 1) * stride + kw).max(left + w),
        };
        let column = |j: usize| (j % count, j / count / kw, j / count % kw);
        let taps = (0..kh * kw * count).map(|j| {
            let (plane, r, s) = column(j);
            let (y, x) = fall(r, s);
            (plane * planes.rows + y) * planes.columns + x
        });
        let [channel, row, step] = source.strides();
        let offsets = (0..source.c).map(|c| c * channel).collect();
        let direct = Direct::new(offsets, kh * kw * count, |c, j| {
            let (plane, r, s) = column(j);
            weight(c, plane, r, s)
        });
        Self {
            blocks: direct.blocks(),
            direct,
            source: Grid {
                h: source.h,
                w: source.w,
                row,
                column: step,
                base: source.at(0, 0),
                image: source.len(),
            },
            planes,
            stride,
            taps: taps.collect(),
        }
    }

    /// Calls `f(image, planes, values)` with the outputs of each map of a batch, without a bias.
    ///
    /// # Safety
    /// `source` holds `images` maps of the frame it was made for.
    pub unsafe fn run(&self, images: usize, source: *const T, mut f: impl FnMut(usize, &Planes, &[T])) {
        let columns = self.direct.columns();
        with_scratch(self.planes.len() + self.source.w * columns, |scratch: &mut [T]| {
            let (values, products) = scratch.split_at_mut(self.planes.len());
            for image in 0..images {
                values.fill(T::ZERO);
                for y in 0..self.source.h {
                    let grid = Grid {
                        h: 1,
                        base: self.source.base + image * self.source.image + y * self.source.row,
                        ..self.source
                    };
                    let product = Product {
                        direct: &self.direct,
                        blocks: &self.blocks,
                        grid,
                        images: 1,
                        source,
                        sink: Turned {
                            to: products.as_mut_ptr(),
                            pitch: self.source.w,
                        },
                    };
                    // SAFETY: the places of one row of one map; the scratch has a place for each of their columns.
                    unsafe { T::dispatch(product) };
                    let from = y * self.stride * self.planes.columns;
                    for (products, tap) in products.chunks_exact(self.source.w).zip(&self.taps) {
                        let to = &mut values[from + tap..];
                        match self.stride {
                            1 => to.iter_mut().zip(products).for_each(|(to, v)| *to += *v),
                            stride => to
                                .iter_mut()
                                .step_by(stride)
                                .zip(products)
                                .for_each(|(to, v)| *to += *v),
                        }
                    }
                }
                f(image, &self.planes, values);
            }
        });
    }
}

/// Stores a row of places column by column.
struct Turned<T> {
    to: *mut T,
    pitch: usize,
}

impl<T: Real> Sink<T> for Turned<T> {
    const BLOCKS: bool = false;
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, at: Place, c: usize, v: V) {
        let mut lanes = [T::ZERO; LANES];
        // SAFETY: eight lanes; the place is one of the row, the columns are those of the product.
        unsafe {
            v.store(lanes.as_mut_ptr());
            for (l, lane) in lanes.into_iter().enumerate() {
                *self.to.add((c + l) * self.pitch + at.x) = lane;
            }
        }
    }
}
