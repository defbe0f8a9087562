//! Shapes of convolutions.

use super::frame::Border;

/// One convolution: maps `[c_in, h, w]` to `[c_out, h_out, w_out]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub c_in: usize,
    pub h: usize,
    pub w: usize,
    pub c_out: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    /// Rows of zeros above the map.
    pub top: usize,
    /// Columns of zeros to its left.
    pub left: usize,
    pub h_out: usize,
    pub w_out: usize,
}

impl Geometry {
    /// The fully connected layer from `[c, h, w]` to `outputs`, as one patch as large as the map. The stride makes every
    /// place a remainder of its own, reached by one tap.
    pub fn linear([c_in, h, w]: [usize; 3], outputs: usize) -> Geometry {
        Geometry {
            c_in,
            h,
            w,
            c_out: outputs,
            kh: h,
            kw: w,
            stride: h.max(w),
            top: 0,
            left: 0,
            h_out: 1,
            w_out: 1,
        }
    }

    /// Shape of the input.
    pub fn input(&self) -> [usize; 3] {
        [self.c_in, self.h, self.w]
    }

    /// Shape of the output.
    pub fn output(&self) -> [usize; 3] {
        [self.c_out, self.h_out, self.w_out]
    }

    /// Taps of one channel.
    pub fn taps(&self) -> usize {
        self.kh * self.kw
    }

    /// Index in a weight `[c_out, c_in, kh, kw]`.
    pub fn weight(&self, co: usize, ci: usize, r: usize, s: usize) -> usize {
        ((co * self.c_in + ci) * self.kh + r) * self.kw + s
    }

    /// Whether neighbouring patches begin at neighbouring places, or there is one patch only.
    pub fn dense(&self) -> bool {
        self.stride == 1 || (self.h_out, self.w_out) == (1, 1)
    }

    /// Whether the fast algorithm for 3 x 3 taps of stride 1 applies.
    pub fn three_by_three(&self) -> bool {
        (self.kh, self.kw, self.stride) == (3, 3, 1)
    }

    /// Zeros that patches reach for around the input.
    pub fn reach(&self) -> Border {
        let beyond = |out: usize, k: usize, before: usize, size: usize| {
            (out.saturating_sub(1) * self.stride + k).saturating_sub(before + size)
        };
        Border {
            top: self.top,
            left: self.left,
            bottom: beyond(self.h_out, self.kh, self.top, self.h),
            right: beyond(self.w_out, self.kw, self.left, self.w),
        }
    }

    /// The convolution of stride 1 that takes the output's gradient to the input's: weights turned by half a turn,
    /// channels exchanged.
    pub fn turned(&self) -> Geometry {
        Geometry {
            c_in: self.c_out,
            h: self.h_out,
            w: self.w_out,
            c_out: self.c_in,
            top: self.kh - 1 - self.top,
            left: self.kw - 1 - self.left,
            h_out: self.h,
            w_out: self.w,
            ..*self
        }
    }
}
