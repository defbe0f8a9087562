//! Matrix products `c = a b` with `b` row-major. Bound by compute where `a` has many rows, else by
//! reading `b`, of which 16 columns at a time are packed.

use super::scratch::with_scratch;
use super::tile::{HEIGHT, LANES, WIDTH, broadcast};
use super::{Real, fused};

/// A matrix in a slice: element `(i, j)` is at `i * row + j * col`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    pub values: &'a [T],
    pub row: usize,
    pub col: usize,
}

/// Writes `c` `[m, n]` as the product of `a` `[m, k]` and `b` `[k, n]`; `c` and `b` are row-major.
pub(crate) fn matmul<T: Real>([m, n, k]: [usize; 3], c: &mut [T], a: Matrix<T>, b: &[T]) {
    with_scratch(m * k + k * WIDTH, |scratch| {
        let (packed, panel) = scratch.split_at_mut(m * k);
        pack_rows([m, k], packed, |i, l| a.values[i * a.row + l * a.col]);
        let offsets: Vec<usize> = (0..k).map(|l| l * WIDTH).collect();
        for from in (0..n).step_by(WIDTH) {
            let width = WIDTH.min(n - from);
            for (row, b) in panel.chunks_exact_mut(WIDTH).zip(b.chunks(n)) {
                row[..width].copy_from_slice(&b[from..from + width]);
                row[width..].fill(T::ZERO);
            }
            let tiles = Tiles {
                k,
                packed,
                offsets: &offsets,
            };
            tiles.rows(m, WIDTH, panel, |i, sums| {
                c[i * n + from..][..width].copy_from_slice(&sums[..width]);
            });
        }
    });
}

/// Packs a matrix of `[m, k]` in blocks of at most [`HEIGHT`] rows, each `[k, rows]`.
pub(crate) fn pack_rows<T: Real>([m, k]: [usize; 2], packed: &mut [T], at: impl Fn(usize, usize) -> T) {
    for i in (0..m).step_by(HEIGHT) {
        let height = HEIGHT.min(m - i);
        let block = &mut packed[i * k..(i + height) * k];
        for (l, column) in block.chunks_exact_mut(height).enumerate() {
            for (r, value) in column.iter_mut().enumerate() {
                *value = at(i + r, l);
            }
        }
    }
}

/// The left side of a product: packed rows of `k` terms, and where each term is found on the right.
#[derive(Clone, Copy)]
pub(crate) struct Tiles<'a, T> {
    pub k: usize,
    pub packed: &'a [T],
    pub offsets: &'a [usize],
}

impl<T: Real> Tiles<'_, T> {
    /// Calls `f(i, row)` for each of `m` rows, with `row[j] = sum_k a[i][k] b[offsets[k] + j]` for `j`
    /// below `n`. `b` must reach [`WIDTH`] beyond the last of them.
    pub fn rows(&self, m: usize, n: usize, b: &[T], mut f: impl FnMut(usize, &[T])) {
        let padded = n.next_multiple_of(WIDTH);
        with_scratch(HEIGHT * padded, |rows| {
            for i in (0..m).step_by(HEIGHT) {
                let height = HEIGHT.min(m - i);
                match height {
                    1 => self.strip::<1>(i, b, rows),
                    2 => self.strip::<2>(i, b, rows),
                    3 => self.strip::<3>(i, b, rows),
                    4 => self.strip::<4>(i, b, rows),
                    5 => self.strip::<5>(i, b, rows),
                    _ => self.strip::<HEIGHT>(i, b, rows),
                }
                for (r, row) in rows.chunks_exact(padded).take(height).enumerate() {
                    f(i + r, &row[..n]);
                }
            }
        });
    }

    /// `M` rows, [`WIDTH`] columns at a time.
    fn strip<const M: usize>(&self, i: usize, b: &[T], rows: &mut [T]) {
        let a = &self.packed[i * self.k..(i + M) * self.k];
        let padded = rows.len() / HEIGHT;
        strip::<T, M>(a, b, self.offsets, padded, rows);
    }
}

fused!(fn strip<T: Real, const M: usize>(
    a: &[T],
    b: &[T],
    offsets: &[usize],
    padded: usize,
    rows: &mut [T]
) = strip_by);

/// `rows[i][j] = sum_k a[k][i] b[offsets[k] + j]` for `M` rows of `padded` columns: in wide tiles where
/// the rows are few, so that there are sums enough to keep the processor busy, and narrow ones for the rest.
#[inline(always)]
fn strip_by<T: Real, const M: usize, const FMA: bool>(
    a: &[T],
    b: &[T],
    offsets: &[usize],
    padded: usize,
    rows: &mut [T],
) {
    let mut from = 0;
    if M == 1 {
        from = tiles::<T, M, 8, FMA>(a, b, offsets, [padded, from], rows);
    }
    if M == 2 {
        from = tiles::<T, M, 4, FMA>(a, b, offsets, [padded, from], rows);
    }
    tiles::<T, M, 2, FMA>(a, b, offsets, [padded, from], rows);
}

/// The whole tiles of `V` vectors from column `from` on; where they end.
#[inline(always)]
fn tiles<T: Real, const M: usize, const V: usize, const FMA: bool>(
    a: &[T],
    b: &[T],
    offsets: &[usize],
    [padded, mut from]: [usize; 2],
    rows: &mut [T],
) -> usize {
    while from + V * LANES <= padded {
        let sums = broadcast::<T, M, V, FMA>(a, &b[from..], offsets);
        for (row, sums) in rows.chunks_exact_mut(padded).zip(&sums) {
            row[from..from + V * LANES].copy_from_slice(sums.as_flattened());
        }
        from += V * LANES;
    }
    from
}
