//! The innermost loops: small tiles of sums that stay in registers. Bound by compute: with 256-bit fused
//! multiply-adds they keep twelve (eight) independent chains going. Tiles of 6 x 16 in this form compile to
//! 98 % of the peak; 4 x 24 spills and gets 45 %.
//!
//! An element's sum has the same order whatever tile it is computed in, so results do not depend on how
//! rows and columns are cut. `FMA` fuses multiplication and addition; see [`fused`](super::fused).

use super::Real;

/// Columns of the narrowest [`broadcast`] tile: two vectors of eight.
pub(crate) const WIDTH: usize = 2 * LANES;

/// Rows of a [`broadcast`] tile at most.
pub(crate) const HEIGHT: usize = 6;

/// Rows of an [`outer`] tile.
pub(crate) const TAPS: usize = 6;

/// Elements of one vector.
pub(crate) const LANES: usize = 8;

/// `a b + c`.
#[inline(always)]
fn multiply_add<T: Real, const FMA: bool>(a: T, b: T, c: T) -> T {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Adds `a v` to `sums`, vector by vector.
#[inline(always)]
fn add_multiple<T: Real, const V: usize, const FMA: bool>(sums: &mut [[T; LANES]; V], a: T, v: &[[T; LANES]; V]) {
    for (sums, v) in sums.iter_mut().zip(v) {
        // A copy: the sums then stay in registers.
        let mut sum = *sums;
        for l in 0..LANES {
            sum[l] = multiply_add::<T, FMA>(a, v[l], sum[l]);
        }
        *sums = sum;
    }
}

/// Adds the products of `a` with each of `b`, element by element, to `sums`.
#[inline(always)]
fn add_products<T: Real, const N: usize, const FMA: bool>(
    sums: &mut [[T; LANES]; N],
    a: &[T; LANES],
    b: &[[T; LANES]; N],
) {
    for (sums, b) in sums.iter_mut().zip(b) {
        let mut sum = *sums;
        for l in 0..LANES {
            sum[l] = multiply_add::<T, FMA>(a[l], b[l], sum[l]);
        }
        *sums = sum;
    }
}

/// `sum_k a[k][i] b[offsets[k] + j]` for `a` of `[k, M]`, `V` vectors wide.
#[inline(always)]
pub(crate) fn broadcast<T: Real, const M: usize, const V: usize, const FMA: bool>(
    a: &[T],
    b: &[T],
    offsets: &[usize],
) -> [[[T; LANES]; V]; M] {
    let mut sums = [[[T::ZERO; LANES]; V]; M];
    for (a, offset) in a.as_chunks::<M>().0.iter().zip(offsets) {
        let (row, _) = b[*offset..*offset + V * LANES].as_chunks::<LANES>();
        let mut b = [[T::ZERO; LANES]; V];
        b.copy_from_slice(row);
        for (sums, a) in sums.iter_mut().zip(a) {
            add_multiple::<T, V, FMA>(sums, *a, &b);
        }
    }
    sums
}

/// Adds `sum_p a[i][p] b[p][j]` to `sums`, for `b` of `[p, V, LANES]`.
#[inline(always)]
pub(crate) fn outer<T: Real, const V: usize, const FMA: bool>(
    sums: &mut [[[T; LANES]; V]; TAPS],
    a: [&[T]; TAPS],
    b: &[[[T; LANES]; V]],
) {
    let a = a.map(|row| &row[..b.len()]);
    let mut totals = *sums;
    for (p, b) in b.iter().enumerate() {
        for (sums, a) in totals.iter_mut().zip(a) {
            add_multiple::<T, V, FMA>(sums, a[p], b);
        }
    }
    *sums = totals;
}

/// `sum_k a[i][k] b[j][k]` of rows of one length.
#[inline(always)]
pub(crate) fn dot<T: Real, const M: usize, const N: usize, const FMA: bool>(a: [&[T]; M], b: [&[T]; N]) -> [[T; N]; M] {
    let len = a[0].len();
    let chunks = len / LANES;
    let a_chunks = a.map(|row| &row.as_chunks::<LANES>().0[..chunks]);
    let b_chunks = b.map(|row| &row.as_chunks::<LANES>().0[..chunks]);
    let mut lanes = [[[T::ZERO; LANES]; N]; M];
    for q in 0..chunks {
        let b = b_chunks.map(|row| row[q]);
        for (lanes, a) in lanes.iter_mut().zip(a_chunks) {
            add_products::<T, N, FMA>(lanes, &a[q], &b);
        }
    }
    let mut sums = [[T::ZERO; N]; M];
    for (sums, lanes) in sums.iter_mut().zip(&lanes) {
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum = add_lanes(lanes);
        }
    }
    for k in chunks * LANES..len {
        for (sums, a) in sums.iter_mut().zip(a) {
            for (sum, b) in sums.iter_mut().zip(b) {
                *sum = multiply_add::<T, FMA>(a[k], b[k], *sum);
            }
        }
    }
    sums
}

/// The sum of eight, by halves. Not inlined: next to it, the compiler spreads the loop that made the eight
/// over other vectors than theirs, at a tenth of the speed.
#[inline(never)]
fn add_lanes<T: Real>(v: &[T; LANES]) -> T {
    ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
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
    rest.iter().fold(add_lanes(&lanes), |sum, value| sum + *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors without fused multiply-adds run the other half of every kernel.
    #[test]
    fn unfused_sums_agree() {
        let a: Vec<f64> = (0..96).map(|i| (f64::from(i) * 0.7).sin()).collect();
        let b: Vec<f64> = (0..96).map(|i| (f64::from(i) * 1.3).cos()).collect();
        let offsets: Vec<usize> = (0..32).collect();
        let sums = [
            broadcast::<f64, 3, 2, true>(&a, &b, &offsets),
            broadcast::<f64, 3, 2, false>(&a, &b, &offsets),
        ];
        for r in 0..3 {
            for j in 0..WIDTH {
                let exact: f64 = (0..32).map(|k| a[k * 3 + r] * b[k + j]).sum();
                for sums in &sums {
                    assert!((sums[r][j / LANES][j % LANES] - exact).abs() < 1e-13);
                }
            }
        }
        let exact: f64 = a[..45].iter().zip(&b[1..46]).map(|(a, b)| a * b).sum();
        assert!((dot::<f64, 1, 1, true>([&a[..45]], [&b[1..46]])[0][0] - exact).abs() < 1e-13);
        assert!((dot::<f64, 1, 1, false>([&a[..45]], [&b[1..46]])[0][0] - exact).abs() < 1e-13);
    }
}
