//! The fully connected layer: `y = x w^T + b`. Rows go through the matrix product in blocks of fixed
//! size, the last one filled up with zeros, so that a sample's result does not depend on its batch.
//! Bound by memory (the weight) for small batches, else by compute.

use super::Real;
use super::matmul::{matmul, rows, transposed};
use super::scratch::with_scratch;
use crate::threads::for_each_chunk;

/// Rows of one matrix product. Part of the result: do not change it lightly.
const BLOCK: usize = 16;

/// Rows of the weight gradient computed at once.
const OUT_BLOCK: usize = 32;

/// `[N, out]` from `x` `[N, in]`, `w` `[out, in]` and `bias` `[out]`.
pub(crate) fn forward<T: Real>([n, inputs, outputs]: [usize; 3], x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut y = by_blocks([n, inputs, outputs], x, |block, y| {
        let size = [BLOCK, outputs, inputs];
        matmul(
            size,
            (y, rows(outputs)),
            false,
            (block, rows(inputs)),
            (w, transposed(inputs)),
        );
    });
    if let Some(bias) = bias {
        for row in y.chunks_mut(outputs.max(1)) {
            for (value, b) in row.iter_mut().zip(bias) {
                *value += *b;
            }
        }
    }
    y
}

/// `dx` `[N, in]` from `dy` `[N, out]`.
pub(crate) fn input_gradient<T: Real>([n, inputs, outputs]: [usize; 3], w: &[T], dy: &[T]) -> Vec<T> {
    by_blocks([n, outputs, inputs], dy, |block, dx| {
        let size = [BLOCK, inputs, outputs];
        matmul(
            size,
            (dx, rows(inputs)),
            false,
            (block, rows(outputs)),
            (w, rows(inputs)),
        );
    })
}

/// `dw` `[out, in]`, summed over the rows of the batch in order.
pub(crate) fn weight_gradient<T: Real>([n, inputs, outputs]: [usize; 3], x: &[T], dy: &[T]) -> Vec<T> {
    let mut dw = vec![T::ZERO; outputs * inputs];
    if n == 0 {
        return dw;
    }
    for_each_chunk(&mut dw, OUT_BLOCK * inputs, |block, dw| {
        let size = [dw.len() / inputs, inputs, n];
        let dy = (&dy[block * OUT_BLOCK..], transposed(outputs));
        matmul(size, (dw, rows(inputs)), false, dy, (x, rows(inputs)));
    });
    dw
}

/// `db` `[out]`, summed over the rows of the batch in order.
pub(crate) fn bias_gradient<T: Real>(outputs: usize, dy: &[T]) -> Vec<T> {
    let mut db = vec![T::ZERO; outputs];
    for row in dy.chunks(outputs.max(1)) {
        for (sum, value) in db.iter_mut().zip(row) {
            *sum += *value;
        }
    }
    db
}

/// Maps `[n, from]` to `[n, to]`, `f(x block, y block)` at a time, each block [`BLOCK`] rows high.
fn by_blocks<T: Real>([n, from, to]: [usize; 3], x: &[T], f: impl Fn(&[T], &mut [T]) + Send + Sync) -> Vec<T> {
    let mut y = vec![T::ZERO; n * to];
    for_each_chunk(&mut y, (BLOCK * to).max(1), |block, y| {
        let x = &x[block * BLOCK * from..];
        let full = BLOCK * to;
        if y.len() == full {
            return f(x, y);
        }
        with_scratch(BLOCK * (from + to), |scratch| {
            let (x_block, y_block) = scratch.split_at_mut(BLOCK * from);
            x_block[..x.len()].copy_from_slice(x);
            x_block[x.len()..].fill(T::ZERO);
            f(x_block, y_block);
            y.copy_from_slice(&y_block[..y.len()]);
        });
    });
    y
}
