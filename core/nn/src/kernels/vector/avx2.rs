//! AVX2 with fused multiply-adds.

use super::{NONE, OCTET, Octet, Task, Vector};
use std::arch::x86_64::*;

/// Eight `f32` in a register.
#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) __m256);

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
    type Octet = Self;
    const LANES: usize = OCTET;
    const ROWS: usize = 6;

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
    unsafe fn mark_positive(self, to: *mut u8) {
        // SAFETY: above.
        unsafe { *to = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps())) as u8 }
    }
    #[inline(always)]
    unsafe fn equals(self, other: Self) -> bool {
        // SAFETY: above.
        unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_NEQ_UQ>(self.0, other.0)) == 0 }
    }
    #[inline(always)]
    unsafe fn keep(self, marks: *const u8) -> Self {
        // SAFETY: above.
        Self(unsafe {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(i32::from(*marks)), lane);
            _mm256_and_ps(self.0, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
        })
    }
    #[inline(always)]
    unsafe fn keep_if(self, keep: bool) -> Self {
        // SAFETY: above.
        Self(unsafe {
            let all = _mm256_set1_epi32(-i32::from(keep));
            _mm256_and_ps(self.0, _mm256_castsi256_ps(all))
        })
    }
    #[inline(always)]
    unsafe fn largest<const RELU: bool>([a, b, c, d]: [Self; 4], to: *mut u8) -> Self {
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
            if !to.is_null() {
                _mm_storel_epi64(to.cast(), bytes);
            }
            Self(max)
        }
    }
    #[inline(always)]
    unsafe fn select(self, indices: *const u8, index: u8) -> Self {
        // SAFETY: above.
        Self(unsafe {
            let lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(indices.cast()));
            let chosen = _mm256_cmpeq_epi32(lanes, _mm256_set1_epi32(i32::from(index)));
            _mm256_and_ps(self.0, _mm256_castsi256_ps(chosen))
        })
    }
    #[inline(always)]
    unsafe fn fold(self) -> Self {
        self
    }
}

// SAFETY: as above.
unsafe impl Octet for Avx2 {
    #[inline(always)]
    unsafe fn transpose(rows: [Self; OCTET]) -> [Self; OCTET] {
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
