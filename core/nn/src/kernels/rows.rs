//! Row by row over logits `[rows, K]`: softmax, log-softmax, cross-entropy, margin, and their
//! gradients. Bound by the exponentials.

use super::Real;

/// Softmax of each row.
pub(crate) fn softmax<T: Real>(k: usize, x: &[T]) -> Vec<T> {
    by_row(k, x, |row, out| {
        let log_sum = log_sum_exp(row);
        for (p, z) in out.iter_mut().zip(row) {
            *p = (*z - log_sum).exp();
        }
    })
}

/// `y (dy - <dy, y>)`.
pub(crate) fn softmax_gradient<T: Real>(k: usize, y: &[T], dy: &[T]) -> Vec<T> {
    by_row_pair(k, y, dy, |y, dy, out| {
        let dot = y.iter().zip(dy).fold(T::ZERO, |sum, (y, g)| sum + *y * *g);
        for ((out, y), g) in out.iter_mut().zip(y).zip(dy) {
            *out = *y * (*g - dot);
        }
    })
}

/// Logarithm of the softmax of each row.
pub(crate) fn log_softmax<T: Real>(k: usize, x: &[T]) -> Vec<T> {
    by_row(k, x, |row, out| {
        let log_sum = log_sum_exp(row);
        for (p, z) in out.iter_mut().zip(row) {
            *p = *z - log_sum;
        }
    })
}

/// `dy - e^y sum(dy)`.
pub(crate) fn log_softmax_gradient<T: Real>(k: usize, y: &[T], dy: &[T]) -> Vec<T> {
    by_row_pair(k, y, dy, |y, dy, out| {
        let sum = dy.iter().fold(T::ZERO, |sum, g| sum + *g);
        for ((out, y), g) in out.iter_mut().zip(y).zip(dy) {
            *out = *g - y.exp() * sum;
        }
    })
}

/// `log sum_i e^{z_i} - z_y` of each row.
pub(crate) fn cross_entropy<T: Real>(k: usize, x: &[T], labels: &[u32]) -> Vec<T> {
    let rows = x.chunks_exact(k).zip(labels);
    rows.map(|(row, y)| log_sum_exp(row) - row[*y as usize]).collect()
}

/// `dy (softmax(z) - onehot(y))`.
pub(crate) fn cross_entropy_gradient<T: Real>(k: usize, x: &[T], labels: &[u32], dy: &[T]) -> Vec<T> {
    let mut dx = softmax(k, x);
    for ((row, y), g) in dx.chunks_exact_mut(k).zip(labels).zip(dy) {
        row[*y as usize] -= T::ONE;
        for p in row {
            *p *= *g;
        }
    }
    dx
}

/// `z_y - max_{i != y} z_i` of each row.
pub(crate) fn margin<T: Real>(k: usize, x: &[T], labels: &[u32]) -> Vec<T> {
    let rows = x.chunks_exact(k).zip(labels);
    rows.map(|(row, y)| row[*y as usize] - row[runner_up(row, *y)])
        .collect()
}

/// `dy` to the label, `-dy` to the runner-up.
pub(crate) fn margin_gradient<T: Real>(k: usize, x: &[T], labels: &[u32], dy: &[T]) -> Vec<T> {
    let mut dx = vec![T::ZERO; x.len()];
    let rows = x.chunks_exact(k).zip(dx.chunks_exact_mut(k));
    for (((row, out), y), g) in rows.zip(labels).zip(dy) {
        out[*y as usize] = *g;
        out[runner_up(row, *y)] = T::ZERO - *g;
    }
    dx
}

/// The class with the largest logit besides `y`, the first of equals.
fn runner_up<T: Real>(row: &[T], y: u32) -> usize {
    let y = y as usize;
    let mut best = usize::from(y == 0);
    for (i, z) in row.iter().enumerate() {
        if i != y && *z > row[best] {
            best = i;
        }
    }
    best
}

/// `log sum_i e^{z_i}`, without overflow.
fn log_sum_exp<T: Real>(row: &[T]) -> T {
    let max = row.iter().fold(row[0], |m, z| if *z > m { *z } else { m });
    let sum = row.iter().fold(T::ZERO, |sum, z| sum + (*z - max).exp());
    max + sum.ln()
}

fn by_row<T: Real>(k: usize, x: &[T], f: impl Fn(&[T], &mut [T])) -> Vec<T> {
    let mut out = vec![T::ZERO; x.len()];
    for (row, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
        f(row, out);
    }
    out
}

fn by_row_pair<T: Real>(k: usize, y: &[T], dy: &[T], f: impl Fn(&[T], &[T], &mut [T])) -> Vec<T> {
    let mut out = vec![T::ZERO; y.len()];
    let rows = y.chunks_exact(k).zip(dy.chunks_exact(k));
    for ((y, dy), out) in rows.zip(out.chunks_exact_mut(k)) {
        f(y, dy, out);
    }
    out
}
