//! Where the numbers of a batch of maps lie.
//!
//! Maps of many channels are stored channels last, padded to a multiple of 16, so that a vector holds eight
//! or sixteen channels of one place; maps of few channels ([`NARROW`] at most) plane by plane. Both have borders of zeros wide
//! enough for every kernel that reads them, and nobody writes there: no kernel checks bounds.

use std::ops::Range;

use super::vector::OCTET;

/// Columns a product is packed in, and what stored channels are a multiple of: two vectors of eight, or one of sixteen.
pub(crate) const PANEL: usize = 2 * OCTET;

/// Channels that a map stored plane by plane has at most.
pub(crate) const NARROW: usize = 4;

/// Zeros around a map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Border {
    pub top: usize,
    pub left: usize,
    pub bottom: usize,
    pub right: usize,
}

impl Border {
    /// The wider of the two on each side.
    pub fn union(self, other: Border) -> Border {
        Border {
            top: self.top.max(other.top),
            left: self.left.max(other.left),
            bottom: self.bottom.max(other.bottom),
            right: self.right.max(other.right),
        }
    }
}

/// Layout of one map `[C, H, W]` of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub c: usize,
    pub h: usize,
    pub w: usize,
    pub border: Border,
    /// Whether it is stored plane by plane.
    pub narrow: bool,
}

impl Frame {
    /// The layout of `[c, h, w]` maps with a border.
    pub fn new([c, h, w]: [usize; 3], border: Border) -> Frame {
        let narrow = c <= NARROW;
        Frame {
            c,
            h,
            w,
            border,
            narrow,
        }
    }

    /// The same with channels last, however few they are.
    pub fn channels_last(shape: [usize; 3], border: Border) -> Frame {
        Frame {
            narrow: false,
            ..Frame::new(shape, border)
        }
    }

    /// Channels stored, the padding's included.
    pub fn channels(&self) -> usize {
        match self.narrow {
            true => self.c,
            false => self.c.next_multiple_of(PANEL),
        }
    }

    /// Rows and columns, the border's included.
    pub fn extent(&self) -> [usize; 2] {
        let Border {
            top,
            left,
            bottom,
            right,
        } = self.border;
        [top + self.h + bottom, left + self.w + right]
    }

    /// Elements of one map.
    pub fn len(&self) -> usize {
        let [rows, columns] = self.extent();
        rows * columns * self.channels()
    }

    /// Steps between channels, rows, and columns.
    pub fn strides(&self) -> [usize; 3] {
        let [rows, columns] = self.extent();
        match self.narrow {
            true => [rows * columns, columns, 1],
            false => [1, columns * self.channels(), self.channels()],
        }
    }

    /// Where channel 0 of place `(y, x)` lies; the border is before `(0, 0)`.
    pub fn at(&self, y: usize, x: usize) -> usize {
        let [_, row, column] = self.strides();
        (self.border.top + y) * row + (self.border.left + x) * column
    }

    /// Where a kernel with `top` and `left` zeros of its own begins to read.
    pub fn corner(&self, top: usize, left: usize) -> usize {
        let [_, row, column] = self.strides();
        (self.border.top - top) * row + (self.border.left - left) * column
    }

    /// Where the rows of a map lie, without the border: in order, `[w, channels]` each, or `[w]` plane by plane.
    pub fn rows(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let frame = *self;
        let (planes, length) = match self.narrow {
            true => (self.c, self.w),
            false => (1, self.w * self.channels()),
        };
        let plane = self.strides()[0];
        (0..planes * self.h).map(move |row| {
            let first = frame.at(row % frame.h, 0) + row / frame.h * plane;
            first..first + length
        })
    }

    /// Its shape.
    pub fn shape(&self) -> [usize; 3] {
        [self.c, self.h, self.w]
    }
}
