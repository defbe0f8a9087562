//! Convolution, its input gradient and its weight gradient, image by image, as sums of shifted planes
//! (see [`planes`](super::planes)). Bound by compute.

use super::matmul::{Tiles, pack_rows};
use super::planes::{Axis, Geometry, Planes};
use super::scratch::with_scratch;
use super::tile::{LANES, TAPS, WIDTH, add_lanes, outer};
use super::{Real, fused};
use crate::threads::for_each_chunk;

/// Images whose weight gradients are summed before they join the others. Part of the result: do not
/// change it lightly.
const CHUNK: usize = 8;

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
                with_planes(&planes, &x[n * g.in_len()..][..g.in_len()], |x| {
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
        with_planes(&planes, &dy[n * g.out_len()..][..g.out_len()], |dy| {
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

/// `dw` `[Cout, Cin, kh, kw]`, summed over the batch in chunks of fixed size and order.
pub(crate) fn weight_gradient<T: Real>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    match g.c_out {
        0..=LANES => weight_gradient_by::<T, 1>(g, x, dy),
        _ => weight_gradient_by::<T, 2>(g, x, dy),
    }
}

/// The same, `V` vectors of output channels at a time.
fn weight_gradient_by<T: Real, const V: usize>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (planes, mut taps) = g.input_planes();
    taps.resize(g.k().next_multiple_of(TAPS), 0);
    let width = V * LANES;
    let len = g.c_out.div_ceil(width) * taps.len() * width;
    // [chunks, channel blocks, taps, channels of a block]
    let mut partial = vec![T::ZERO; g.n.div_ceil(CHUNK) * len];
    for_each_chunk(&mut partial, len, |chunk, dw| {
        let dw = vectors_mut::<T, V>(dw);
        for n in chunk * CHUNK..((chunk + 1) * CHUNK).min(g.n) {
            let dy = &dy[n * g.out_len()..][..g.out_len()];
            with_planes(&planes, &x[n * g.in_len()..][..g.in_len()], |x| {
                with_scratch(g.out_area() * width, |panel| {
                    let blocks = dy.chunks(width * g.out_area());
                    for (dy, dw) in blocks.zip(dw.chunks_mut(taps.len())) {
                        transpose(width, dy, panel);
                        let panel = vectors_mut::<T, V>(panel);
                        add_products::<T, V>([g.w_out, planes.pitch()], x, panel, &taps, dw);
                    }
                });
            });
        }
    });
    let sum = sum_chunks(partial, len);
    let mut dw = Vec::with_capacity(g.c_out * g.k());
    for co in 0..g.c_out {
        let block = &sum[co / width * taps.len() * width..];
        dw.extend((0..g.k()).map(|k| block[k * width + co % width]));
    }
    dw
}

/// The slice in groups of `V` vectors.
fn vectors_mut<T, const V: usize>(values: &mut [T]) -> &mut [[[T; LANES]; V]] {
    values.as_chunks_mut::<LANES>().0.as_chunks_mut::<V>().0
}

fused!(fn add_products<T: Real, const V: usize>(
    sizes: [usize; 2],
    x: &[T],
    dy: &[[[T; LANES]; V]],
    taps: &[usize],
    dw: &mut [[[T; LANES]; V]]
) = add_products_by);

/// Adds `sum_p x[taps[k] + p] dy[p]` to `dw[k]`, for the positions `p` of one image: rows of `w_out`, which
/// are `pitch` apart in `x`.
#[inline(always)]
fn add_products_by<T: Real, const V: usize, const FMA: bool>(
    [w_out, pitch]: [usize; 2],
    x: &[T],
    dy: &[[[T; LANES]; V]],
    taps: &[usize],
    dw: &mut [[[T; LANES]; V]],
) {
    let tiles = taps.as_chunks::<TAPS>().0.iter();
    for (taps, dw) in tiles.zip(dw.as_chunks_mut::<TAPS>().0) {
        for (y, dy) in dy.chunks_exact(w_out).enumerate() {
            let a = taps.map(|tap| &x[tap + y * pitch..tap + y * pitch + w_out]);
            outer::<T, V, FMA>(dw, a, dy);
        }
    }
}

/// Turns at most `width` channels `[channels, positions]` into `[positions, width]`, with zeros where
/// there are fewer channels.
fn transpose<T: Real>(width: usize, dy: &[T], panel: &mut [T]) {
    let area = panel.len() / width;
    if dy.len() < panel.len() {
        panel.fill(T::ZERO);
    }
    for (c, channel) in dy.chunks_exact(area).enumerate() {
        for (out, value) in panel.chunks_exact_mut(width).zip(channel) {
            out[c] = *value;
        }
    }
}

/// `db` `[Cout]`, summed over the batch and the positions.
pub(crate) fn bias_gradient<T: Real>(g: &Geometry, dy: &[T]) -> Vec<T> {
    let mut db = vec![T::ZERO; g.c_out];
    for image in dy.chunks(g.out_len().max(1)) {
        for (sum, channel) in db.iter_mut().zip(image.chunks(g.out_area())) {
            *sum += sum_of(channel);
        }
    }
    db
}

/// Sum of a slice, in eight interleaved parts, so that it vectorises.
#[inline(always)]
pub(crate) fn sum_of<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::ZERO; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += *value;
        }
    }
    rest.iter().fold(add_lanes(&lanes), |sum, value| sum + *value)
}

/// Adds the parts, of `len` elements each, in their order.
fn sum_chunks<T: Real>(mut parts: Vec<T>, len: usize) -> Vec<T> {
    let Some((sum, rest)) = parts.split_at_mut_checked(len) else {
        return vec![T::ZERO; len];
    };
    for part in rest.chunks(len.max(1)) {
        for (total, value) in sum.iter_mut().zip(part) {
            *total += *value;
        }
    }
    parts.truncate(len);
    parts
}

/// Lends `f` the matrix `[m, k]` of `at(i, k)` in packed rows.
fn with_packed<T: Real>([m, k]: [usize; 2], at: impl Fn(usize, usize) -> T, f: impl FnOnce(&[T])) {
    with_scratch(m * k, |packed| {
        pack_rows([m, k], packed, at);
        f(packed);
    });
}

/// Lends `f` the planes of one image, with the room behind them that tiles reach into.
fn with_planes<T: Real>(planes: &Planes, image: &[T], f: impl FnOnce(&[T])) {
    let len = planes.len();
    with_scratch(len + WIDTH, |buffer| {
        planes.fill(image, &mut buffer[..len]);
        buffer[len..].fill(T::ZERO);
        f(buffer);
    });
}
