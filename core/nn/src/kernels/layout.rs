//! From candle's `[C, H, W]` to [`Frame`]s and back. Bound by memory; eight channels of eight places are turned over
//! in registers.

use super::frame::Frame;
use super::vector::{OCTET, Octet, Vector};
use super::{Real, Task};

/// Writes the image `x` `[C, H, W]` into a map of `frame`, whose border and padding are left alone.
pub(crate) fn import<T: Real>(frame: &Frame, x: &[T], map: &mut [T]) {
    assert!(x.len() == frame.c * frame.h * frame.w && map.len() >= frame.len());
    if !frame.narrow {
        // SAFETY: both slices are as long as the frame says.
        return unsafe { T::dispatch(Import { frame, x, map }) };
    }
    for (c, plane) in x.chunks_exact(frame.h * frame.w).enumerate() {
        for (y, row) in plane.chunks_exact(frame.w).enumerate() {
            let to = frame.at(y, 0) + c * frame.strides()[0];
            map[to..to + frame.w].copy_from_slice(row);
        }
    }
}

/// Reads the image `x` `[C, H, W]` out of a map of `frame`.
pub(crate) fn export<T: Real>(frame: &Frame, map: &[T], x: &mut [T]) {
    assert!(x.len() == frame.c * frame.h * frame.w && map.len() >= frame.len());
    if !frame.narrow {
        // SAFETY: as above.
        return unsafe { T::dispatch(Export { frame, map, x }) };
    }
    for (c, plane) in x.chunks_exact_mut(frame.h * frame.w).enumerate() {
        for (y, row) in plane.chunks_exact_mut(frame.w).enumerate() {
            let from = frame.at(y, 0) + c * frame.strides()[0];
            row.copy_from_slice(&map[from..from + frame.w]);
        }
    }
}

struct Import<'a, T> {
    frame: &'a Frame,
    x: &'a [T],
    map: &'a mut [T],
}

impl<T: Real> Task<T> for Import<'_, T> {
    /// # Safety
    /// Both slices are as long as the frame says.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (plane, step) = (self.frame.h * self.frame.w, self.frame.channels());
        let to = self.map.as_mut_ptr();
        blocks(self.frame, |c, y, x, whole| {
            let from = c * plane + y * self.frame.w + x;
            let at = self.frame.at(y, x) + c;
            if !whole {
                // SAFETY: one place and channel of both.
                return unsafe { *to.add(at) = self.x[from] };
            }
            // SAFETY: eight channels of eight places of both.
            unsafe {
                let rows = std::array::from_fn(|i| V::Octet::load(self.x.as_ptr().add(from + i * plane)));
                for (i, column) in Octet::transpose(rows).into_iter().enumerate() {
                    column.store(to.add(at + i * step));
                }
            }
        });
    }
}

struct Export<'a, T> {
    frame: &'a Frame,
    map: &'a [T],
    x: &'a mut [T],
}

impl<T: Real> Task<T> for Export<'_, T> {
    /// # Safety
    /// Both slices are as long as the frame says.
    #[inline(always)]
    unsafe fn run<V: Vector<T = T>>(self) {
        let (plane, step) = (self.frame.h * self.frame.w, self.frame.channels());
        let to = self.x.as_mut_ptr();
        blocks(self.frame, |c, y, x, whole| {
            let at = c * plane + y * self.frame.w + x;
            let from = self.frame.at(y, x) + c;
            if !whole {
                // SAFETY: one place and channel of both.
                return unsafe { *to.add(at) = self.map[from] };
            }
            // SAFETY: eight channels of eight places of both.
            unsafe {
                let rows = std::array::from_fn(|i| V::Octet::load(self.map.as_ptr().add(from + i * step)));
                for (i, column) in Octet::transpose(rows).into_iter().enumerate() {
                    column.store(to.add(at + i * plane));
                }
            }
        });
    }
}

/// Calls `f(c, y, x, true)` for eight channels of eight places of a row, and `f(c, y, x, false)` for the single ones
/// that are left.
#[inline(always)]
fn blocks(frame: &Frame, mut f: impl FnMut(usize, usize, usize, bool)) {
    let whole = frame.w / OCTET * OCTET;
    for y in 0..frame.h {
        for c in (0..frame.c).step_by(OCTET) {
            let channels = OCTET.min(frame.c - c);
            if channels == OCTET {
                (0..whole).step_by(OCTET).for_each(|x| f(c, y, x, true));
            }
            for x in if channels == OCTET { whole } else { 0 }..frame.w {
                (c..c + channels).for_each(|c| f(c, y, x, false));
            }
        }
    }
}
