//! Matrix products, by the `gemm` crate, on one thread.

use super::Real;

/// A matrix inside a slice: element `(i, j)` is at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub row: usize,
    pub col: usize,
}

/// A row-major matrix of `width` columns.
pub(crate) fn rows(width: usize) -> Strides {
    Strides { row: width, col: 1 }
}

/// The transpose of a row-major matrix of `width` columns.
pub(crate) fn transposed(width: usize) -> Strides {
    Strides { row: 1, col: width }
}

/// `c = a b`, or `c += a b`, for `c` of `[m, n]` and `k` terms an element.
///
/// # Panics
/// When a slice is too short for its matrix.
pub(crate) fn matmul<T: Real>(
    [m, n, k]: [usize; 3],
    (c, c_strides): (&mut [T], Strides),
    accumulate: bool,
    (a, a_strides): (&[T], Strides),
    (b, b_strides): (&[T], Strides),
) {
    assert!(extent(m, n, c_strides) <= c.len());
    assert!(extent(m, k, a_strides) <= a.len());
    assert!(extent(k, n, b_strides) <= b.len());
    // SAFETY: the assertions above keep every element inside its slice, and `c` is borrowed mutably, so
    // it overlaps neither `a` nor `b`. `T` is f32 or f64, both of which gemm knows.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_strides.col as isize,
            c_strides.row as isize,
            accumulate,
            a.as_ptr(),
            a_strides.col as isize,
            a_strides.row as isize,
            b.as_ptr(),
            b_strides.col as isize,
            b_strides.row as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// One more than the largest index of a matrix.
fn extent(rows: usize, cols: usize, strides: Strides) -> usize {
    match (rows, cols) {
        (0, _) | (_, 0) => 0,
        _ => (rows - 1) * strides.row + (cols - 1) * strides.col + 1,
    }
}
