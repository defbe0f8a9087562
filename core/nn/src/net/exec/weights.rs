//! Gradients of a network's weights, summed over images.

use std::ops::Range;

use super::buffers::Buffer;
use crate::kernels::conv_weights::{Rule, gradient_border};
use crate::kernels::frame::Frame;
use crate::kernels::scratch::with_scratch;
use crate::kernels::{Real, simd};
use crate::net::plan::Plan;
use crate::net::step::{Conv, Step};

/// Sums over images of the gradients of a network's weights, convolution by convolution.
pub(in crate::net) struct Sums<T>(Vec<Layer<T>>);

/// Those of one convolution or fully connected layer, as its [`Rule`] has them; empty for other steps.
pub(super) struct Layer<T> {
    weight: Vec<T>,
    bias: Vec<T>,
}

impl<T: Real> Sums<T> {
    /// Zeros.
    pub fn new(plan: &Plan<T>) -> Self {
        let layer = |step: &Step<T>| match step {
            Step::Conv(conv) => Layer {
                weight: vec![T::ZERO; Rule::new(&conv.geometry).sums()],
                bias: vec![T::ZERO; if conv.biased { conv.result.c } else { 0 }],
            },
            Step::Single(_) | Step::Norm(_) => Layer {
                weight: vec![],
                bias: vec![],
            },
        };
        Self(plan.steps.iter().map(layer).collect())
    }

    /// Those of a step.
    pub(super) fn layer(&mut self, step: usize) -> &mut Layer<T> {
        &mut self.0[step]
    }

    /// Adds those of further images.
    pub fn add(&mut self, other: &Self) {
        for (layer, more) in self.0.iter_mut().zip(&other.0) {
            for (sums, more) in [(&mut layer.weight, &more.weight), (&mut layer.bias, &more.bias)] {
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += *more);
            }
        }
    }

    /// The gradients, weight and bias of one layer after the other, in one vector; those of norms, in order, come from `norms`.
    pub fn finish(self, plan: &Plan<T>, norms: &[[Vec<T>; 2]]) -> Vec<T> {
        let mut all = Vec::new();
        for (layer, step) in self.0.iter().zip(&plan.steps) {
            match step {
                Step::Conv(conv) => {
                    all.extend(Rule::new(&conv.geometry).finish(&layer.weight));
                    all.extend_from_slice(&layer.bias);
                }
                Step::Norm(norm) => norms[norm.number].iter().for_each(|numbers| all.extend(numbers)),
                Step::Single(_) => {}
            }
        }
        all
    }
}

/// Adds the gradients of a layer's weight and bias. Of a transposed convolution the weight's is that of the convolution from its
/// outputs to its inputs, whose roles are exchanged.
pub(super) fn learn<T: Real>(
    conv: &Conv<T>,
    source: &Buffer<T>,
    result: &Buffer<T>,
    sums: &mut Layer<T>,
    images: &Range<usize>,
) {
    let [x, dy] = match conv.transposed {
        false => [source, result],
        true => [result, source],
    };
    let rule = |frame| Rule::laid_out(&conv.geometry, x.frame, frame);
    let (from, count) = (x.maps(images), images.len());
    if dy.frame.narrow {
        // Few outputs lie plane by plane: a copy with channels last.
        let wide = Frame::channels_last(dy.frame.shape(), gradient_border(&conv.geometry));
        with_scratch(count * wide.len(), |copy: &mut [T]| {
            widen(&dy.frame, dy.maps(images), &wide, copy);
            // SAFETY: both hold a map for every image, with the borders that the rule reads.
            unsafe { rule(wide).add_maps(count, from.as_ptr(), copy.as_ptr(), &mut sums.weight) };
        });
    } else {
        // SAFETY: as above, as the plan asked for them.
        unsafe { rule(dy.frame).add_maps(count, from.as_ptr(), dy.maps(images).as_ptr(), &mut sums.weight) };
    }
    add_places(&result.frame, result.maps(images), &mut sums.bias);
}

/// Adds each channel's places to its sum; of the first channels, if there are fewer sums.
fn add_places<T: Real>(frame: &Frame, maps: &[T], sums: &mut [T]) {
    if sums.is_empty() {
        return;
    }
    for map in maps.chunks_exact(frame.len()) {
        if frame.narrow {
            for (i, row) in frame.rows().enumerate() {
                let sum = &mut sums[i / frame.h];
                map[row].iter().for_each(|dy| *sum += *dy);
            }
            continue;
        }
        simd(|| {
            for row in frame.rows() {
                for place in map[row].chunks_exact(frame.channels()) {
                    sums.iter_mut().zip(place).for_each(|(sum, dy)| *sum += *dy);
                }
            }
        });
    }
}

/// Copies maps stored plane by plane to maps with channels last.
fn widen<T: Real>(narrow: &Frame, maps: &[T], wide: &Frame, copy: &mut [T]) {
    let Frame { c, h, w, .. } = *wide;
    let plane = narrow.strides()[0];
    copy.fill(T::ZERO);
    for (from, to) in maps.chunks_exact(narrow.len()).zip(copy.chunks_exact_mut(wide.len())) {
        for (channel, y, x) in (0..c).flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| (c, y, x)))) {
            to[wide.at(y, x) + channel] = from[narrow.at(y, x) + channel * plane];
        }
    }
}
