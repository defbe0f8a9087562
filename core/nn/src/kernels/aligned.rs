//! Buffers that begin at a cache line: a vector of eight never lies across two. Loads across lines count twice, which on maps
//! with channels last was half of the loads and, in kernels bound by them, a third of the speed.

use std::ops::{Deref, DerefMut};

/// Elements of a line; in `f64` two lines.
const LINE: usize = 16;

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line<T>([T; LINE]);

/// A fixed number of elements, the first of them at the begin of a cache line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line<T>>,
    len: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Self {
            lines: vec![Line([T::default(); LINE]); len.div_ceil(LINE)],
            len,
        }
    }
}

impl<T: Copy + Default> From<&[T]> for Aligned<T> {
    fn from(values: &[T]) -> Self {
        let mut aligned = Self::zeros(values.len());
        aligned.copy_from_slice(values);
        aligned
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: lines are arrays without gaps between them, and hold `len` elements at least.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_begin_at_a_line_and_are_the_given_ones() {
        for len in [0, 1, 16, 37] {
            let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let aligned = Aligned::from(values.as_slice());
            assert_eq!(*aligned, *values);
            assert!(aligned.as_ptr().cast::<Line<f32>>().is_aligned());
        }
    }
}
