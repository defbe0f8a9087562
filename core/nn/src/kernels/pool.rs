//! Max pooling and nearest-neighbour upsampling, and their gradients. Bound by memory.

use super::{Real, simd};

/// `planes` images of `h` by `w`, in blocks of `k` by `k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub planes: usize,
    pub h: usize,
    pub w: usize,
    pub k: usize,
}

impl Blocks {
    /// Whole blocks in a column of blocks, and in a row.
    pub fn counts(&self) -> (usize, usize) {
        (self.h / self.k, self.w / self.k)
    }
}

/// The largest element of each whole block, `[planes, h / k, w / k]`; NaN where a block holds one.
pub(crate) fn max_pool<T: Real>(b: &Blocks, x: &[T]) -> Vec<T> {
    let (h_out, w_out) = b.counts();
    let mut y = Vec::with_capacity(b.planes * h_out * w_out);
    simd(|| {
        for plane in x.chunks_exact(b.h * b.w) {
            for rows in plane.chunks_exact(b.k * b.w) {
                for column in 0..w_out {
                    let (_, max) = first_max(b, rows, column * b.k);
                    y.push(max);
                }
            }
        }
    });
    y
}

/// Gives each block's gradient to its largest element, the first of equals (row by row).
pub(crate) fn max_pool_gradient<T: Real>(b: &Blocks, x: &[T], dy: &[T]) -> Vec<T> {
    let (_, w_out) = b.counts();
    let mut dx = vec![T::ZERO; x.len()];
    let mut dy = dy.iter();
    let planes = x.chunks_exact(b.h * b.w).zip(dx.chunks_exact_mut(b.h * b.w));
    for (plane, dplane) in planes {
        let rows = plane.chunks_exact(b.k * b.w);
        for (rows, drows) in rows.zip(dplane.chunks_exact_mut(b.k * b.w)) {
            for (column, g) in (0..w_out).zip(&mut dy) {
                drows[first_max(b, rows, column * b.k).0] = *g;
            }
        }
    }
    dx
}

/// Index and value of the first largest element of the block that starts at `start`; a NaN is larger
/// than any number.
#[inline(always)]
fn first_max<T: Real>(b: &Blocks, rows: &[T], start: usize) -> (usize, T) {
    let (mut at, mut max) = (start, rows[start]);
    for r in 0..b.k {
        let row = rows.iter().enumerate().skip(r * b.w + start).take(b.k);
        for (i, value) in row {
            if *value > max || value.is_nan() {
                (at, max) = (i, *value);
            }
        }
    }
    (at, max)
}

/// Repeats each element of `x` `[planes, h / k, w / k]` into a block of `[planes, h, w]`.
pub(crate) fn upsample<T: Real>(b: &Blocks, x: &[T]) -> Vec<T> {
    let (_, w_in) = b.counts();
    let mut y = vec![T::ZERO; b.planes * b.h * b.w];
    simd(|| {
        for (row, rows) in x.chunks_exact(w_in).zip(y.chunks_exact_mut(b.k * b.w)) {
            let (first, rest) = rows.split_at_mut(b.w);
            for (value, block) in row.iter().zip(first.chunks_exact_mut(b.k)) {
                block.fill(*value);
            }
            for copy in rest.chunks_exact_mut(b.w) {
                copy.copy_from_slice(first);
            }
        }
    });
    y
}

/// Sums each block of `dy` `[planes, h, w]`: `[planes, h / k, w / k]`.
pub(crate) fn upsample_gradient<T: Real>(b: &Blocks, dy: &[T]) -> Vec<T> {
    let (_, w_in) = b.counts();
    let mut dx = vec![T::ZERO; dy.len() / (b.k * b.k)];
    simd(|| {
        for (sums, rows) in dx.chunks_exact_mut(w_in).zip(dy.chunks_exact(b.k * b.w)) {
            for row in rows.chunks_exact(b.w) {
                for (sum, block) in sums.iter_mut().zip(row.chunks_exact(b.k)) {
                    for value in block {
                        *sum += *value;
                    }
                }
            }
        }
    });
    dx
}
