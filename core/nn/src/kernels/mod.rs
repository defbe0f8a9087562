//! Loops over plain slices: they know shapes, not tensors. Single-threaded unless
//! [`with_threads`](crate::with_threads) allows more; generic over `f32` and `f64`.

pub(crate) mod aligned;
pub(crate) mod batch;
pub(crate) mod channels;
pub(crate) mod conv;
pub(crate) mod conv_weights;
pub(crate) mod direct;
pub(crate) mod dots;
pub(crate) mod elementwise;
pub(crate) mod frame;
pub(crate) mod geometry;
pub(crate) mod layout;
pub(crate) mod narrow;
pub(crate) mod norm;
pub(crate) mod pool;
pub(crate) mod rows;
pub(crate) mod scratch;
pub(crate) mod sink;
pub(crate) mod vector;
pub(crate) mod winograd;

#[cfg(test)]
mod tests;

pub(crate) use vector::Task;

use candle_core::WithDType;

/// The two types kernels are written for.
pub(crate) trait Real: WithDType + scratch::Pooled + Default {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// `e^self`.
    fn exp(self) -> Self;
    /// `e^self - 1`.
    fn exp_m1(self) -> Self;
    /// Natural logarithm of `1 + self`.
    fn ln_1p(self) -> Self;
    /// `self` if `keep`, else 0, without a branch.
    fn keep_if(self, keep: bool) -> Self;
    /// Whether it is NaN.
    fn is_not_a_number(self) -> bool;
    /// The larger of two, or NaN if one is NaN, without a branch.
    fn larger(self, other: Self) -> Self;
    /// Runs a kernel with the best vectors there are.
    ///
    /// # Safety
    /// As for [`Task::run`].
    unsafe fn dispatch(task: impl Task<Self>);
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    fn exp(self) -> f32 {
        self.exp()
    }
    fn exp_m1(self) -> f32 {
        self.exp_m1()
    }
    fn ln_1p(self) -> f32 {
        self.ln_1p()
    }
    #[inline(always)]
    fn keep_if(self, keep: bool) -> f32 {
        f32::from_bits(self.to_bits() & u32::from(keep).wrapping_neg())
    }
    #[inline(always)]
    fn is_not_a_number(self) -> bool {
        self.is_nan()
    }
    #[inline(always)]
    fn larger(self, other: f32) -> f32 {
        let mine = (self > other) | self.is_nan();
        f32::from_bits(self.keep_if(mine).to_bits() | other.keep_if(!mine).to_bits())
    }
    #[inline(always)]
    unsafe fn dispatch(task: impl Task<f32>) {
        // SAFETY: the caller's.
        unsafe { vector::dispatch_f32(task) }
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    fn exp(self) -> f64 {
        self.exp()
    }
    fn exp_m1(self) -> f64 {
        self.exp_m1()
    }
    fn ln_1p(self) -> f64 {
        self.ln_1p()
    }
    #[inline(always)]
    fn keep_if(self, keep: bool) -> f64 {
        f64::from_bits(self.to_bits() & u64::from(keep).wrapping_neg())
    }
    #[inline(always)]
    fn is_not_a_number(self) -> bool {
        self.is_nan()
    }
    #[inline(always)]
    fn larger(self, other: f64) -> f64 {
        let mine = (self > other) | self.is_nan();
        f64::from_bits(self.keep_if(mine).to_bits() | other.keep_if(!mine).to_bits())
    }
    #[inline(always)]
    unsafe fn dispatch(task: impl Task<f64>) {
        // SAFETY: the caller's.
        unsafe { vector::dispatch_f64(task) }
    }
}

/// Runs a loop compiled for the widest vectors this processor has. `f` must be a closure, so that it is
/// inlined into the code that uses them.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    if fused_here() {
        // SAFETY: the processor has the features, as a choice of kernels says.
        unsafe { with_fma(f) }
    } else {
        f()
    }
}

/// Defines `$name`, which calls `$body` compiled for the widest vectors this processor has. `$body` must be
/// `#[inline(always)]`; its last parameter says whether multiplication and addition are to be fused.
macro_rules! fused {
    (fn $name:ident<T: Real $(, const $N:ident: usize)?>($($arg:ident: $type:ty),*) = $body:ident) => {
        fn $name<T: Real $(, const $N: usize)?>($($arg: $type),*) {
            #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
            unsafe fn with_fma<T: Real $(, const $N: usize)?>($($arg: $type),*) {
                $body::<T, $($N,)? true>($($arg),*);
            }
            if $crate::kernels::fused_here() {
                // SAFETY: the processor has the features, as just checked.
                unsafe { with_fma::<T $(, $N)?>($($arg),*) }
            } else {
                $body::<T, $($N,)? false>($($arg),*);
            }
        }
    };
}
pub(crate) use fused;

/// Whether kernels called from this thread may fuse a multiplication and an addition: so may all on 64-bit ARM, but on x86 only
/// those beyond the portable ones.
pub(crate) fn fused_here() -> bool {
    cfg!(target_arch = "aarch64") || vector::kernels() > vector::Kernels::Portable
}

/// Calls `f`, a small closure, as code for AVX2 and FMA.
///
/// # Safety
/// [`fused_here`] must hold.
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
unsafe fn with_fma<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Sum of a slice, in eight interleaved parts, so that it vectorises.
#[inline(always)]
pub(crate) fn sum_of<T: Real>(values: &[T]) -> T {
    let mut lanes = [T::ZERO; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += *value;
        }
    }
    let v = lanes;
    let sum = ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
    rest.iter().fold(sum, |sum, value| sum + *value)
}
