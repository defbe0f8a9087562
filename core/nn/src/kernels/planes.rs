//! Images with borders of zeros, laid out so that a convolution is a sum of shifted copies.
//!
//! A convolution of stride 1 reads, for every output at once, the same image shifted by the tap: with the
//! output's rows as long as the bordered image's, tap `(r, s)` of output `q` is element `q + r * pitch + s`.
//! Nothing is copied per tap, and the outputs that fall into the border are thrown away. For stride `d`
//! the image is first dealt out into `d * d` planes by the remainders of row and column. Bound by memory.

use super::Real;
use super::scratch::with_scratch;
use super::tile::WIDTH;

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
    /// Terms of one output.
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

    /// The input as planes, and where each tap `[Cin, kh, kw]` begins in them.
    pub fn input_planes(&self) -> (Planes, Vec<usize>) {
        let d = self.stride;
        let planes = Planes {
            channels: self.c_in,
            rows: Axis::dealt(self.h, self.top, self.kh, d, self.h_out),
            columns: Axis::dealt(self.w, self.left, self.kw, d, self.w_out),
        };
        let mut taps = Vec::with_capacity(self.k());
        for c in 0..self.c_in {
            for r in 0..self.kh {
                for s in 0..self.kw {
                    taps.push(planes.at(c, (r % d, r / d), (s % d, s / d)));
                }
            }
        }
        (planes, taps)
    }
}

/// One axis of an image, bordered and dealt out by remainders.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    /// Elements of the image.
    pub size: usize,
    /// Zeros before them.
    pub before: usize,
    /// Every how many elements go into one plane.
    pub stride: usize,
    /// Remainders that are kept, `0..phases`.
    pub phases: usize,
    /// Elements of a plane.
    pub len: usize,
}

impl Axis {
    /// An axis to be read by `taps` taps at a stride, `out` times.
    fn dealt(size: usize, before: usize, taps: usize, stride: usize, out: usize) -> Axis {
        Axis {
            size,
            before,
            stride,
            phases: stride.min(taps),
            len: out + taps.div_ceil(stride) - 1,
        }
    }

    /// The elements of plane `phase` that lie inside the image, and the first one's index there.
    fn inside(&self, phase: usize) -> (usize, usize, usize) {
        let begin = self.before.saturating_sub(phase).div_ceil(self.stride);
        let end = (self.size + self.before).saturating_sub(phase);
        let end = end.div_ceil(self.stride).min(self.len);
        match begin < end {
            true => (begin, end, begin * self.stride + phase - self.before),
            false => (0, 0, 0),
        }
    }
}

/// Planes of all channels of an image: `[channels, row phases, column phases, rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planes {
    pub channels: usize,
    pub rows: Axis,
    pub columns: Axis,
}

impl Planes {
    /// Elements of all planes.
    fn len(&self) -> usize {
        self.channels * self.rows.phases * self.columns.phases * self.rows.len * self.columns.len
    }

    /// Distance of two rows.
    pub fn pitch(&self) -> usize {
        self.columns.len
    }

    /// Index of an element: channel, row's phase and number, column's phase and number.
    fn at(&self, channel: usize, row: (usize, usize), column: (usize, usize)) -> usize {
        let plane = (channel * self.rows.phases + row.0) * self.columns.phases + column.0;
        (plane * self.rows.len + row.1) * self.columns.len + column.1
    }

    /// Lends `f` the planes of one image, with the room behind them that tiles reach into.
    pub fn lend<T: Real>(&self, image: &[T], f: impl FnOnce(&[T])) {
        let len = self.len();
        with_scratch(len + WIDTH, |buffer| {
            self.fill(image, &mut buffer[..len]);
            buffer[len..].fill(T::ZERO);
            f(buffer);
        });
    }

    /// Deals the image `x` `[channels, rows, columns]` out into `planes`.
    fn fill<T: Real>(&self, x: &[T], planes: &mut [T]) {
        let (rows, columns) = (self.rows, self.columns);
        let mut planes = planes.chunks_exact_mut(rows.len * columns.len);
        for image in x.chunks_exact(rows.size * columns.size) {
            for row_phase in 0..rows.phases {
                for (column_phase, plane) in (0..columns.phases).zip(&mut planes) {
                    self.fill_plane(image, row_phase, column_phase, plane);
                }
            }
        }
    }

    fn fill_plane<T: Real>(&self, image: &[T], row: usize, column: usize, plane: &mut [T]) {
        let pitch = self.pitch();
        let (top, bottom, first_row) = self.rows.inside(row);
        let (left, right, first_column) = self.columns.inside(column);
        plane[..top * pitch].fill(T::ZERO);
        plane[bottom * pitch..].fill(T::ZERO);
        let inside = plane[top * pitch..bottom * pitch].chunks_exact_mut(pitch);
        for (i, out) in inside.enumerate() {
            let source = (first_row + i * self.rows.stride) * self.columns.size + first_column;
            out[..left].fill(T::ZERO);
            out[right..].fill(T::ZERO);
            let out = &mut out[left..right];
            if self.columns.stride == 1 {
                out.copy_from_slice(&image[source..source + out.len()]);
            } else {
                let taps = image[source..].iter().step_by(self.columns.stride);
                for (out, tap) in out.iter_mut().zip(taps) {
                    *out = *tap;
                }
            }
        }
    }
}
