//! Loops over plain slices: they know shapes, not tensors. Single-threaded unless
//! [`with_threads`](crate::with_threads) allows more; generic over `f32` and `f64`.

pub(crate) mod conv;
pub(crate) mod elementwise;
pub(crate) mod im2col;
pub(crate) mod linear;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod pool;
pub(crate) mod rows;
pub(crate) mod scratch;

use candle_core::WithDType;

/// The two types kernels are written for.
pub(crate) trait Real: WithDType + scratch::Pooled + Default {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// `e^self`.
    fn exp(self) -> Self;
    /// Natural logarithm.
    fn ln(self) -> Self;
    /// Whether this is no number.
    fn is_nan(self) -> bool;
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    fn exp(self) -> f32 {
        self.exp()
    }
    fn ln(self) -> f32 {
        self.ln()
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    fn exp(self) -> f64 {
        self.exp()
    }
    fn ln(self) -> f64 {
        self.ln()
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

/// Runs a loop compiled for the widest vectors this processor has. `f` must be a closure, so that it is
/// inlined into the code that uses them.
#[inline(always)]
pub(crate) fn simd<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has the features the function is compiled for, as just checked.
        return unsafe { with_avx2(f) };
    }
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}
