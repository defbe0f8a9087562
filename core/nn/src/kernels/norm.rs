//! Per-channel affine maps and batch normalisation of `[N, C, H * W]`. Images are taken in parts of fixed size, whose sums
//! are added in order: the number of threads changes nothing. Bound by memory.

use super::conv_weights::sum_chunks;
use super::{Real, simd, sum_of};
use crate::threads::for_each_chunk;

/// Images a thread takes at once. Part of the result: do not change it lightly.
const IMAGES: usize = 8;

/// Batch `[n, c, area]` of channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub c: usize,
    pub area: usize,
}

impl Channels {
    /// Elements that a thread takes at once.
    fn part(&self) -> usize {
        (IMAGES * self.c * self.area).max(1)
    }

    /// The channels of whole images, image after image, each with its channel number.
    fn of<'a, T>(&self, x: &'a [T]) -> impl Iterator<Item = (usize, &'a [T])> + use<'a, T> {
        (0..self.c).cycle().zip(x.chunks_exact(self.area.max(1)))
    }

    /// `[C]`: the sum over the batch of `f(channel number, channel of a, channel of b)`.
    fn sum<T: Real>(&self, a: &[T], b: &[T], f: impl Fn(usize, &[T], &[T]) -> T + Send + Sync) -> Vec<T> {
        let part = self.part();
        let mut partial = vec![T::ZERO; a.len().div_ceil(part) * self.c];
        for_each_chunk(&mut partial, self.c.max(1), |i, sums| {
            let [a, b] = [a, b].map(|v| &v[i * part..v.len().min((i + 1) * part)]);
            simd(|| {
                for ((c, a), (_, b)) in self.of(a).zip(self.of(b)) {
                    sums[c] += f(c, a, b);
                }
            });
        });
        sum_chunks(partial, self.c)
    }

    /// Fills `y` channel by channel: `f(channel number, channel of y, channel of x, channel of dy)`.
    fn fill<T: Real>(&self, x: &[T], dy: &[T], f: impl Fn(usize, &mut [T], &[T], &[T]) + Send + Sync) -> Vec<T> {
        let part = self.part();
        let mut y = vec![T::ZERO; x.len()];
        for_each_chunk(&mut y, part, |i, y| {
            let [x, dy] = [x, dy].map(|v| &v[i * part..]);
            simd(|| {
                let inputs = self.of(x).zip(self.of(dy));
                for (y, ((c, x), (_, dy))) in y.chunks_exact_mut(self.area.max(1)).zip(inputs) {
                    f(c, y, x, dy);
                }
            });
        });
        y
    }
}

/// `x scale[c] + shift[c]`.
pub(crate) fn affine<T: Real>(ch: &Channels, x: &[T], scale: &[T], shift: &[T]) -> Vec<T> {
    ch.fill(x, x, |c, y, x, _| {
        let (scale, shift) = (scale[c], shift[c]);
        y.iter_mut().zip(x).for_each(|(y, v)| *y = *v * scale + shift);
    })
}

/// Sum of each channel, `[C]`.
pub(crate) fn sums<T: Real>(ch: &Channels, x: &[T]) -> Vec<T> {
    ch.sum(x, x, |_, x, _| sum_of(x))
}

/// Sum of `a (b - center[c])` over each channel, `[C]`.
pub(crate) fn dots<T: Real>(ch: &Channels, a: &[T], b: &[T], center: &[T]) -> Vec<T> {
    ch.sum(a, b, |c, a, b| dot(a, b, center[c]))
}

/// Mean and biased variance of each channel, `[C]` each, over the batch and the positions.
pub(crate) fn moments<T: Real>(ch: &Channels, x: &[T]) -> (Vec<T>, Vec<T>) {
    let count = T::from_f64((x.len() / ch.c.max(1)) as f64);
    let mean: Vec<T> = sums(ch, x).into_iter().map(|s| s / count).collect();
    let squares = ch.sum(x, x, |c, x, _| square_distance(x, mean[c]));
    let var = squares.into_iter().map(|s| s / count).collect();
    (mean, var)
}

/// `dx = a[c] dy + b[c] (x - mean[c]) + d[c]`, the input gradient of batch normalisation.
pub(crate) fn combine<T: Real>(ch: &Channels, x: &[T], dy: &[T], mean: &[T], [a, b, d]: [&[T]; 3]) -> Vec<T> {
    ch.fill(x, dy, |c, dx, x, dy| {
        let (a, b, d, mean) = (a[c], b[c], d[c], mean[c]);
        for ((dx, x), g) in dx.iter_mut().zip(x).zip(dy) {
            *dx = a * *g + b * (*x - mean) + d;
        }
    })
}

/// `sum (x - center)^2`, in eight interleaved parts.
#[inline(always)]
fn square_distance<T: Real>(x: &[T], center: T) -> T {
    let mut parts = [T::ZERO; 8];
    for chunk in x.chunks(8) {
        for (part, v) in parts.iter_mut().zip(chunk) {
            *part += (*v - center) * (*v - center);
        }
    }
    sum_of(&parts)
}

/// `sum a (b - center)`, in eight interleaved parts.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T], center: T) -> T {
    let mut parts = [T::ZERO; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((part, a), b) in parts.iter_mut().zip(a).zip(b) {
            *part += *a * (*b - center);
        }
    }
    sum_of(&parts)
}
