//! Convolution, its input gradient and its weight gradient: one matrix product an image, in strips of
//! rows whose column matrix stays in the cache. Bound by compute.

use super::im2col::{Geometry, col2im, im2col};
use super::matmul::{Strides, matmul, rows, transposed};
use super::scratch::with_scratch;
use super::{Real, simd};
use crate::threads::for_each_chunk;

/// Elements of a column matrix: it should stay in the second-level cache.
const STRIP: usize = 48 * 1024;

/// Images whose weight gradients are summed before they join the others. Part of the result: do not
/// change it lightly.
const CHUNK: usize = 8;

/// `y[n, co, p] = bias[co] + sum_k w[co, k] col(x[n])[k, p]` for `y` `[N, Cout, Hout, Wout]`.
pub(crate) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut y = vec![T::ZERO; g.n * g.out_len()];
    for_each_chunk(&mut y, g.out_len(), |n, y| {
        let x = &x[n * g.in_len()..][..g.in_len()];
        if let Some(bias) = bias {
            for (channel, b) in y.chunks_mut(g.out_area()).zip(bias) {
                channel.fill(*b);
            }
        }
        strips(g, |y0, y1| {
            with_columns(g, x, y0, y1, |col, strides| {
                let size = [g.c_out, (y1 - y0) * g.w_out, g.k()];
                let y = &mut y[y0 * g.w_out..];
                let y = (y, rows(g.out_area()));
                matmul(size, y, bias.is_some(), (w, rows(g.k())), (col, strides));
            });
        });
    });
    y
}

/// `dx` `[N, Cin, H, W]` from `dy` `[N, Cout, Hout, Wout]`.
pub(crate) fn input_gradient<T: Real>(g: &Geometry, w: &[T], dy: &[T]) -> Vec<T> {
    let mut dx = vec![T::ZERO; g.n * g.in_len()];
    for_each_chunk(&mut dx, g.in_len(), |n, dx| {
        let dy = &dy[n * g.out_len()..][..g.out_len()];
        let w = (w, transposed(g.k()));
        if g.is_pointwise() {
            let size = [g.c_in, g.out_area(), g.c_out];
            let dy = (dy, rows(g.out_area()));
            return matmul(size, (dx, rows(g.out_area())), false, w, dy);
        }
        strips(g, |y0, y1| {
            let width = (y1 - y0) * g.w_out;
            with_scratch(g.k() * width, |col| {
                let dy = (&dy[y0 * g.w_out..], rows(g.out_area()));
                matmul([g.k(), width, g.c_out], (col, rows(width)), false, w, dy);
                simd(|| col2im(g, col, y0, y1, dx));
            });
        });
    });
    dx
}

/// `dw` `[Cout, Cin, kh, kw]`, summed over the batch in chunks of fixed size and order.
pub(crate) fn weight_gradient<T: Real>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let len = g.c_out * g.k();
    let mut partial = vec![T::ZERO; g.n.div_ceil(CHUNK) * len];
    for_each_chunk(&mut partial, len, |chunk, dw| {
        for n in chunk * CHUNK..((chunk + 1) * CHUNK).min(g.n) {
            let x = &x[n * g.in_len()..][..g.in_len()];
            let dy = &dy[n * g.out_len()..][..g.out_len()];
            strips(g, |y0, y1| {
                with_columns(g, x, y0, y1, |col, Strides { row, col: step }| {
                    let size = [g.c_out, g.k(), (y1 - y0) * g.w_out];
                    let dy = (&dy[y0 * g.w_out..], rows(g.out_area()));
                    let col_t = Strides { row: step, col: row };
                    matmul(size, (&mut *dw, rows(g.k())), true, dy, (col, col_t));
                });
            });
        }
    });
    sum_chunks(partial, len)
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
pub(crate) fn sum_of<T: Real>(values: &[T]) -> T {
    let mut parts = [T::ZERO; 8];
    let chunks = values.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (part, value) in parts.iter_mut().zip(chunk) {
            *part += *value;
        }
    }
    let mut sum = T::ZERO;
    for value in parts.iter().chain(rest) {
        sum += *value;
    }
    sum
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

/// Cuts the output rows of one image into strips whose column matrix fits [`STRIP`].
fn strips(g: &Geometry, mut f: impl FnMut(usize, usize)) {
    let height = (STRIP / (g.k() * g.w_out).max(1)).max(1);
    for y0 in (0..g.h_out).step_by(height) {
        f(y0, (y0 + height).min(g.h_out));
    }
}

/// Lends `f` the column matrix of output rows `y0..y1`; for a pointwise convolution, the image itself.
fn with_columns<T: Real>(g: &Geometry, x: &[T], y0: usize, y1: usize, f: impl FnOnce(&[T], Strides)) {
    if g.is_pointwise() {
        return f(&x[y0 * g.w..], rows(g.out_area()));
    }
    let width = (y1 - y0) * g.w_out;
    with_scratch(g.k() * width, |col| {
        im2col(g, x, y0, y1, col);
        f(col, rows(width));
    });
}
