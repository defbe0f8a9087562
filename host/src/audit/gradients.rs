//! The way back: checks 3, 6, 7, 15 and 18.

use super::finding::Finding;
use super::losses::{
    cross_entropy_cotangent, dlr_cotangent, margin, margin_cotangent, moved_within, runner_up, signs, uniform,
};
use super::subject::Subject;
use crate::experiment::{Batch, for_each_batch, load_model};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor, dot, moved};
use advae_abi::info::{BackwardRule, Kind};
use anyhow::{Context, Result};
use std::sync::{Mutex, PoisonError};

/// Mean cosine from which on a gradient counts as that of the forward pass.
const EXACT: f64 = 0.95;
/// Mean cosine below which a replaced gradient leads nowhere.
const NOWHERE: f64 = 0.1;
/// By how much another rule has to be nearer to the slopes to be told.
const NEARER: f64 = 0.25;
/// Mean relative change of the margin that is told as unstable.
const UNSTABLE: f64 = 0.5;
/// Cosine between two halves of the draws from which on there are enough of them.
const ENOUGH: f64 = 0.5;
/// Samples of check 18.
const DRAWN: usize = 32;

/// What the gradient checks found, and how many draws a gradient through this defence needs.
pub struct Gradients {
    /// Checks 3, 6, 7, 15, 18.
    pub findings: Vec<Finding>,
    /// Draws.
    pub eot: u64,
}

/// One value a sample, in micro-batches.
fn of_samples<T: Send>(
    subject: &Subject,
    samples: &[usize],
    of: impl Fn(&Batch) -> Result<Vec<T>> + Sync,
) -> Result<Vec<T>> {
    let all = Mutex::new(vec![]);
    for_each_batch(subject.layout(), samples, |samples| {
        subject.cancel.check()?;
        let values = of(&subject.batch(samples))?;
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(samples.iter().copied().zip(values));
        Ok(())
    })?;
    let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    all.sort_by_key(|(i, _)| *i);
    Ok(all.into_iter().map(|(_, value)| value).collect())
}

fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (n, sum) = values.into_iter().fold((0., 0.), |(n, sum), v| (n + 1., sum + v));
    (n > 0.).then(|| sum / n)
}

/// Makes the checks.
///
/// # Errors
/// Where a plugin fails in a forward pass. One that fails on the way back is what check 6 is about.
pub fn examine(subject: &Subject) -> Result<Gradients> {
    let samples = subject.first(subject.extent.few);
    let mut findings = vec![unstable(subject, &samples)?];
    if let Err(error) = gradient(subject, &subject.batch(&samples[..1]), 0) {
        subject.cancel.check()?;
        let text = format!("the way back fails: {error:#}");
        findings.push(
            Finding::expect(6, false, text, "a gradient for every image")
                .next(subject.eval("--attack apgd --backward identity --attack square")),
        );
        for number in [3, 15, 18] {
            findings.push(Finding::not_run(number, "there is no gradient: see check 6".into()));
        }
        return Ok(Gradients { findings, eot: 1 });
    }
    findings.push(zero_dlr(subject, &samples)?);
    findings.push(unavailable(subject, &samples)?);
    findings.push(differences(subject, &samples)?);
    let (finding, eot) = draws(subject)?;
    findings.push(finding);
    Ok(Gradients { findings, eot })
}

fn craft<'b>(subject: &Subject, ids: &'b [u64]) -> Call<'b> {
    Call::craft(subject.seed(), ids).with_threads(subject.layout().call_threads)
}

/// Logits of a batch, and the gradient of the margin there.
fn gradient(subject: &Subject, batch: &Batch, draw: u64) -> Result<(Tensor, Tensor)> {
    let ids = subject.crafting_ids(batch);
    let call = craft(subject, &ids).with_draw(draw);
    let (logits, tape) = subject.pipeline.forward_tape(&call, &batch.x)?;
    let gradient = tape.backward(&call, &margin_cotangent(&logits, &batch.y))?;
    Ok((logits, gradient))
}

/// Whether each row is zero throughout.
fn zero_rows(x: &Tensor) -> Vec<bool> {
    (0..x.rows()).map(|i| x.row(i).iter().all(|v| *v == 0.)).collect()
}

/// Check 3: the gradient of DLR at a random point of the ball.
fn zero_dlr(subject: &Subject, samples: &[usize]) -> Result<Finding> {
    if subject.pipeline.classes() < 3 {
        return Ok(Finding::not_applicable(3, "the loss needs three classes"));
    }
    let zero = of_samples(subject, samples, |batch| {
        let start = moved_within(
            &batch.x,
            &uniform(&batch.x, &batch.ids, subject.seed(), 0),
            subject.amplitude(1.),
        );
        let ids = subject.crafting_ids(batch);
        let call = craft(subject, &ids);
        let (logits, tape) = subject.pipeline.forward_tape(&call, &start)?;
        let gradient = tape.backward(&call, &dlr_cotangent(&logits, &batch.y))?;
        // Where the label comes third the loss is 1 all around: such an image is misclassified already.
        let stands = logits
            .argmax()
            .into_iter()
            .zip(&batch.y)
            .map(|(said, label)| said == *label);
        Ok(zero_rows(&gradient)
            .into_iter()
            .zip(stands)
            .map(|(zero, stands)| zero && stands)
            .collect())
    })?;
    let count = zero.iter().filter(|zero| **zero).count();
    let text = format!(
        "the gradient of DLR at a random start is zero for {count} of {} images",
        zero.len()
    );
    let finding = Finding::expect(3, count == 0, text, "for none");
    Ok(finding.next(subject.eval("--attack pgd:loss=margin --attack square --backward all")))
}

/// Check 6: the gradient of the margin at the image itself, and that of cross-entropy in f32 with respect to the logits.
fn unavailable(subject: &Subject, samples: &[usize]) -> Result<Finding> {
    let flat = of_samples(subject, samples, |batch| {
        let (logits, gradient) = gradient(subject, batch, 0)?;
        let saturated = zero_rows(&cross_entropy_cotangent(&logits, &batch.y));
        Ok(zero_rows(&gradient).into_iter().zip(saturated).collect())
    })?;
    let zero = flat.iter().filter(|(zero, _)| *zero).count();
    let saturated = flat.iter().filter(|(_, saturated)| *saturated).count();
    let text = format!(
        "of {} images the gradient of the margin is zero for {zero}, that of cross-entropy in f32 for {saturated}",
        samples.len()
    );
    let finding = Finding::expect(6, zero == 0 && saturated == 0, text, "for none");
    Ok(finding.next(match (zero, saturated) {
        (0, _) => subject.eval("--attack pgd:loss=margin --attack apgd:loss=dlr"),
        _ => subject.eval("--attack apgd --backward identity --attack square"),
    }))
}

/// Check 7.
fn unstable(subject: &Subject, samples: &[usize]) -> Result<Finding> {
    let step = subject.amplitude(0.5);
    let changes = of_samples(subject, samples, |batch| {
        let ids = subject.crafting_ids(batch);
        let call = craft(subject, &ids);
        let at = |x: &Tensor| -> Result<Vec<f64>> {
            let logits = subject.pipeline.forward(&call, x)?;
            Ok(batch
                .y
                .iter()
                .enumerate()
                .map(|(i, y)| margin(logits.row(i), *y))
                .collect())
        };
        let here = at(&batch.x)?;
        let mut sums = vec![0.; here.len()];
        for round in 0..subject.extent.directions as u64 {
            let direction = uniform(&batch.x, &batch.ids, subject.seed(), round);
            let there = at(&moved_within(&batch.x, &direction, step))?;
            for (sum, (here, there)) in sums.iter_mut().zip(here.iter().zip(there)) {
                let relative = if *here == 0. { 1. } else { ((there - here) / here).abs() };
                *sum += relative.min(1.);
            }
        }
        Ok(sums
            .into_iter()
            .map(|sum| sum / subject.extent.directions as f64)
            .collect())
    })?;
    let change = mean(changes).unwrap_or(0.);
    let text = format!(
        "the margin changes by {:.0} % (mean over {} images and {} random directions of half the budget)",
        100. * change,
        samples.len(),
        subject.extent.directions
    );
    let finding = Finding::expect(7, change <= UNSTABLE, text, "by 50 % at the most");
    Ok(finding.next(subject.eval("--attack square --attack apgd --eot 20")))
}

/// Mean cosine between gradients and the slopes of the forward pass along random directions: of three step sizes the best. A small one
/// passes few kinks, a large one is not lost in rounding.
fn agreement(subject: &Subject, pipeline: &Pipeline, samples: &[usize]) -> Result<Option<f64>> {
    let rounds = subject.extent.directions as u64;
    let mut best: Option<f64> = None;
    for share in [1. / 256., 1. / 16., 0.5] {
        let step = subject.amplitude(share);
        let cosines = of_samples(subject, samples, |batch| {
            let ids = subject.crafting_ids(batch);
            let call = craft(subject, &ids);
            // At the image itself pixels of one colour tie in every maximum over them, and there is no slope: within noise of half
            // the budget there is one. And away from the bounds, where a purifier that clips has none.
            let noise = uniform(&batch.x, &batch.ids, subject.seed(), rounds);
            let mut inside = moved(&batch.x, &noise, subject.amplitude(0.5));
            let (low, high) = (step.min(0.5), (1. - step).max(0.5));
            inside.data.iter_mut().for_each(|v| {
                let reflected = if *v < low { 2. * low - *v } else { *v };
                let reflected = if reflected > high {
                    2. * high - reflected
                } else {
                    reflected
                };
                *v = reflected.clamp(low, high);
            });
            let (logits, tape) = pipeline.forward_tape(&call, &inside)?;
            let gradient = tape.backward(&call, &margin_cotangent(&logits, &batch.y))?;
            let rivals: Vec<usize> = batch
                .y
                .iter()
                .enumerate()
                .map(|(i, y)| runner_up(logits.row(i), *y))
                .collect();
            let at = |x: &Tensor| -> Result<Vec<f64>> {
                let logits = pipeline.forward(&call, x)?;
                let margin =
                    |(i, y): (usize, &u32)| f64::from(logits.row(i)[rivals[i]]) - f64::from(logits.row(i)[*y as usize]);
                Ok(batch.y.iter().enumerate().map(margin).collect())
            };
            let n = batch.y.len();
            let (mut ss, mut tt, mut st) = (vec![0.; n], vec![0.; n], vec![0.; n]);
            for round in 0..rounds {
                let direction = signs(&batch.x, &batch.ids, subject.seed(), round);
                let (up, down) = (
                    at(&moved(&inside, &direction, step))?,
                    at(&moved(&inside, &direction, -step))?,
                );
                for i in 0..n {
                    let slope = (up[i] - down[i]) / (2. * f64::from(step));
                    let promised = dot(gradient.row(i), direction.row(i));
                    ss[i] += slope * slope;
                    tt[i] += promised * promised;
                    st[i] += slope * promised;
                }
            }
            let cosine = |i: usize| match (ss[i] > 0., tt[i] > 0.) {
                (true, true) => st[i] / (ss[i] * tt[i]).sqrt(),
                // Flat, and said to be flat.
                (false, false) => f64::NAN,
                _ => 0.,
            };
            Ok((0..n).map(cosine).collect())
        })?;
        let found = mean(cosines.into_iter().filter(|cosine| !cosine.is_nan()));
        best = best.into_iter().chain(found).reduce(f64::max);
    }
    Ok(best)
}

/// Check 15.
fn differences(subject: &Subject, samples: &[usize]) -> Result<Finding> {
    let own = agreement(subject, &subject.pipeline, samples)?;
    let rule = subject.purifier.as_ref().map(|purifier| purifier.rule().used);
    let exact = rule.as_deref().is_none_or(|rule| rule == BackwardRule::Exact.name());
    let Some(own) = own else {
        let text = "neither the gradient nor the output moves along random directions".to_string();
        return Ok(Finding::note(15, text, "something to compare"));
    };
    let how = format!("{} images, {} directions", samples.len(), subject.extent.directions);
    if exact {
        let text = format!("mean cosine {own:.3} between the gradient and differences of the forward pass ({how})");
        let finding = Finding::expect(15, own >= EXACT, text, "0.95 or more for an exact gradient");
        let name = subject
            .purifier
            .as_ref()
            .map_or(&subject.classifier.named, |p| &p.named);
        return Ok(finding.next(format!("advae-host doctor {name}")));
    }
    let rule = rule.unwrap_or_default();
    let identity = match (&subject.purifier, rule == BackwardRule::Identity.name()) {
        (Some(purifier), false) => {
            let spec = purifier.named.to_string();
            let identity = load_model(
                &spec,
                Kind::Purifier,
                &subject.settings.device,
                Some(BackwardRule::Identity),
            )?;
            let pipeline = Pipeline::new(Some(identity.model), subject.classifier.model.clone());
            agreement(subject, &pipeline, samples)?
        }
        _ => None,
    };
    let beside = identity
        .map(|cosine| format!(", the identity's {cosine:.3}"))
        .unwrap_or_default();
    let text = format!("mean cosine of the rule {rule} to differences of the forward pass {own:.3}{beside} ({how})");
    let fine = own >= NOWHERE && identity.is_none_or(|identity| identity < own + NEARER);
    let finding = Finding::expect(
        15,
        fine,
        text,
        "0.1 or more for a replaced gradient, and no rule much nearer to the slopes",
    );
    Ok(finding.next(subject.eval("--attack apgd --attack square --backward all")))
}

/// Check 18, and the draws that gradients are to be averaged over.
fn draws(subject: &Subject) -> Result<(Finding, u64)> {
    const THRESHOLD: &str = "a cosine of 0.5 or more between the means over two halves of the draws";
    if !subject.pipeline.random() {
        return Ok((Finding::not_applicable(18, "the defence is not random"), 1));
    }
    let samples = subject.first(subject.extent.few.min(DRAWN));
    let most = subject.extent.draws.max(2);
    let mut told = vec![];
    let mut half = 1;
    while 2 * half <= most {
        let cosines = of_samples(subject, &samples, |batch| {
            let sum = |first: u64| -> Result<Tensor> {
                let mut sum: Option<Tensor> = None;
                for draw in first..first + half {
                    let (_, one) = gradient(subject, batch, draw)?;
                    match &mut sum {
                        Some(sum) => sum.add(&one),
                        None => sum = Some(one),
                    }
                }
                sum.context("no draw was made")
            };
            let (a, b) = (sum(0)?, sum(half)?);
            let cosine = |i: usize| {
                let length = (dot(a.row(i), a.row(i)) * dot(b.row(i), b.row(i))).sqrt();
                if length > 0. {
                    dot(a.row(i), b.row(i)) / length
                } else {
                    0.
                }
            };
            Ok((0..batch.y.len()).map(cosine).collect())
        })?;
        let cosine = mean(cosines).unwrap_or(0.);
        told.push(format!("{cosine:.2} at {half}"));
        if cosine >= ENOUGH {
            let text = format!("cosine between two halves of the draws: {}", told.join(", "));
            return Ok((Finding::expect(18, true, text, THRESHOLD), 2 * half));
        }
        half *= 2;
    }
    let text = format!(
        "cosine between two halves of the draws: {}: more are needed",
        told.join(", ")
    );
    let finding = Finding {
        threshold: THRESHOLD.into(),
        ..Finding::not_run(18, text)
    };
    Ok((
        finding.next(subject.eval(&format!("--attack apgd --eot {}", 4 * most))),
        most,
    ))
}
