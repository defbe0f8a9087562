//! The way an attack goes, as the oracle sees it: checks 8, 9, 10 and 11.

use super::finding::Finding;
use super::losses::margin;
use super::subject::{Search, Searched, Subject};
use crate::experiment::Limits;
use crate::wire::oracle::Watch;
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Tensor, argmax};
use advae_abi::info::Target;
use anyhow::Result;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Questions at the end of a path that are looked at.
const LAST: usize = 10;
/// Share of the whole rise of the loss that the last questions may add.
const RISE: f64 = 0.05;
/// Share of the samples for which a search may be incomplete.
const INCOMPLETE: f64 = 0.1;
/// Share of the samples that may be told otherwise.
const FEW: f64 = 0.01;
/// Share of the images that a search without a budget may leave.
const UNREACHED: f64 = 0.05;

/// What was asked about one sample.
#[derive(Clone, Debug, Default)]
struct Trail {
    /// The margin at every image asked about, in order.
    margins: Vec<f64>,
    /// Whether one of them, within the limits, was misclassified.
    fooled: bool,
}

impl Trail {
    /// Whether the best margin so far still rose much at the end: rescaled to the whole rise.
    fn incomplete(&self) -> bool {
        let mut best = f64::NEG_INFINITY;
        let so_far: Vec<f64> = self
            .margins
            .iter()
            .map(|margin| {
                best = best.max(*margin);
                best
            })
            .collect();
        let (Some(first), Some(last)) = (so_far.first(), so_far.last()) else {
            return false;
        };
        let before = so_far[so_far.len().saturating_sub(LAST + 1)];
        last > first && (last - before) / (last - first) > RISE
    }
}

/// Writes the paths down.
struct Path {
    limits: Limits,
    /// Clean image and label of every sample, by the id the attack knows it by.
    samples: HashMap<u64, (Vec<f32>, u32)>,
    trails: Mutex<HashMap<u64, Trail>>,
}

impl Watch for Path {
    fn seen(&self, ids: &[u64], x: &Tensor, logits: &Tensor) {
        let mut trails = self.trails.lock().unwrap_or_else(PoisonError::into_inner);
        for (i, id) in ids.iter().enumerate() {
            let Some((clean, label)) = self.samples.get(id) else {
                continue;
            };
            let trail = trails.entry(*id).or_default();
            trail.margins.push(margin(logits.row(i), *label));
            let wrong = argmax(logits.row(i)) != *label;
            trail.fooled |= wrong && self.limits.refuse(clean, x.row(i)).is_none();
        }
    }
}

/// Makes the checks.
///
/// # Errors
/// Where a plugin fails.
pub fn examine(subject: &Subject) -> Result<Vec<Finding>> {
    let samples = subject.first(subject.extent.few);
    let attacked = attacked(subject);
    let (attack, limits) = subject.claimed(subject.claim.epsilon)?;
    let path = Arc::new(Path {
        limits,
        samples: by_crafting_id(subject, &samples),
        trails: Mutex::default(),
    });
    let whole = attacked.is_none();
    let name = if whole {
        "the whole defence"
    } else {
        "the classifier alone"
    };
    let attacked = attacked.unwrap_or_else(|| subject.pipeline.clone());
    let search = |attack, limits, watch| Search {
        attack,
        limits,
        attacked: &attacked,
        scored: &subject.pipeline,
        samples: &samples,
        labels: None,
        early_stop: whole && !attacked.random(),
        watch,
    };
    let searched = subject.search(&search(&attack, limits, Some(path.clone())))?;
    let ids = subject.crafting_ids(&subject.batch(&samples));
    let trails = path.trails.lock().unwrap_or_else(PoisonError::into_inner);
    let told: Vec<(Searched, Trail)> = searched
        .iter()
        .zip(&ids)
        .map(|(searched, id)| (*searched, trails.get(id).cloned().unwrap_or_default()))
        .filter(|(searched, _)| searched.clean)
        .collect();
    let mut findings = vec![
        silent(subject, &told, attacked.random()),
        incomplete(subject, &told),
        transfer(subject, &told, name, whole),
    ];
    let far = subject.farthest();
    let (attack, limits) = subject.claimed(far)?;
    let searched = subject.search(&search(&attack, limits, None))?;
    findings.push(unconstrained(subject, far, &searched));
    Ok(findings)
}

/// Whom the claimed threat model lets an attacker attack, where that is not the whole defence. What a substitute is worth is told by the
/// attack's own cells.
fn attacked(subject: &Subject) -> Option<Pipeline> {
    let alone = subject.target == Target::Classifier && subject.purifier.is_some();
    alone.then(|| Pipeline::undefended(subject.classifier.model.clone()))
}

fn by_crafting_id(subject: &Subject, samples: &[usize]) -> HashMap<u64, (Vec<f32>, u32)> {
    let batch = subject.batch(samples);
    let ids = subject.crafting_ids(&batch);
    let sample = |(i, id): (usize, u64)| (id, (batch.x.row(i).to_vec(), batch.y[i]));
    ids.into_iter().enumerate().map(sample).collect()
}

/// Check 8.
fn silent(subject: &Subject, told: &[(Searched, Trail)], random: bool) -> Finding {
    const THRESHOLD: &str = "for 1 % of the images at the most";
    let silent = told
        .iter()
        .filter(|(searched, trail)| trail.fooled && !searched.fools)
        .count();
    let text = format!(
        "'{}' passed an adversarial image within the budget and returned one that is none for {silent} of {} images",
        subject.attack,
        told.len()
    );
    if random {
        // An image that fooled one draw may not fool the next.
        return Finding::note(8, format!("{text}; the defence is random"), THRESHOLD)
            .next(subject.eval("--attack autoattack:version=rand --eot 20"));
    }
    Finding::expect(8, silent as f64 <= FEW * told.len() as f64, text, THRESHOLD)
        .next("let the attack return the best image of its path (advae_sdk::attack::Best)")
}

/// Check 9.
fn incomplete(subject: &Subject, told: &[(Searched, Trail)]) -> Finding {
    let standing: Vec<&Trail> = told
        .iter()
        .filter(|(searched, _)| !searched.fools)
        .map(|(_, trail)| trail)
        .collect();
    let incomplete = standing.iter().filter(|trail| trail.incomplete()).count();
    let text = format!(
        "the loss of '{}' still rose within its last {LAST} questions for {incomplete} of {} images that stand",
        subject.attack,
        standing.len()
    );
    let fine = incomplete as f64 <= INCOMPLETE * standing.len() as f64;
    let finding = Finding::expect(
        9,
        fine,
        text,
        "by more than 5 % of its whole rise for 10 % of the images at the most",
    );
    finding.next(subject.eval("--attack apgd:steps=200,restarts=3"))
}

/// Check 10.
fn transfer(subject: &Subject, told: &[(Searched, Trail)], attacked: &str, whole: bool) -> Finding {
    const THRESHOLD: &str =
        "what fools the attacked model fools the scored one, but for 1 % of the images (5 % where it is random)";
    let fooling: Vec<&Searched> = told
        .iter()
        .map(|(searched, _)| searched)
        .filter(|searched| searched.fools)
        .collect();
    let failed = fooling.iter().filter(|searched| searched.robust).count();
    let text = format!(
        "{attacked} was attacked: of {} images that fool it the scored defence classifies {failed} correctly",
        fooling.len()
    );
    let allowed = if subject.pipeline.random() && whole { 0.05 } else { FEW };
    let finding = Finding::expect(10, failed as f64 <= allowed * told.len() as f64, text, THRESHOLD);
    finding.next(subject.eval(&format!("--attack {}", subject.attack)))
}

/// Check 11.
fn unconstrained(subject: &Subject, far: f64, searched: &[Searched]) -> Finding {
    let correct: Vec<&Searched> = searched.iter().filter(|searched| searched.clean).collect();
    let left = correct.iter().filter(|searched| !searched.fools).count();
    let text = format!(
        "without a budget ({} {far:.0}) '{}' leaves {left} of {} images",
        subject.claim.norm,
        subject.attack,
        correct.len()
    );
    let fine = left as f64 <= UNREACHED * correct.len() as f64;
    let finding = Finding::expect(
        11,
        fine,
        text,
        "5 % of the images at the most: any image can be reached",
    );
    finding.next(subject.eval("--attack apgd --attack pgd:loss=margin,restarts=5 --attack square"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_abi::info::NormKind;

    fn trail(margins: Vec<f64>) -> Trail {
        Trail { margins, fooled: false }
    }

    #[test]
    fn a_search_that_rises_at_its_end_is_incomplete() {
        let rising: Vec<f64> = (0..40).map(f64::from).collect();
        assert!(trail(rising.clone()).incomplete());
        let mut settled = rising;
        settled.extend([39.; 12]);
        assert!(!trail(settled.clone()).incomplete());
        // What does not get better than the best so far is no rise.
        settled.extend([5., 38.]);
        assert!(!trail(settled).incomplete());
        assert!(trail(vec![-3., -1.]).incomplete(), "one step");
        assert!(!trail(vec![-3., -3.]).incomplete(), "nothing rose");
        assert!(!trail(vec![]).incomplete());
    }

    #[test]
    fn only_images_within_the_limits_count_as_found() {
        let path = Path {
            limits: Limits {
                bounds: [0., 1.],
                norm: NormKind::Linf,
                epsilon: Some(0.1),
            },
            samples: [(7, (vec![0.5, 0.5], 0))].into(),
            trails: Mutex::default(),
        };
        let fooled = || path.trails.lock().unwrap()[&7].fooled;
        let wrong = Tensor::new(vec![1, 2], vec![0., 1.]).unwrap();
        let at = |pixel: f32| Tensor::new(vec![1, 2], vec![pixel, 0.5]).unwrap();
        path.seen(&[7], &at(0.7), &wrong);
        assert!(!fooled());
        path.seen(&[7, 8], &at(0.6), &wrong);
        assert!(fooled());
    }
}
