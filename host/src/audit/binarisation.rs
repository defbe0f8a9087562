//! Check 12: the binarisation test (Zimmermann, Brendel, Tramèr & Carlini 2022). Around every image points inside the ball and one on its
//! surface are told apart by a linear read-out of the features: an adversarial image then exists by construction, and the attack has to find
//! one.

use super::finding::Finding;
use super::losses::{moved_within, signs, uniform};
use super::subject::{Search, Subject};
use crate::experiment::{Layout, Limits, for_each};
use crate::wire::attack::Attack;
use crate::wire::head::{Head, Linear};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor, dot};
use advae_abi::info::NormKind;
use anyhow::Result;
use std::collections::BTreeMap;

/// Share of the ball's radius that inner points keep to.
const INNER: f64 = 0.95;
/// Success that is asked of the attack.
const SUCCESS: f64 = 0.95;
/// Steps of the search for the widest gap.
const STEPS: usize = 2000;
/// Points a forward pass.
const CHUNK: usize = 64;
/// Gap, as a share of the distance between the point on the surface and the nearest mean of inner ones, below which the two are not told apart.
const GAP: f64 = 1e-3;

/// What became of one image.
enum Outcome {
    /// No read-out tells the points apart.
    Inseparable,
    /// Whether the attack found an image on the other side, and whether random points did.
    Tried { found: bool, by_chance: bool },
}

/// Makes the check.
///
/// # Errors
/// Where a plugin fails.
pub fn examine(subject: &Subject) -> Result<Finding> {
    const THRESHOLD: &str = "the attack finds 95 % of the planted images, random points half of them at the most";
    if subject.pipeline.random() {
        return Ok(Finding::not_applicable(
            12,
            "the features of a random defence are random, and no read-out of them is",
        ));
    }
    let spec = subject.for_two_classes();
    let (attack, limits) = subject.construct(&spec, subject.claim.epsilon)?;
    let samples = subject.first(subject.extent.binarised);
    let probe = subject.batch(&samples[..1]);
    let call = Call::score(subject.seed(), &probe.scoring_ids);
    let features = subject.classifier.model.features(&call, &probe.x).is_ok();
    let layout = subject.layout();
    let outcomes = for_each(layout.workers, samples.len(), |i| {
        subject.cancel.check()?;
        try_one(subject, (&attack, limits), samples[i], features, layout)
    })?;
    let mut tried = vec![];
    for outcome in &outcomes {
        if let Outcome::Tried { found, by_chance } = outcome {
            tried.push((*found, *by_chance));
        }
    }
    if 2 * tried.len() < outcomes.len() {
        let text = format!(
            "only for {} of {} images a linear read-out tells points inside the ball from one on its surface",
            tried.len(),
            outcomes.len()
        );
        return Ok(Finding::note(12, text, THRESHOLD));
    }
    let n = tried.len();
    let found = tried.iter().filter(|(found, _)| *found).count();
    let by_chance = tried.iter().filter(|(_, by_chance)| *by_chance).count();
    let of = if features {
        "penultimate features"
    } else {
        "logits, for the classifier shows no features"
    };
    let text = format!(
        "'{spec}' finds {found} of {n} planted images, as many random points as it asks questions {by_chance} (read-outs of {of}; {} points)",
        subject.extent.inner
    );
    if 2 * by_chance > n {
        return Ok(Finding::note(
            12,
            format!("{text}: too easy to say anything"),
            THRESHOLD,
        ));
    }
    let finding = Finding::expect(12, found as f64 >= SUCCESS * n as f64, text, THRESHOLD);
    Ok(finding
        .next(subject.eval("--attack apgd:steps=200,restarts=5 --attack pgd:loss=margin,restarts=5 --attack square")))
}

fn try_one(
    subject: &Subject,
    (attack, limits): (&Attack, Limits),
    sample: usize,
    features: bool,
    layout: Layout,
) -> Result<Outcome> {
    let batch = subject.batch(&[sample]);
    let round = |i: usize| i as u64;
    let step = |share: f64| subject.amplitude(share);
    let inner = |i: usize| {
        within(
            subject,
            &batch.x,
            &uniform(&batch.x, &batch.ids, subject.seed(), round(i)),
            step(INNER),
            INNER,
        )
    };
    let mut points = batch.x.clone();
    for i in 1..=subject.extent.inner {
        points.append(&inner(i));
    }
    let corner = signs(&batch.x, &batch.ids, subject.seed(), 0);
    let surface = within(subject, &batch.x, &corner, step(1.), 1.);
    let read = |x: &Tensor| read(subject, x, batch.scoring_ids[0], features);
    let (inside, on_surface) = (read(&points)?, read(&surface)?);
    let Some(linear) = separate(&inside, on_surface.row(0)) else {
        return Ok(Outcome::Inseparable);
    };
    let pipeline = subject.pipeline.with_head(Head::Readout { features, linear });
    let labels = BTreeMap::from([(sample, 0)]);
    let searched = subject.search(&Search {
        attack,
        limits,
        attacked: &pipeline,
        scored: &pipeline,
        samples: &[sample],
        labels: Some(&labels),
        early_stop: true,
        watch: None,
    })?;
    let found = searched.iter().any(|searched| !searched.robust);
    let questions = attack.info().passes.clamp(1, subject.extent.inner as u64) as usize;
    let by_chance = chance(subject, &pipeline, &batch.x, &batch.ids, questions, layout)?;
    Ok(Outcome::Tried { found, by_chance })
}

/// A point at that offset, brought back to `share` of the budget where its length is bounded as a whole.
fn within(subject: &Subject, x: &Tensor, direction: &Tensor, step: f32, share: f64) -> Tensor {
    let step = match subject.claim.norm {
        NormKind::Linf => step,
        NormKind::L2 => {
            let length = dot(&direction.data, &direction.data).sqrt().max(1e-12);
            (share * subject.claim.epsilon / length) as f32
        }
    };
    moved_within(x, direction, step)
}

/// What the read-out is given for each point.
fn read(subject: &Subject, points: &Tensor, id: u64, features: bool) -> Result<Tensor> {
    let mut all: Option<Tensor> = None;
    let rows: Vec<usize> = (0..points.rows()).collect();
    for rows in rows.chunks(CHUNK) {
        let ids = vec![id; rows.len()];
        let call = Call::score(subject.seed(), &ids);
        let x = points.select(rows);
        let purified = subject
            .purifier
            .as_ref()
            .map(|purifier| purifier.model.forward(&call, &x));
        let x = purified.transpose()?.unwrap_or(x);
        let classifier = &subject.classifier.model;
        let y = if features {
            classifier.features(&call, &x)?
        } else {
            classifier.forward(&call, &x)?
        };
        match &mut all {
            Some(all) => all.append(&y),
            None => all = Some(y),
        }
    }
    Ok(all.unwrap_or_default())
}

/// A read-out that is 0 for every inner point and 1 for the one on the surface, its border in the middle of the widest gap; none where
/// they cannot be told apart.
///
/// The direction leads from the nearest point of the inner ones' convex hull (Gilbert's algorithm) to the one outside.
fn separate(inner: &Tensor, outside: &[f32]) -> Option<Linear> {
    let (n, f) = (inner.rows(), inner.row_len());
    let product = |w: &[f64], row: &[f32]| w.iter().zip(row).map(|(w, v)| w * f64::from(*v)).sum::<f64>();
    let mut near = vec![0f64; f];
    for i in 0..n {
        near.iter_mut()
            .zip(inner.row(i))
            .for_each(|(m, v)| *m += f64::from(*v) / n as f64);
    }
    let toward = |near: &[f64]| -> Vec<f64> { outside.iter().zip(near).map(|(o, m)| f64::from(*o) - m).collect() };
    let length = |w: &[f64]| w.iter().map(|v| v * v).sum::<f64>();
    let scale = length(&toward(&near));
    for _ in 0..STEPS {
        let w = toward(&near);
        let farthest = (0..n).max_by(|a, b| product(&w, inner.row(*a)).total_cmp(&product(&w, inner.row(*b))))?;
        // From `near` towards that point, as far as it comes nearer.
        let step: Vec<f64> = inner
            .row(farthest)
            .iter()
            .zip(&near)
            .map(|(v, m)| f64::from(*v) - m)
            .collect();
        let gain: f64 = w.iter().zip(&step).map(|(a, b)| a * b).sum();
        let share = gain / length(&step).max(1e-300);
        if gain <= 1e-6 * length(&w) {
            break;
        }
        near.iter_mut().zip(&step).for_each(|(m, s)| *m += share.min(1.) * s);
    }
    let w = toward(&near);
    let most = (0..n)
        .map(|i| product(&w, inner.row(i)))
        .fold(f64::NEG_INFINITY, f64::max);
    let there = product(&w, outside);
    let gap = there - most;
    if gap.is_nan() || gap <= GAP * length(&w).max(GAP * scale) {
        return None;
    }
    // Logits 0 and `(w x - border) / gap * 10`: -5 at the nearest inner point, 5 outside.
    let factor = 10. / gap;
    let border = f64::midpoint(there, most);
    let mut weight = vec![0f32; f];
    weight.extend(w.iter().map(|v| (v * factor) as f32));
    Some(Linear {
        weight,
        bias: vec![0., (-border * factor) as f32],
    })
}

/// Whether one of so many random points of the ball is on the other side.
fn chance(
    subject: &Subject,
    pipeline: &Pipeline,
    x: &Tensor,
    ids: &[u64],
    questions: usize,
    layout: Layout,
) -> Result<bool> {
    let mut points: Option<Tensor> = None;
    for i in 0..questions {
        let direction = uniform(x, ids, subject.seed() ^ 0x5eed, i as u64);
        let point = within(subject, x, &direction, subject.amplitude(1.), 1.);
        match &mut points {
            Some(points) => points.append(&point),
            None => points = Some(point),
        }
    }
    let points = points.unwrap_or_default();
    let rows: Vec<usize> = (0..points.rows()).collect();
    for rows in rows.chunks(CHUNK) {
        let ids = vec![ids[0]; rows.len()];
        let call = Call::craft(subject.seed(), &ids).with_threads(layout.call_threads);
        if pipeline.forward(&call, &points.select(rows))?.argmax().contains(&1) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_out_tells_the_inner_points_from_the_one_outside() {
        let inner = Tensor::new(vec![4, 2], vec![0., 0., 1., 0., 0., 1., 1., 1.]).unwrap();
        let linear = separate(&inner, &[3., 1.]).unwrap();
        let inside = linear.forward(&inner);
        assert_eq!(inside.argmax(), [0, 0, 0, 0]);
        let outside = linear.forward(&Tensor::new(vec![1, 2], vec![3., 1.]).unwrap());
        assert_eq!(outside.argmax(), [1]);
        // The border is in the middle of the gap.
        assert!(
            (outside.data[1] - 5.).abs() < 1e-3 && (inside.row(3)[1] + 5.).abs() < 1e-3,
            "{inside:?}"
        );
    }

    #[test]
    fn a_point_within_the_hull_cannot_be_told_apart() {
        let inner = Tensor::new(vec![3, 2], vec![0., 0., 1., 0., 0., 1.]).unwrap();
        assert_eq!(separate(&inner, &[0.3, 0.3]), None);
        assert_eq!(separate(&inner, &[0., 1.]), None);
    }
}
