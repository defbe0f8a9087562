//! Runs a compiled network over a few images, forward and back.

mod backward;
mod buffers;
mod forward;
mod norms;
mod weights;

use std::ops::Range;

use super::plan::Plan;
use super::step::Step;
use crate::kernels::Real;

pub(super) use buffers::{Tape, Workspace};
pub(super) use norms::{Products, Pullback, Scale, Statistics, add_moments};
pub(super) use weights::Sums;

/// Output `y` `[n, ...]` for images `x` `[n, C, H, W]`; the tape is written if there is one. The plan has no norms by batches.
pub(super) fn forward<T: Real>(
    plan: &Plan<T>,
    work: &mut Workspace<T>,
    mut tape: Option<&mut Tape<T>>,
    n: usize,
    x: &[T],
    y: &mut [T],
) {
    for (k, segment) in plan.segments.iter().enumerate() {
        for images in segment.images(n) {
            if k == 0 {
                take_in(work, n, x, &images);
            }
            run(plan, k, &[], work, tape.as_deref_mut(), &images);
        }
    }
    give_out(plan, work, n, y);
}

/// Takes in some of `n` images `x`.
pub(super) fn take_in<T: Real>(work: &mut Workspace<T>, n: usize, x: &[T], images: &Range<usize>) {
    work.values[0].import(&x[images.start * (x.len() / n)..], images);
}

/// The outputs `y` of `n` images.
pub(super) fn give_out<T: Real>(plan: &Plan<T>, work: &Workspace<T>, n: usize, y: &mut [T]) {
    work.values[plan.output].export(y, &(0..n));
}

/// The steps of segment `k` for some images; norms by `scales`.
pub(super) fn run<T: Real>(
    plan: &Plan<T>,
    k: usize,
    scales: &[Scale<T>],
    work: &mut Workspace<T>,
    mut tape: Option<&mut Tape<T>>,
    images: &Range<usize>,
) {
    for i in plan.segments[k].steps.clone() {
        let mark = tape.as_deref_mut().map(|tape| (tape.images, &mut tape.marks[i]));
        match &plan.steps[i] {
            Step::Conv(conv) => forward::conv(conv, work, mark, images),
            Step::Single(single) => forward::single(single, work, mark, images),
            Step::Norm(norm) => forward::norm(norm, &scales[norm.number], work, mark, images),
        }
    }
}

/// Gradients requested from [`backward`].
pub(super) struct Wanted<'a, T> {
    /// Gradient `[n, C, H, W]` of the images.
    pub dx: Option<&'a mut [T]>,
    /// Sums of the gradients of weights; the workspace must keep all maps.
    pub sums: Option<&'a mut Sums<T>>,
}

/// Gradients of the images or the weights, from the output's `dy` `[n, ...]` and the tape of their way forward. The plan has no norms
/// by batches.
pub(super) fn backward<T: Real>(
    plan: &Plan<T>,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    n: usize,
    dy: &[T],
    wanted: Wanted<T>,
) {
    let Wanted { mut dx, mut sums } = wanted;
    take_gradient(plan, work, n, dy);
    for (k, segment) in plan.segments.iter().enumerate().rev() {
        for images in segment.images(n) {
            run_back(plan, k, work, tape, sums.as_deref_mut(), &images, dx.is_some());
            if let Some(dx) = dx.as_deref_mut().filter(|_| k == 0) {
                give_gradient(work, n, dx, &images);
            }
        }
    }
}

/// Takes in the gradient `dy` at the outputs of `n` images.
pub(super) fn take_gradient<T: Real>(plan: &Plan<T>, work: &mut Workspace<T>, n: usize, dy: &[T]) {
    work.slopes[plan.output].import(dy, &(0..n));
}

/// The gradient of some of `n` images, to their place in `dx`.
pub(super) fn give_gradient<T: Real>(work: &Workspace<T>, n: usize, dx: &mut [T], images: &Range<usize>) {
    let length = dx.len() / n;
    work.slopes[0].export(&mut dx[images.start * length..], images);
}

/// The steps of segment `k` back, but for the norm that it may begin with; to the images only if `to_images`.
pub(super) fn run_back<T: Real>(
    plan: &Plan<T>,
    k: usize,
    work: &mut Workspace<T>,
    tape: &mut Tape<T>,
    mut sums: Option<&mut Sums<T>>,
    images: &Range<usize>,
    to_images: bool,
) {
    for i in plan.segments[k].steps.clone().rev() {
        match &plan.steps[i] {
            Step::Conv(conv) => {
                backward::pull_back(conv, i, work, tape, images);
                if let Some(sums) = sums.as_deref_mut() {
                    let (source, result) = (&work.values[conv.source], &work.results[i]);
                    weights::learn(conv, source, result, sums.layer(i), images);
                }
                if conv.source > 0 || to_images {
                    backward::conv(plan, i, conv, work, tape, images);
                }
            }
            Step::Single(single) => {
                let all = tape.images;
                backward::single(single, &mut tape.marks[i], all, work, images, to_images);
            }
            Step::Norm(_) => {}
        }
    }
}
