//! Check 17: a linear classifier of two classes, whose robust accuracy is known in closed form.

use super::finding::Finding;
use super::subject::{Search, Subject};
use crate::wire::head::Linear;
use crate::wire::linear;
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::dot;
use advae_abi::info::NormKind;
use anyhow::Result;
use std::collections::BTreeMap;

/// Points by which the attack may miss the known figure.
const POINTS: f64 = 0.02;

/// Makes the check.
///
/// # Errors
/// Where the attack fails.
pub fn examine(subject: &Subject) -> Result<Finding> {
    const THRESHOLD: &str = "the closed form, to 2 points";
    let samples = subject.first(subject.extent.few);
    let labels: BTreeMap<usize, u32> = samples.iter().map(|i| (*i, half(subject, *i))).collect();
    let Some(w) = direction(subject, &samples) else {
        return Ok(Finding::not_applicable(
            17,
            "the samples are of one half of the classes",
        ));
    };
    // Between the two means.
    let bias = -samples.iter().map(|i| dot(&w, subject.dataset.image(*i))).sum::<f64>() / samples.len() as f64;
    let outcome = |i: usize| {
        let image = subject.dataset.image(i);
        let sign = if labels[&i] == 1 { 1. } else { -1. };
        let lead = sign * (dot(&w, image) + bias);
        (lead, image, sign)
    };
    // A budget that about half of what is correct stands.
    let mut needed: Vec<f64> = samples
        .iter()
        .map(|i| outcome(*i))
        .filter(|(lead, _, _)| *lead > 0.)
        .map(|(lead, image, sign)| smallest(&w, image, sign, lead, subject.claim.norm))
        .collect();
    needed.sort_by(f64::total_cmp);
    // Between two samples' own: rounding decides none of them.
    let middle = needed.len() / 2;
    let Some([below, above]) = middle.checked_sub(1).and_then(|i| needed.get(i..=middle)) else {
        return Ok(Finding::not_applicable(
            17,
            "the linear classifier is right on too few images",
        ));
    };
    let epsilon = f64::midpoint(*below, *above).min(subject.farthest() / 2.);
    let stands = needed.iter().filter(|needed| **needed > epsilon).count() as f64 / samples.len() as f64;
    let mut weight = vec![0f32; w.len()];
    weight.extend(&w);
    let model = linear::classifier(
        subject.dataset.shape,
        Linear {
            weight,
            bias: vec![0., bias as f32],
        },
    )?;
    let pipeline = Pipeline::undefended(model);
    let spec = subject.for_two_classes();
    let (attack, limits) = subject.construct(&spec, epsilon)?;
    let searched = subject.search(&Search {
        attack: &attack,
        limits,
        attacked: &pipeline,
        scored: &pipeline,
        samples: &samples,
        labels: Some(&labels),
        early_stop: true,
        watch: None,
    })?;
    let left = searched.iter().filter(|searched| searched.robust).count() as f64 / samples.len() as f64;
    let text = format!(
        "'{spec}' leaves {:.1} % of a linear classifier of these images at {} {epsilon:.4}; the closed form is {:.1} %",
        100. * left,
        subject.claim.norm,
        100. * stands
    );
    let finding = Finding::expect(17, (left - stands).abs() <= POINTS + 1e-9, text, THRESHOLD);
    Ok(finding.next(format!("advae-host doctor {}", subject.attack.name)))
}

/// 0 for the first half of the classes, 1 for the others.
fn half(subject: &Subject, i: usize) -> u32 {
    u32::from(2 * subject.dataset.labels[i] as usize >= subject.dataset.classes)
}

/// From the mean of one half to that of the other.
fn direction(subject: &Subject, samples: &[usize]) -> Option<Vec<f32>> {
    let mut sums = [
        vec![0f64; subject.dataset.image_len()],
        vec![0f64; subject.dataset.image_len()],
    ];
    let mut counts = [0usize; 2];
    for i in samples {
        let side = half(subject, *i) as usize;
        counts[side] += 1;
        let image = subject.dataset.image(*i);
        sums[side]
            .iter_mut()
            .zip(image)
            .for_each(|(sum, v)| *sum += f64::from(*v));
    }
    if counts.contains(&0) {
        return None;
    }
    let mean = |side: usize, j: usize| sums[side][j] / counts[side] as f64;
    Some((0..sums[0].len()).map(|j| (mean(1, j) - mean(0, j)) as f32).collect())
}

/// The smallest budget with which the image crosses the border, within [0, 1]: by bisection of the closed form. Infinite where none does.
fn smallest(w: &[f32], image: &[f32], sign: f64, lead: f64, norm: NormKind) -> f64 {
    let falls = |epsilon: f64| lead - most(w, image, sign, epsilon, norm) <= 0.;
    let (mut low, mut high) = (0., (image.len() as f64).sqrt());
    if !falls(high) {
        return f64::INFINITY;
    }
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if falls(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// By how much `sign * w x` can be lowered within the budget and [0, 1].
///
/// Linf: every pixel by itself. L2: by Lagrange's condition every pixel moves by `-sign w / (2 lambda)`, clipped; the length falls with
/// lambda, which is found by bisection.
fn most(w: &[f32], image: &[f32], sign: f64, epsilon: f64, norm: NormKind) -> f64 {
    let pixels = || w.iter().zip(image).map(|(w, v)| (f64::from(*w) * sign, f64::from(*v)));
    let moved = |step: f64| {
        pixels().fold((0., 0.), |(gain, length), (w, v)| {
            let d = (-w * step).clamp(-v, 1. - v);
            (gain - w * d, length + d * d)
        })
    };
    match norm {
        NormKind::Linf => pixels()
            .map(|(w, v)| -w * (-epsilon * w.signum()).clamp(-v, 1. - v))
            .sum(),
        NormKind::L2 => {
            let (mut low, mut high) = (0., 1e6);
            if moved(high).1 <= epsilon * epsilon {
                return moved(high).0;
            }
            for _ in 0..80 {
                let middle = f64::midpoint(low, high);
                if moved(middle).1 > epsilon * epsilon {
                    high = middle;
                } else {
                    low = middle;
                }
            }
            moved(low).0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closed_form_is_that_of_the_dual_norm_and_knows_the_bounds() {
        let (w, image) = ([3f32, -4.], [0.5f32, 0.5]);
        assert!((most(&w, &image, 1., 0.1, NormKind::Linf) - 0.7).abs() < 1e-12);
        assert!((most(&w, &image, 1., 0.1, NormKind::L2) - 0.5).abs() < 1e-6);
        assert!((smallest(&w, &image, 1., 0.7, NormKind::Linf) - 0.1).abs() < 1e-9);
        // The first pixel cannot go below 0.
        assert!((most(&w, &[0.05, 0.5], 1., 0.1, NormKind::Linf) - 0.55).abs() < 1e-7);
        let bounded = most(&w, &[0., 0.5], 1., 0.1, NormKind::L2);
        assert!((bounded - 0.4).abs() < 1e-6, "all of it in the second pixel: {bounded}");
        assert_eq!(smallest(&w, &image, 1., 100., NormKind::Linf), f64::INFINITY);
    }
}
