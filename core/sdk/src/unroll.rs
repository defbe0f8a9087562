//! Purifiers that iterate: gradients through all steps, in bounded memory.

use advae_nn::{custom_vjp, vjp};
use candle_core::{Result, Tensor, Var, bail};
use std::ops::Range;

/// Runs `steps` steps of an iteration, `s_{i+1} = step(i, s_i, x)` from `s_0 = state`, and returns the last state (`state` itself for 0 steps).
///
/// `x` `[N,C,H,W]` is what the steps read beside their state, usually the image. The state may have any shape, usually `[N,...]`; join
/// several tensors into one state by `Tensor::cat`. A purifier that iterates so keeps the backward rule `Exact`.
///
/// The gradient with respect to `x` and `state` is exact, and goes on to whatever they were computed from. The graph of all steps is never
/// kept. Every `k = ceil(sqrt(steps))` steps the forward pass keeps the state, `steps / k + 1` states in all. The backward pass takes
/// the segments of `k` steps from the last to the first, computes each again and differentiates it (Griewank and Walther 2000; Chen et
/// al. 2016, "Training deep nets with sublinear memory cost"). Both passes call `step` `steps` times.
///
/// `step` must depend on `i`, its state and `x` alone, since it is computed twice. Take random numbers from [`Pass::rng`](crate::Pass::rng) or
/// [`Pass::randn_like`](crate::Pass::randn_like), with a stream for each `i`. A gradient that `step` itself takes by `backward` or
/// [`vjp`](crate::nn::vjp()) is a constant to candle: take it by [`energy_gradient`](crate::energy_gradient).
///
/// Variables that `step` reads by itself, such as parameters in training, get their gradients too; then the whole graph is kept.
///
/// ```
/// use advae_sdk::candle_core::{Device, Var};
/// use advae_sdk::{nn::vjp, unrolled};
/// # fn main() -> advae_sdk::Result<()> {
/// // Newton's iteration for sqrt(x), from x. The derivative is 1 / (2 sqrt(x)): 1/4 and 1/6.
/// let x = Var::new(&[4f64, 9.], &Device::Cpu)?;
/// let root = unrolled(x.as_tensor(), x.as_tensor(), 9, |_, s, x| (s + (x / s)?)? / 2.)?;
/// let gradient = vjp(x.as_tensor(), &root, &root.ones_like()?)?.0.unwrap().to_vec1::<f64>()?;
/// assert!((gradient[0] - 1. / 4.).abs() < 1e-12 && (gradient[1] - 1. / 6.).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of `step`, with its number. Where a gradient is wanted: if `x` and `state` are of different types or devices. In the backward
/// pass: if `step` gives another state than before.
pub fn unrolled(
    x: &Tensor,
    state: &Tensor,
    steps: usize,
    step: impl Fn(usize, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let root = steps.isqrt();
    let segment = root + usize::from(root * root < steps);
    unrolled_by(x, state, steps, segment.max(1), step)
}

/// [`unrolled`] with segments of `segment` steps: it keeps `steps / segment + 1` states, and the graph of `segment` steps at a time. The time
/// does not depend on `segment`. Where the graph of a step is much larger than a state, as with a network, 1 needs the least memory.
///
/// # Errors
/// As for [`unrolled`], and if `segment` is 0.
pub fn unrolled_by(
    x: &Tensor,
    state: &Tensor,
    steps: usize,
    segment: usize,
    step: impl Fn(usize, &Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    crate::in_range("segment", segment, 1..=usize::MAX)?;
    let iteration = Iteration { steps, segment, step };
    let constant = !x.track_op() && !state.track_op();
    if constant || steps == 0 {
        return iteration.run(0..steps, state, x);
    }
    let (x_only, start) = (x.detach(), state.detach());
    let kept = iteration.checkpoints(&start, &x_only)?;
    if kept.iter().any(Tensor::track_op) {
        return iteration.run(0..steps, state, x);
    }
    let end = kept[kept.len() - 1].clone();
    of_both(x, state, &end, move |cotangent| {
        iteration.pull_back(&x_only, &kept, cotangent)
    })
}

struct Iteration<F> {
    steps: usize,
    segment: usize,
    step: F,
}

impl<F: Fn(usize, &Tensor, &Tensor) -> Result<Tensor>> Iteration<F> {
    fn run(&self, range: Range<usize>, state: &Tensor, x: &Tensor) -> Result<Tensor> {
        let next = |state: Tensor, i| {
            let said = |error: candle_core::Error| error.context(format!("step {i} of {}", self.steps));
            (self.step)(i, &state, x).map_err(said)
        };
        range.into_iter().try_fold(state.clone(), next)
    }

    fn segments(&self) -> impl DoubleEndedIterator<Item = Range<usize>> + ExactSizeIterator {
        let end = |first| self.steps.min(first + self.segment);
        (0..self.steps.div_ceil(self.segment)).map(move |i| i * self.segment..end(i * self.segment))
    }

    /// The states before every segment and after the last.
    fn checkpoints(&self, state: &Tensor, x: &Tensor) -> Result<Vec<Tensor>> {
        let mut kept = vec![state.clone()];
        for range in self.segments() {
            kept.push(self.run(range, &kept[kept.len() - 1], x)?);
        }
        Ok(kept)
    }

    /// The cotangents at `x` and at the first state, from that at the last.
    fn pull_back(&self, x: &Tensor, kept: &[Tensor], cotangent: &Tensor) -> Result<[Tensor; 2]> {
        let x = Var::from_tensor(x)?;
        let (mut at_x, mut at_state) = (x.zeros_like()?, cotangent.clone());
        for (range, ends) in self.segments().zip(kept.windows(2)).rev() {
            let state = Var::from_tensor(&ends[0])?;
            let end = self.run(range.clone(), state.as_tensor(), x.as_tensor())?;
            if !alike(&end.detach(), &ends[1])? {
                bail!(
                    "steps {} to {} gave another state when they were computed again: a step must depend on its number, its state and x \
                     alone; take random numbers from Pass::rng",
                    range.start,
                    range.end - 1
                )
            }
            let (to_state, gradients) = vjp(state.as_tensor(), &end, &at_state)?;
            at_state = to_state.map_or_else(|| state.zeros_like(), Ok)?;
            if let Some(more) = gradients.get(x.as_tensor()) {
                at_x = (at_x + more)?;
            }
        }
        Ok([at_x, at_state])
    }
}

/// Whether two tensors differ by no more than rounding may make of it. (A NaN is like anything.)
fn alike(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() || a.elem_count() == 0 {
        return Ok(a.dims() == b.dims());
    }
    let allowed = (b.abs()?.max_all()? * 1e-3)?.broadcast_as(a.shape())?;
    let apart = (a - b)?.abs()?.gt(&allowed)?;
    Ok(apart.max_all()?.to_scalar::<u8>()? == 0)
}

/// `y`, of any shape, as a function of `a` and `b` that [`custom_vjp`] takes for one input.
pub(crate) fn of_both(
    a: &Tensor,
    b: &Tensor,
    y: &Tensor,
    pullback: impl Fn(&Tensor) -> Result<[Tensor; 2]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let kind = |t: &Tensor| format!("{:?} on {:?}", t.dtype(), t.device().location());
    if kind(a) != kind(b) {
        bail!(
            "x is {}, what is iterated {}: bring both to one type and device",
            kind(a),
            kind(b)
        )
    }
    let joined = |a: &Tensor, b: &Tensor| Tensor::cat(&[a.flatten_all()?, b.flatten_all()?], 0);
    custom_vjp(&joined(a, b)?, y, move |cotangent| {
        let [a, b] = pullback(cotangent)?;
        joined(&a, &b)
    })
}

#[cfg(test)]
mod tests;
