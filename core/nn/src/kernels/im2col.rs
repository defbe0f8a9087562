//! Patches of an image as columns of a matrix, and back. Bound by memory.

use super::Real;

/// Geometry of one convolution, for a batch of `n` images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub n: usize,
    pub c_in: usize,
    pub h: usize,
    pub w: usize,
    pub c_out: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    /// Rows of zeros above the image.
    pub top: usize,
    /// Columns of zeros to its left.
    pub left: usize,
    pub h_out: usize,
    pub w_out: usize,
}

impl Geometry {
    /// Terms of one output: rows of the column matrix.
    pub fn k(&self) -> usize {
        self.c_in * self.kh * self.kw
    }

    /// Elements of one input image.
    pub fn in_len(&self) -> usize {
        self.c_in * self.h * self.w
    }

    /// Positions of one output channel.
    pub fn out_area(&self) -> usize {
        self.h_out * self.w_out
    }

    /// Elements of one output image.
    pub fn out_len(&self) -> usize {
        self.c_out * self.out_area()
    }

    /// Whether the column matrix is the image itself.
    pub fn is_pointwise(&self) -> bool {
        let unpadded = (self.h_out, self.w_out) == (self.h, self.w);
        self.kh == 1 && self.kw == 1 && self.stride == 1 && unpadded
    }

    /// The outputs `x` of a row whose tap `s` falls inside the image: `begin..end`.
    fn inside(&self, s: usize, size: usize, before: usize, out: usize) -> (usize, usize) {
        let begin = before.saturating_sub(s).div_ceil(self.stride);
        let end = (size + before).saturating_sub(s).div_ceil(self.stride);
        let end = end.min(out);
        (begin.min(end), end)
    }
}

/// Writes the patches of output rows `y0..y1` as `col` `[k, (y1 - y0) * w_out]`.
pub(crate) fn im2col<T: Real>(g: &Geometry, x: &[T], y0: usize, y1: usize, col: &mut [T]) {
    for_each_row(g, y0, y1, |at, source, begin, end| {
        let row = &mut col[at..at + g.w_out];
        let Some(source) = source else {
            return row.fill(T::ZERO);
        };
        row[..begin].fill(T::ZERO);
        row[end..].fill(T::ZERO);
        let taps = &x[source..];
        if g.stride == 1 {
            row[begin..end].copy_from_slice(&taps[..end - begin]);
        } else {
            for (out, tap) in row[begin..end].iter_mut().zip(taps.iter().step_by(g.stride)) {
                *out = *tap;
            }
        }
    });
}

/// Adds `col` `[k, (y1 - y0) * w_out]` of output rows `y0..y1` back to where its patches came from.
pub(crate) fn col2im<T: Real>(g: &Geometry, col: &[T], y0: usize, y1: usize, dx: &mut [T]) {
    for_each_row(g, y0, y1, |at, source, begin, end| {
        let Some(source) = source else { return };
        let row = &col[at + begin..at + end];
        let taps = &mut dx[source..];
        if g.stride == 1 {
            for (tap, value) in taps.iter_mut().zip(row) {
                *tap += *value;
            }
        } else {
            for (tap, value) in taps.iter_mut().step_by(g.stride).zip(row) {
                *tap += *value;
            }
        }
    });
}

/// Calls `f(at, source, begin, end)` for each row of `w_out` elements of the column matrix: it starts at
/// `at`, its outputs `begin..end` lie inside the image, and the first of them reads `source` (none: all
/// of them are padding).
fn for_each_row(g: &Geometry, y0: usize, y1: usize, mut f: impl FnMut(usize, Option<usize>, usize, usize)) {
    let mut at = 0;
    for c in 0..g.c_in {
        for r in 0..g.kh {
            for s in 0..g.kw {
                let (begin, end) = g.inside(s, g.w, g.left, g.w_out);
                for y in y0..y1 {
                    let row = (y * g.stride + r).checked_sub(g.top).filter(|row| *row < g.h);
                    let source = row
                        .filter(|_| begin < end)
                        .map(|row| (c * g.h + row) * g.w + begin * g.stride + s - g.left);
                    f(at, source, begin, end);
                    at += g.w_out;
                }
            }
        }
    }
}
