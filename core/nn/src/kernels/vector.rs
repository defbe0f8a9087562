//! Eight numbers at a time: AVX2 with fused multiply-adds where the processor has them, portable loops elsewhere
//! and for `f64`. Kernels are written once over [`Vector`]; [`Real::dispatch`] picks the instance.
//!
//! The two differ in rounding only: the portable one rounds the product before it adds (on ARM the compiler
//! turns its loops into NEON).

use std::cell::Cell;
use std::sync::OnceLock;

use super::Real;

/// Numbers in a [`Vector`].
pub(crate) const LANES: usize = 8;

/// Index, within a 2 x 2 block, that stands for "no element": nothing in the block was positive.
pub(crate) const NONE: u8 = 4;

/// Eight numbers of one type.
///
/// # Safety
/// Kernels leave room for [`LANES`] numbers and no more: an implementation must read and write exactly those in
/// [`load`](Vector::load) and [`store`](Vector::store), and may ask nothing of its callers but what these two say and a
/// processor with its instructions. Callers of every function: the AVX2 instance may be used only where the processor has
/// AVX2 and FMA, that is, inside [`Task::run`].
pub(crate) unsafe trait Vector: Copy {
    type T: Real;
    /// Reads eight numbers from `from`.
    ///
    /// # Safety
    /// `from` is good for reads of [`LANES`] numbers and aligned as one of them.
    unsafe fn load(from: *const Self::T) -> Self;
    /// Writes eight numbers to `to`.
    ///
    /// # Safety
    /// `to` is good for writes of [`LANES`] numbers and aligned as one of them.
    unsafe fn store(self, to: *mut Self::T);
    unsafe fn splat(value: Self::T) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * b + c`.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// `max(self, 0)`, NaN stays NaN.
    unsafe fn relu(self) -> Self;
    /// One bit a lane: whether it is above 0.
    unsafe fn positive(self) -> u8;
    /// Whether every lane is as large as the other's.
    unsafe fn equals(self, other: Self) -> bool;
    /// The lanes whose bit is set, 0 in the others.
    unsafe fn keep(self, bits: u8) -> Self;
    /// The largest of four (NaN if one is NaN) and, a byte a lane, the index of the first that holds it. With
    /// `RELU`, of their positive parts, and the index is [`NONE`] where none is positive.
    unsafe fn largest<const RELU: bool>(block: [Self; 4]) -> (Self, u64);
    /// The lanes whose byte in `indices` is `index`, 0 in the others.
    unsafe fn select(self, indices: u64, index: u8) -> Self;
    /// Rows to columns.
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES];
}

/// A kernel with its arguments, to be run with the best vectors there are for `T`.
pub(crate) trait Task<T: Real> {
    /// Runs it. Implementations are `#[inline(always)]`, so that they are compiled for the vectors' processor.
    ///
    /// # Safety
    /// What the implementation asks of its arguments must hold.
    unsafe fn run<V: Vector<T = T>>(self);
}

thread_local! {
    static PORTABLE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with every kernel called from this thread in its portable form, as on processors without AVX2 and FMA.
/// Results agree with the other form within rounding. `ADVAE_PORTABLE_KERNELS=1` does the same for a whole process.
pub fn with_portable_kernels<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(PORTABLE.replace(true));
    f()
}

/// Puts the former choice back, also on a panic.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        PORTABLE.set(self.0);
    }
}

/// Whether this thread must use portable kernels; to be handed on to threads that work for it.
pub(crate) fn portable() -> bool {
    static ASKED: OnceLock<bool> = OnceLock::new();
    PORTABLE.get() || *ASKED.get_or_init(|| std::env::var_os("ADVAE_PORTABLE_KERNELS").is_some_and(|v| v == "1"))
}

/// Runs `task` in `f32`.
///
/// # Safety
/// As for [`Task::run`].
pub(crate) unsafe fn dispatch_f32(task: impl Task<f32>) {
    #[cfg(target_arch = "x86_64")]
    if super::has_fma() && !portable() {
        // SAFETY: the processor has the features; the rest is the caller's.
        return unsafe { avx2::run(task) };
    }
    // SAFETY: the caller's.
    unsafe { task.run::<Portable<f32>>() }
}

/// Runs `task` in `f64`.
///
/// # Safety
/// As for [`Task::run`].
pub(crate) unsafe fn dispatch_f64(task: impl Task<f64>) {
    // SAFETY: the caller's.
    unsafe { task.run::<Portable<f64>>() }
}

/// Eight numbers in an array.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T>([T; LANES]);

impl<T: Real> Portable<T> {
    #[inline(always)]
    fn lanes(f: impl Fn(usize) -> T) -> Self {
        let mut lanes = [T::ZERO; LANES];
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = f(l);
        }
        Self(lanes)
    }
}

// SAFETY: an array of eight numbers, with no instructions of its own.
unsafe impl<T: Real> Vector for Portable<T> {
    type T = T;

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller's; an array of numbers has their alignment.
        Self(unsafe { from.cast::<[T; LANES]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[T; LANES]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self::lanes(|l| self.0[l] + other.0[l])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self::lanes(|l| self.0[l] - other.0[l])
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Self::lanes(|l| self.0[l] * b.0[l] + c.0[l])
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        Self::lanes(|l| if self.0[l] < T::ZERO { T::ZERO } else { self.0[l] })
    }
    #[inline(always)]
    unsafe fn positive(self) -> u8 {
        (0..LANES).fold(0, |bits, l| bits | (u8::from(self.0[l] > T::ZERO) << l))
    }
    #[inline(always)]
    unsafe fn equals(self, other: Self) -> bool {
        self.0 == other.0
    }
    #[inline(always)]
    unsafe fn keep(self, bits: u8) -> Self {
        Self::lanes(|l| self.0[l].keep_if(bits >> l & 1 == 1))
    }
    #[inline(always)]
    unsafe fn largest<const RELU: bool>(block: [Self; 4]) -> (Self, u64) {
        let mut max = [T::ZERO; LANES];
        let mut indices = [0u8; LANES];
        for l in 0..LANES {
            let of = block.map(|v| v.0[l]);
            max[l] = of[0].larger(of[1]).larger(of[2].larger(of[3]));
            indices[l] = of.iter().position(|v| *v == max[l]).unwrap_or(0) as u8;
            if RELU && max[l] <= T::ZERO {
                (max[l], indices[l]) = (T::ZERO, NONE);
            }
        }
        (Self(max), u64::from_le_bytes(indices))
    }
    #[inline(always)]
    unsafe fn select(self, indices: u64, index: u8) -> Self {
        let indices = indices.to_le_bytes();
        Self::lanes(|l| self.0[l].keep_if(indices[l] == index))
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut columns = rows;
        for (i, column) in columns.iter_mut().enumerate() {
            *column = Self::lanes(|l| rows[l].0[i]);
        }
        columns
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{LANES, NONE, Task, Vector};
    use std::arch::x86_64::*;

    /// Eight `f32` in a register.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(__m256);

    /// Runs `task` compiled for AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn run(task: impl Task<f32>) {
        // SAFETY: the caller's; the features are there.
        unsafe { task.run::<Avx2>() }
    }

    // SAFETY: a register of eight numbers. Of every block below: `Vector`'s contract says that the processor has AVX2 and
    // FMA, and that pointers are good for eight numbers.
    unsafe impl Vector for Avx2 {
        type T = f32;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm256_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: above.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm256_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, b: Self, c: Self) -> Self {
            // SAFETY: above.
            Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }
        #[inline(always)]
        unsafe fn relu(self) -> Self {
            // `max` answers its second operand where one of the two is NaN.
            // SAFETY: above.
            Self(unsafe { _mm256_max_ps(_mm256_setzero_ps(), self.0) })
        }
        #[inline(always)]
        unsafe fn positive(self) -> u8 {
            // SAFETY: above.
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps())) as u8 }
        }
        #[inline(always)]
        unsafe fn equals(self, other: Self) -> bool {
            // SAFETY: above.
            unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0)) == 0 }
        }
        #[inline(always)]
        unsafe fn keep(self, bits: u8) -> Self {
            // SAFETY: above.
            Self(unsafe {
                let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
                let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(bits)), lane);
                _mm256_and_ps(self.0, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
            })
        }
        #[inline(always)]
        unsafe fn largest<const RELU: bool>([a, b, c, d]: [Self; 4]) -> (Self, u64) {
            // SAFETY: above.
            unsafe {
                let mut max = _mm256_max_ps(_mm256_max_ps(a.0, b.0), _mm256_max_ps(c.0, d.0));
                let nan = _mm256_or_ps(
                    _mm256_cmp_ps::<_CMP_UNORD_Q>(a.0, b.0),
                    _mm256_cmp_ps::<_CMP_UNORD_Q>(c.0, d.0),
                );
                // All bits set is a NaN.
                max = _mm256_or_ps(max, nan);
                let holds = |v: Self| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_EQ_OQ>(v.0, max));
                let index = |i: i32| _mm256_set1_epi32(i);
                let mut indices = _mm256_blendv_epi8(index(0), index(3), holds(d));
                indices = _mm256_blendv_epi8(indices, index(2), holds(c));
                indices = _mm256_blendv_epi8(indices, index(1), holds(b));
                indices = _mm256_blendv_epi8(indices, index(0), holds(a));
                if RELU {
                    let zero = _mm256_setzero_ps();
                    let none = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LE_OQ>(max, zero));
                    indices = _mm256_blendv_epi8(indices, index(i32::from(NONE)), none);
                    max = _mm256_max_ps(zero, max);
                }
                let halves = _mm_packus_epi32(_mm256_castsi256_si128(indices), _mm256_extracti128_si256::<1>(indices));
                let bytes = _mm_packus_epi16(halves, halves);
                (Self(max), _mm_cvtsi128_si64(bytes) as u64)
            }
        }
        #[inline(always)]
        unsafe fn select(self, indices: u64, index: u8) -> Self {
            // SAFETY: above.
            Self(unsafe {
                let lanes = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(indices as i64));
                let chosen = _mm256_cmpeq_epi32(lanes, _mm256_set1_epi32(i32::from(index)));
                _mm256_and_ps(self.0, _mm256_castsi256_ps(chosen))
            })
        }
        #[inline(always)]
        unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
            // SAFETY: above.
            unsafe {
                let r = rows.map(|v| v.0);
                let pair = |i: usize| (_mm256_unpacklo_ps(r[i], r[i + 1]), _mm256_unpackhi_ps(r[i], r[i + 1]));
                let [(a, b), (c, d), (e, f), (g, h)] = [pair(0), pair(2), pair(4), pair(6)];
                let low = |x, y| _mm256_shuffle_ps::<0x44>(x, y);
                let high = |x, y| _mm256_shuffle_ps::<0xee>(x, y);
                let upper = [low(a, c), high(a, c), low(b, d), high(b, d)];
                let lower = [low(e, g), high(e, g), low(f, h), high(f, h)];
                let mut columns = rows;
                for i in 0..4 {
                    columns[i] = Self(_mm256_permute2f128_ps::<0x20>(upper[i], lower[i]));
                    columns[i + 4] = Self(_mm256_permute2f128_ps::<0x31>(upper[i], lower[i]));
                }
                columns
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on one set of numbers, as one list.
    struct Everything<'a>(&'a mut Vec<f32>);

    impl Task<f32> for Everything<'_> {
        #[inline(always)]
        unsafe fn run<V: Vector<T = f32>>(self) {
            let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 30.0) / 7.0).collect();
            // SAFETY: 64 numbers are eight vectors; `out` holds one.
            unsafe {
                let rows: [V; LANES] = std::array::from_fn(|i| V::load(values[i * LANES..].as_ptr()));
                let mut put = |v: V| {
                    let mut out = [0.0; LANES];
                    v.store(out.as_mut_ptr());
                    self.0.extend(out);
                };
                put(rows[0].add(rows[1]));
                put(rows[0].sub(V::splat(2.5)));
                put(rows[0].mul_add(V::splat(2.0), rows[2]));
                put(rows[3].relu());
                put(rows[4].keep(0b1011_0010));
                put(rows[4].keep(rows[4].positive()));
                let equal = |a: V, b: V| V::splat(f32::from(u8::from(a.equals(b))));
                put(equal(rows[4], rows[4].keep(0b0111_1111)));
                put(equal(V::splat(-0.0), V::splat(0.0)));
                V::transpose(rows).into_iter().for_each(&mut put);
                let nan = V::splat(f32::NAN);
                for block in [
                    [rows[0], rows[1], rows[2], rows[3]],
                    [rows[5], rows[5], rows[6], rows[5]],
                    [nan, rows[0], rows[0], rows[0]],
                    [rows[0], nan, nan, rows[0]],
                ] {
                    for (max, indices) in [V::largest::<false>(block), V::largest::<true>(block)] {
                        put(max);
                        put(rows[7].select(indices, 0));
                        put(rows[7].select(indices, 2));
                        put(rows[7].select(indices, NONE));
                    }
                }
            }
        }
    }

    #[test]
    fn both_forms_agree() {
        let (mut best, mut portable) = (vec![], vec![]);
        // SAFETY: the task's own arguments are sound.
        unsafe {
            dispatch_f32(Everything(&mut best));
            with_portable_kernels(|| dispatch_f32(Everything(&mut portable)));
        }
        assert_eq!(best.len(), portable.len());
        for (i, (a, b)) in best.iter().zip(&portable).enumerate() {
            // Which element of a block with NaN is chosen does not matter: NaN ends the run.
            let of_nan = i / LANES >= 8 + LANES + 16;
            assert!(
                a == b || a.is_nan() == b.is_nan() && (a - b).abs() < 1e-6 || a.is_nan() && b.is_nan() || of_nan,
                "{i}: {a} {b}"
            );
        }
        assert!(best[(8 + LANES + 16) * LANES].is_nan() && portable[(8 + LANES + 16) * LANES].is_nan());
    }
}
