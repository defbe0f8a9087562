//! Per-channel affine maps and batch normalisation of `[N, C, H * W]`. Sums run image by image, in
//! order. Bound by memory.

use super::{Real, simd, sum_of};

/// Batch `[n, c, area]` of channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channels {
    pub c: usize,
    pub area: usize,
}

impl Channels {
    /// The channels of a batch, image after image, each with its channel number.
    fn of<'a, T>(&self, x: &'a [T]) -> impl Iterator<Item = (usize, &'a [T])> + use<'a, T> {
        (0..self.c).cycle().zip(x.chunks_exact(self.area.max(1)))
    }

    /// `[C]`: the sum over the batch of `f(channel number, channel)`.
    fn sum<'a, T: Real>(&self, x: &'a [T], f: impl Fn(usize, &'a [T]) -> T) -> Vec<T> {
        let mut sums = vec![T::ZERO; self.c];
        for (c, channel) in self.of(x) {
            sums[c] += f(c, channel);
        }
        sums
    }
}

/// `x scale[c] + shift[c]`.
pub(crate) fn affine<T: Real>(ch: &Channels, x: &[T], scale: &[T], shift: &[T]) -> Vec<T> {
    let mut y = Vec::with_capacity(x.len());
    simd(|| {
        for (c, channel) in ch.of(x) {
            let (scale, shift) = (scale[c], shift[c]);
            y.extend(channel.iter().map(|v| *v * scale + shift));
        }
    });
    y
}

/// Sum of each channel, `[C]`.
pub(crate) fn sums<T: Real>(ch: &Channels, x: &[T]) -> Vec<T> {
    simd(|| ch.sum(x, |_, channel| sum_of(channel)))
}

/// Sum of `a (b - center[c])` over each channel, `[C]`.
pub(crate) fn dots<T: Real>(ch: &Channels, a: &[T], b: &[T], center: &[T]) -> Vec<T> {
    let mut sums = vec![T::ZERO; ch.c];
    simd(|| {
        for ((c, a), (_, b)) in ch.of(a).zip(ch.of(b)) {
            sums[c] += dot(a, b, center[c]);
        }
    });
    sums
}

/// Mean and biased variance of each channel, `[C]` each, over the batch and the positions.
pub(crate) fn moments<T: Real>(ch: &Channels, x: &[T]) -> (Vec<T>, Vec<T>) {
    let count = T::from_f64((x.len() / ch.c.max(1)) as f64);
    let mean: Vec<T> = sums(ch, x).into_iter().map(|s| s / count).collect();
    let squares = simd(|| ch.sum(x, |c, channel| square_distance(channel, mean[c])));
    let var = squares.into_iter().map(|s| s / count).collect();
    (mean, var)
}

/// `dx = a[c] dy + b[c] (x - mean[c]) + d[c]`, the input gradient of batch normalisation.
pub(crate) fn combine<T: Real>(ch: &Channels, x: &[T], dy: &[T], mean: &[T], [a, b, d]: [&[T]; 3]) -> Vec<T> {
    let mut dx = Vec::with_capacity(x.len());
    simd(|| {
        for ((c, x), (_, dy)) in ch.of(x).zip(ch.of(dy)) {
            let (a, b, d, mean) = (a[c], b[c], d[c], mean[c]);
            dx.extend(x.iter().zip(dy).map(|(x, g)| a * *g + b * (*x - mean) + d));
        }
    });
    dx
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
