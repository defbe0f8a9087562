//! Convolutions to few channels from maps of few, or from a single place, such as the input gradient of a first fully
//! connected layer: the taps are the columns of one product over the source's places, and each place's products are then
//! added where its taps fall. Bound by compute where taps fill whole panels of sixteen columns; the additions take a
//! fifth. From larger maps with channels last [`dots`](super::dots) are faster.

use std::ops::Range;

use super::direct::{CHUNK, Direct, Grid, Product};
use super::frame::Frame;
use super::geometry::Geometry;
use super::scratch::with_scratch;
use super::sink::{Place, Sink, Spot};
use super::vector::{OCTET, Octet, Vector};
use super::{Real, Task};

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
    /// Planes of `[count, h, w]` without room to spare.
    pub fn tight([count, rows, columns]: [usize; 3]) -> Self {
        Self {
            count,
            w: columns,
            top: 0,
            left: 0,
            rows,
            columns,
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Elements of one.
    pub fn plane(&self) -> usize {
        self.rows * self.columns
    }

    /// Where place `(y, x)` lies in a plane.
    pub fn at(&self, y: usize, x: usize) -> usize {
        (self.top + y) * self.columns + self.left + x
    }

    /// Elements of all.
    pub fn len(&self) -> usize {
        self.count * self.plane()
    }

    /// Row `y` of plane `c`.
    pub fn row<'a, T>(&self, values: &'a [T], c: usize, y: usize) -> &'a [T] {
        &values[c * self.plane() + self.at(y, 0)..][..self.w]
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
        let (columns, w) = (self.direct.columns(), self.source.w);
        let pitch = w.next_multiple_of(OCTET);
        let rows = (CHUNK / w).max(1);
        // Whole vectors are added, so that zeros fall beyond the last place.
        with_scratch(
            self.planes.len() + OCTET + rows * pitch * columns,
            |scratch: &mut [T]| {
                let (values, products) = scratch.split_at_mut(self.planes.len() + OCTET);
                products.fill(T::ZERO);
                // One pointer for writing and reading: a second borrow would end the first.
                let products = products.as_mut_ptr();
                for image in 0..images {
                    values.fill(T::ZERO);
                    for y in (0..self.source.h).step_by(rows) {
                        let count = rows.min(self.source.h - y);
                        let grid = Grid {
                            h: count,
                            base: self.source.base + image * self.source.image + y * self.source.row,
                            ..self.source
                        };
                        let product = Product {
                            direct: &self.direct,
                            blocks: &self.blocks,
                            grid,
                            first: (0, 0),
                            stride: 1,
                            images: 1,
                            source,
                            sink: Rows {
                                to: products,
                                pitch,
                                columns,
                            },
                        };
                        let scatter = Scatter {
                            narrow: self,
                            products,
                            rows: y..y + count,
                            pitch,
                            values: values.as_mut_ptr(),
                        };
                        // SAFETY: the places of some rows of one map; the scratch has room for their products, and the
                        // planes for where the taps of every place fall, and a vector more.
                        unsafe {
                            product.run();
                            T::dispatch(scatter);
                        }
                    }
                    f(image, &self.planes, values);
                }
            },
        );
    }
}

/// Stores the products of places, all columns of one after the other.
#[derive(Clone, Copy)]
struct Rows<T> {
    to: *mut T,
    /// Places of a row.
    pitch: usize,
    columns: usize,
}

// SAFETY: a place's columns begin where `spot` says, and nothing but they is written.
unsafe impl<T: Real> Sink<T> for Rows<T> {
    const BLOCKS: bool = false;
    #[inline(always)]
    fn spot(&self, at: Place) -> Spot {
        Spot {
            to: (at.y * self.pitch + at.x) * self.columns,
            mark: 0,
        }
    }
    #[inline(always)]
    unsafe fn place<V: Vector<T = T>>(&self, spot: Spot, c: usize, v: V) {
        // SAFETY: there is room for every place's columns.
        unsafe { v.store(self.to.add(spot.to + c)) }
    }
}

/// Adds the products of some rows where their taps fall.
struct Scatter<'a, T> {
    narrow: &'a Narrow<T>,
    products: *const T,
    rows: Range<usize>,
    pitch: usize,
    values: *mut T,
}

impl<T: Real> Task<T> for Scatter<'_, T> {
    /// # Safety
    /// There are products, zeros beyond the last place, for whole vectors of places, and room for every tap's.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let Narrow {
            direct,
            taps,
            planes,
            stride,
            source,
            ..
        } = self.narrow;
        let columns = direct.columns();
        for (number, y) in self.rows.enumerate() {
            for x in (0..source.w).step_by(OCTET) {
                for c in (0..taps.len()).step_by(OCTET) {
                    // SAFETY: the caller's.
                    unsafe {
                        let from = self.products.add((number * self.pitch + x) * columns + c);
                        let mut places = [V::Octet::splat(T::ZERO); OCTET];
                        for (i, place) in places.iter_mut().enumerate() {
                            *place = V::Octet::load(from.add(i * columns));
                        }
                        let to = self.values.add(y * stride * planes.columns + x * stride);
                        for (v, tap) in Octet::transpose(places).into_iter().zip(&taps[c..]) {
                            let to = to.add(*tap);
                            if *stride == 1 {
                                V::Octet::load(to).add(v).store(to);
                                continue;
                            }
                            let mut lanes = [T::ZERO; OCTET];
                            v.store(lanes.as_mut_ptr());
                            for (i, lane) in lanes.into_iter().enumerate().take(source.w - x) {
                                *to.add(i * stride) += lane;
                            }
                        }
                    }
                }
            }
        }
    }
}
