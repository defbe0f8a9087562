//! AVX-512: F, VL, BW and DQ.

use super::avx2::Avx2;
use super::{NONE, Task, Vector};
use crate::kernels::frame::PANEL;
use std::arch::x86_64::*;

/// Sixteen `f32` in a register.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// Runs `task` compiled for AVX-512.
#[target_feature(enable = "avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")]
pub(super) unsafe fn run(task: impl Task<f32>) {
    // SAFETY: the caller's; the features are there.
    unsafe { task.run::<Avx512>() }
}

// SAFETY: a register of sixteen numbers. Of every block below: `Vector`'s contract says that the processor has AVX-512, and
// that pointers are good for sixteen numbers and what belongs to them.
unsafe impl Vector for Avx512 {
    type T = f32;
    type Octet = Avx2;
    const LANES: usize = PANEL;
    // Of 32 registers 16 hold sums; more rows would have more addresses than there are registers for.
    const ROWS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: above.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_set1_ps(value) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    unsafe fn relu(self) -> Self {
        // `max` answers its second operand where one of the two is NaN.
        // SAFETY: above.
        Self(unsafe { _mm512_max_ps(_mm512_setzero_ps(), self.0) })
    }
    #[inline(always)]
    unsafe fn mark_positive(self, to: *mut u8) {
        // SAFETY: above; two bytes of any alignment, the lower lanes first.
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
            to.cast::<[u8; 2]>().write(positive.to_le_bytes());
        }
    }
    #[inline(always)]
    unsafe fn equals(self, other: Self) -> bool {
        // SAFETY: above.
        unsafe { _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0) == 0 }
    }
    #[inline(always)]
    unsafe fn keep(self, marks: *const u8) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_maskz_mov_ps(u16::from_le_bytes(marks.cast::<[u8; 2]>().read()), self.0) })
    }
    #[inline(always)]
    unsafe fn keep_if(self, keep: bool) -> Self {
        // SAFETY: above.
        Self(unsafe { _mm512_maskz_mov_ps(u16::from(keep).wrapping_neg(), self.0) })
    }
    #[inline(always)]
    unsafe fn largest<const RELU: bool>([a, b, c, d]: [Self; 4], to: *mut u8) -> Self {
        // SAFETY: above.
        unsafe {
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a.0, b.0) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(c.0, d.0);
            let max = _mm512_max_ps(_mm512_max_ps(a.0, b.0), _mm512_max_ps(c.0, d.0));
            let mut max = _mm512_mask_mov_ps(max, nan, _mm512_set1_ps(f32::NAN));
            // The first that holds it is written last.
            let mut indices = _mm512_setzero_si512();
            for (index, v) in [(3, d), (2, c), (1, b), (0, a)] {
                let holds = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(v.0, max);
                indices = _mm512_mask_mov_epi32(indices, holds, _mm512_set1_epi32(index));
            }
            if RELU {
                let zero = _mm512_setzero_ps();
                let none = _mm512_cmp_ps_mask::<_CMP_LE_OQ>(max, zero);
                indices = _mm512_mask_mov_epi32(indices, none, _mm512_set1_epi32(i32::from(NONE)));
                max = _mm512_max_ps(zero, max);
            }
            if !to.is_null() {
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(indices));
            }
            Self(max)
        }
    }
    #[inline(always)]
    unsafe fn select(self, indices: *const u8, index: u8) -> Self {
        // SAFETY: above.
        Self(unsafe {
            let indices = _mm_loadu_si128(indices.cast());
            let chosen = _mm_cmpeq_epi8_mask(indices, _mm_set1_epi8(index as i8));
            _mm512_maskz_mov_ps(chosen, self.0)
        })
    }
    #[inline(always)]
    unsafe fn fold(self) -> Avx2 {
        // SAFETY: above.
        Avx2(unsafe { _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0)) })
    }
}
