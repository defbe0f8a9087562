//! Numbers in an array.

use super::{NONE, OCTET, Octet, Vector};
use crate::kernels::Real;

/// `L` numbers, eight or sixteen.
#[derive(Clone, Copy)]
pub(super) struct Portable<T, const L: usize>([T; L]);

impl<T: Real, const L: usize> Portable<T, L> {
    #[inline(always)]
    fn lanes(f: impl Fn(usize) -> T) -> Self {
        let mut lanes = [T::ZERO; L];
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane = f(l);
        }
        Self(lanes)
    }
}

// SAFETY: an array of numbers, with no instructions of its own.
unsafe impl<T: Real, const L: usize> Vector for Portable<T, L> {
    type T = T;
    type Octet = Portable<T, OCTET>;
    const LANES: usize = L;
    // Of sixteen numbers as with AVX-512, for the tests; of eight few, which are soon compiled.
    const ROWS: usize = if L == OCTET { 4 } else { 8 };

    #[inline(always)]
    unsafe fn load(from: *const T) -> Self {
        // SAFETY: the caller's; an array of numbers has their alignment.
        Self(unsafe { from.cast::<[T; L]>().read() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut T) {
        // SAFETY: the caller's.
        unsafe { to.cast::<[T; L]>().write(self.0) }
    }
    #[inline(always)]
    unsafe fn splat(value: T) -> Self {
        Self([value; L])
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
    unsafe fn mark_positive(self, to: *mut u8) {
        for octet in 0..L / OCTET {
            let bit = |l: usize| u8::from(self.0[octet * OCTET + l] > T::ZERO) << l;
            // SAFETY: the caller's.
            unsafe { *to.add(octet) = (0..OCTET).fold(0, |bits, l| bits | bit(l)) }
        }
    }
    #[inline(always)]
    unsafe fn equals(self, other: Self) -> bool {
        self.0 == other.0
    }
    #[inline(always)]
    unsafe fn keep(self, marks: *const u8) -> Self {
        // SAFETY: the caller's.
        Self::lanes(|l| self.0[l].keep_if(unsafe { *marks.add(l / OCTET) } >> (l % OCTET) & 1 == 1))
    }
    #[inline(always)]
    unsafe fn keep_if(self, keep: bool) -> Self {
        Self::lanes(|l| self.0[l].keep_if(keep))
    }
    #[inline(always)]
    unsafe fn largest<const RELU: bool>(block: [Self; 4], to: *mut u8) -> Self {
        let mut max = [T::ZERO; L];
        let mut indices = [0u8; L];
        for l in 0..L {
            let of = block.map(|v| v.0[l]);
            max[l] = of[0].larger(of[1]).larger(of[2].larger(of[3]));
            indices[l] = of.iter().position(|v| *v == max[l]).unwrap_or(0) as u8;
            if RELU && max[l] <= T::ZERO {
                (max[l], indices[l]) = (T::ZERO, NONE);
            }
        }
        if !to.is_null() {
            // SAFETY: the caller's; bytes have any alignment.
            unsafe { to.cast::<[u8; L]>().write(indices) };
        }
        Self(max)
    }
    #[inline(always)]
    unsafe fn select(self, indices: *const u8, index: u8) -> Self {
        // SAFETY: the caller's.
        Self::lanes(|l| self.0[l].keep_if(unsafe { *indices.add(l) } == index))
    }
    #[inline(always)]
    unsafe fn fold(self) -> Portable<T, OCTET> {
        Portable::lanes(|l| (l + OCTET..L).step_by(OCTET).fold(self.0[l], |sum, l| sum + self.0[l]))
    }
}

// SAFETY: as above, of eight.
unsafe impl<T: Real> Octet for Portable<T, OCTET> {
    #[inline(always)]
    unsafe fn transpose(rows: [Self; OCTET]) -> [Self; OCTET] {
        let mut columns = rows;
        for (i, column) in columns.iter_mut().enumerate() {
            *column = Self::lanes(|l| rows[l].0[i]);
        }
        columns
    }
}
