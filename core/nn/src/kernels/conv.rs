//! Convolution and its input gradient, image by image, as sums of shifted planes
//! (see [`planes`](super::planes)). Bound by compute.
//!
//! Share of one core's fused multiply-add peak (104 GFLOPS; AVX2, f32, batch 16, by the bench `kernels`), tape
//! included: 32 -> 32 channels at 28 x 28, 3 x 3: forward 78 %, input gradient 67 %; 64 -> 64 at 14 x 14: 75 and
//! 69 %. What is missing is mostly the border: 2 of 30 (16) columns are thrown away.

use super::Real;
use super::matmul::{Tiles, pack_rows};
use super::planes::{Axis, Geometry, Planes};
use super::scratch::with_scratch;
use crate::threads::for_each_chunk;

/// `y[n, co, p] = bias[co] + sum_k w[co, k] x[n, p + k]` for `y` `[N, Cout, Hout, Wout]`.
pub(crate) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let (planes, taps) = g.input_planes();
    let pitch = planes.pitch();
    let mut y = vec![T::ZERO; g.n * g.out_len()];
    with_packed(
        [g.c_out, g.k()],
        |co, k| w[co * g.k() + k],
        |packed| {
            for_each_chunk(&mut y, g.out_len(), |n, y| {
                let tiles = Tiles {
                    k: g.k(),
                    packed,
                    offsets: &taps,
                };
                planes.lend(&x[n * g.in_len()..][..g.in_len()], |x| {
                    tiles.rows(g.c_out, g.h_out * pitch, x, |co, sums| {
                        let bias = bias.map_or(T::ZERO, |b| b[co]);
                        let channel = &mut y[co * g.out_area()..][..g.out_area()];
                        let rows = channel.chunks_exact_mut(g.w_out).zip(sums.chunks(pitch));
                        for (row, sums) in rows {
                            for (out, sum) in row.iter_mut().zip(sums) {
                                *out = *sum + bias;
                            }
                        }
                    });
                });
            });
        },
    );
    y
}

/// `dx` `[N, Cin, H, W]` from `dy` `[N, Cout, Hout, Wout]`: for each remainder of row and column by the
/// stride, a convolution of `dy` with the taps of that remainder.
pub(crate) fn input_gradient<T: Real>(g: &Geometry, w: &[T], dy: &[T]) -> Vec<T> {
    let rows = Spread::new(g.h, g.top, g.kh, g.stride, g.h_out);
    let columns = Spread::new(g.w, g.left, g.kw, g.stride, g.w_out);
    let planes = Planes {
        channels: g.c_out,
        rows: rows.source,
        columns: columns.source,
    };
    let phases: Vec<Phase<T>> = (0..g.stride * g.stride)
        .map(|i| Phase::new(g, &planes, w, (rows, i / g.stride), (columns, i % g.stride)))
        .collect();
    let mut dx = vec![T::ZERO; g.n * g.in_len()];
    for_each_chunk(&mut dx, g.in_len(), |n, dx| {
        planes.lend(&dy[n * g.out_len()..][..g.out_len()], |dy| {
            for phase in phases.iter().filter(|phase| !phase.taps.is_empty()) {
                phase.add(g, planes.pitch(), dy, dx);
            }
        });
    });
    dx
}

/// How one axis of `dy` reaches `dx`.
#[derive(Clone, Copy)]
struct Spread {
    /// The axis of `dy`, bordered so that every tap falls on it.
    source: Axis,
    /// Positions of `dx` of one remainder.
    count: usize,
    /// Taps of the axis.
    taps: usize,
    stride: usize,
    /// Zeros before `dx`, less the whole strides that are skipped.
    skipped: usize,
    size: usize,
}

impl Spread {
    fn new(size: usize, before: usize, taps: usize, stride: usize, out: usize) -> Spread {
        let (whole, skipped) = (before / stride, before % stride);
        let count = (size + before).div_ceil(stride) - whole;
        let most = taps.div_ceil(stride);
        let source = Axis {
            size: out,
            before: most - 1 - whole,
            stride: 1,
            phases: 1,
            len: count + most - 1,
        };
        Spread {
            source,
            count,
            taps,
            stride,
            skipped,
            size,
        }
    }

    /// The taps of one remainder, each with its place on the source.
    fn taps(self, phase: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        let most = self.taps.div_ceil(self.stride);
        (phase..self.taps)
            .step_by(self.stride)
            .enumerate()
            .map(move |(i, tap)| (tap, most - 1 - i))
    }

    /// The positions `i` of one remainder that lie on `dx`, each with its place there.
    fn places(self, phase: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
        (0..self.count).filter_map(move |i| {
            let place = (i * self.stride + phase).checked_sub(self.skipped)?;
            (place < self.size).then_some((i, place))
        })
    }
}

/// The part of an input gradient that one remainder of row and column makes.
struct Phase<T> {
    /// Where each tap `[Cout, taps of the rows, taps of the columns]` begins in the planes of `dy`.
    taps: Vec<usize>,
    /// Their weights, packed by input channel.
    packed: Vec<T>,
    rows: Vec<(usize, usize)>,
    columns: Vec<(usize, usize)>,
}

impl<T: Real> Phase<T> {
    fn new(
        g: &Geometry,
        planes: &Planes,
        w: &[T],
        (rows, row_phase): (Spread, usize),
        (columns, column_phase): (Spread, usize),
    ) -> Phase<T> {
        let (mut taps, mut sources) = (Vec::new(), Vec::new());
        for co in 0..g.c_out {
            for (r, row) in rows.taps(row_phase) {
                for (s, column) in columns.taps(column_phase) {
                    taps.push((co * planes.rows.len + row) * planes.pitch() + column);
                    sources.push(co * g.k() + r * g.kw + s);
                }
            }
        }
        let mut packed = vec![T::ZERO; g.c_in * taps.len()];
        pack_rows([g.c_in, taps.len()], &mut packed, |ci, k| {
            w[sources[k] + ci * g.kh * g.kw]
        });
        Phase {
            taps,
            packed,
            rows: rows.places(row_phase).collect(),
            columns: columns.places(column_phase).collect(),
        }
    }

    /// Writes this part of `dx` `[Cin, H, W]`, from the planes of `dy`.
    fn add(&self, g: &Geometry, pitch: usize, dy: &[T], dx: &mut [T]) {
        let (Some(&(column, x)), Some(&(last, _))) = (self.columns.first(), self.rows.last()) else {
            return;
        };
        let tiles = Tiles {
            k: self.taps.len(),
            packed: &self.packed,
            offsets: &self.taps,
        };
        tiles.rows(g.c_in, (last + 1) * pitch, dy, |ci, sums| {
            for (row, y) in &self.rows {
                let sums = &sums[row * pitch + column..][..self.columns.len()];
                let out = &mut dx[(ci * g.h + y) * g.w..][x..g.w];
                if g.stride == 1 {
                    out.copy_from_slice(sums);
                } else {
                    for (out, sum) in out.iter_mut().step_by(g.stride).zip(sums) {
                        *out = *sum;
                    }
                }
            }
        });
    }
}

/// Lends `f` the matrix `[m, k]` of `at(i, k)` in packed rows.
fn with_packed<T: Real>([m, k]: [usize; 2], at: impl Fn(usize, usize) -> T, f: impl FnOnce(&[T])) {
    with_scratch(m * k, |packed| {
        pack_rows([m, k], packed, at);
        f(packed);
    });
}
