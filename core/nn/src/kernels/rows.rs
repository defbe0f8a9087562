//! Row by row over logits `[rows, K]`: softmax, log-softmax, cross-entropy, log odds, margin, and their
//! gradients. Bound by the exponentials.
//!
//! The gradients are right to rounding also where a model is sure of itself. The usual `p_y - 1` is not: at a loss of
//! 1e-7 and less f32 leaves 0 or noise of it, and an attack that begins there goes astray.

use super::Real;

/// Softmax of each row.
pub(crate) fn softmax<T: Real>(k: usize, x: &[T]) -> Vec<T> {
    by_row(k, x, |row, out| {
        let top = Top::of(row);
        for (p, z) in out.iter_mut().zip(row) {
            *p = top.share(*z);
        }
    })
}

/// `y (dy - <dy, y>)`, with `dy` counted from that of the likeliest class: its own share then drops out of the
/// product, and what the others' small shares say is not rounded away.
pub(crate) fn softmax_gradient<T: Real>(k: usize, y: &[T], dy: &[T]) -> Vec<T> {
    by_row_pair(k, y, dy, |y, dy, out| {
        let base = dy[largest(y)];
        let dot = y.iter().zip(dy).fold(T::ZERO, |sum, (y, g)| sum + *y * (*g - base));
        for ((out, y), g) in out.iter_mut().zip(y).zip(dy) {
            *out = *y * ((*g - base) - dot);
        }
    })
}

/// Logarithm of the softmax of each row.
pub(crate) fn log_softmax<T: Real>(k: usize, x: &[T]) -> Vec<T> {
    by_row(k, x, |row, out| {
        let top = Top::of(row);
        for (p, z) in out.iter_mut().zip(row) {
            *p = (*z - top.logit) - top.rest.ln_1p();
        }
    })
}

/// `dy - e^y sum(dy)`, summed as `dy (1 - e^y) - e^y (sum(dy) - dy)`.
pub(crate) fn log_softmax_gradient<T: Real>(k: usize, y: &[T], dy: &[T]) -> Vec<T> {
    by_row_pair(k, y, dy, |y, dy, out| {
        let sum = dy.iter().fold(T::ZERO, |sum, g| sum + *g);
        for ((out, y), g) in out.iter_mut().zip(y).zip(dy) {
            *out = T::ZERO - y.exp_m1() * *g - y.exp() * (sum - *g);
        }
    })
}

/// `log sum_i e^{z_i} - z_y` of each row.
pub(crate) fn cross_entropy<T: Real>(k: usize, x: &[T], labels: &[u32]) -> Vec<T> {
    let loss = |(row, y): (&[T], &u32)| {
        let top = Top::of(row);
        (top.logit - row[*y as usize]) + top.rest.ln_1p()
    };
    x.chunks_exact(k).zip(labels).map(loss).collect()
}

/// `dy (softmax(z) - onehot(y))`, where a likely label's `p_y - 1` is summed as `-sum_{i != y} p_i`.
pub(crate) fn cross_entropy_gradient<T: Real>(k: usize, x: &[T], labels: &[u32], dy: &[T]) -> Vec<T> {
    let mut dx = vec![T::ZERO; x.len()];
    let rows = x.chunks_exact(k).zip(dx.chunks_exact_mut(k));
    for (((row, dx), y), g) in rows.zip(labels).zip(dy) {
        let top = Top::of(row);
        for (dx, z) in dx.iter_mut().zip(row) {
            *dx = top.share(*z) * *g;
        }
        let y = *y as usize;
        dx[y] = match y == top.class {
            true => T::ZERO - top.rest / (T::ONE + top.rest) * *g,
            false => (top.share(row[y]) - T::ONE) * *g,
        };
    }
    dx
}

/// `log sum_{i != y} e^{z_i} - z_y` of each row. `k` is 2 or more.
pub(crate) fn log_odds<T: Real>(k: usize, x: &[T], labels: &[u32]) -> Vec<T> {
    let rows = x.chunks_exact(k).zip(labels);
    rows.map(|(row, y)| {
        let others = Others::of(row, *y);
        (others.logit - row[*y as usize]) + others.rest.ln_1p()
    })
    .collect()
}

/// `dy (softmax_{i != y}(z) - onehot(y))`: the largest share is `1 / k` at least, however far the label leads.
pub(crate) fn log_odds_gradient<T: Real>(k: usize, x: &[T], labels: &[u32], dy: &[T]) -> Vec<T> {
    let mut dx = vec![T::ZERO; x.len()];
    let rows = x.chunks_exact(k).zip(dx.chunks_exact_mut(k));
    for (((row, dx), y), g) in rows.zip(labels).zip(dy) {
        let others = Others::of(row, *y);
        for (dx, z) in dx.iter_mut().zip(row) {
            *dx = (*z - others.logit).exp() / (T::ONE + others.rest) * *g;
        }
        dx[*y as usize] = T::ZERO - *g;
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

/// The likeliest class of a row, and what the others weigh beside its 1. They are summed without it: where a model
/// is sure, they are below the rounding of 1, and all that the loss and its gradient consist of.
struct Top<T> {
    class: usize,
    logit: T,
    /// `sum_{i != class} e^{z_i - logit}`.
    rest: T,
}

impl<T: Real> Top<T> {
    fn of(row: &[T]) -> Self {
        let class = largest(row);
        let logit = row[class];
        let (before, after) = (&row[..class], &row[class + 1..]);
        let others = before.iter().chain(after);
        let rest = others.fold(T::ZERO, |sum, z| sum + (*z - logit).exp());
        Self { class, logit, rest }
    }

    /// Probability of a class with logit `z`.
    fn share(&self, z: T) -> T {
        (z - self.logit).exp() / (T::ONE + self.rest)
    }
}

/// The likeliest class of a row besides its label, and what the remaining ones weigh beside its 1.
struct Others<T> {
    logit: T,
    /// `sum e^{z_i - logit}` over all classes but these two.
    rest: T,
}

impl<T: Real> Others<T> {
    fn of(row: &[T], y: u32) -> Self {
        let class = runner_up(row, y);
        let logit = row[class];
        let remaining = row.iter().enumerate().filter(|(i, _)| *i != class && *i != y as usize);
        let rest = remaining.fold(T::ZERO, |sum, (_, z)| sum + (*z - logit).exp());
        Self { logit, rest }
    }
}

/// Where the largest of a row is, the first of equals.
fn largest<T: Real>(row: &[T]) -> usize {
    let best = |best: usize, (i, z): (usize, &T)| if *z > row[best] { i } else { best };
    row.iter().enumerate().fold(0, best)
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
