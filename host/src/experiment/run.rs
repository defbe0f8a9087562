//! Runs every group, one after another.

use super::cells::{CellOutcome, Run};
use super::images::Images;
use super::plan::Plan;
use super::settings::Settings;
use crate::results::{Previous, Results};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Progress;
use advae_data::Dataset;
use anyhow::Result;
use std::sync::{Arc, Mutex};

/// Crafts and scores all cells of the plan, or as many as come before a cancellation.
///
/// # Errors
/// Where results cannot be read or written.
pub fn run(settings: &Settings, plan: &Plan, cancel: &Cancel) -> Result<Vec<CellOutcome>> {
    let (results, previous) = open(settings)?;
    let headers = plan
        .groups
        .iter()
        .flat_map(|group| group.cells.iter().map(|(header, _)| header));
    let images = Images::new(settings.save_adversarial.as_deref(), settings.resume, headers)?;
    let passes = plan
        .groups
        .iter()
        .map(|group| group.crafting.attack.info().passes.max(1))
        .sum::<u64>();
    let progress = Progress::new(passes * plan.dataset.len() as u64);
    let results = Mutex::new(results);
    let run = Run {
        dataset: &plan.dataset,
        seeds: seeds(&plan.dataset),
        seed: settings.seed,
        threads: settings.threads,
        batch: settings.batch,
        previous: &previous,
        results: &results,
        images: &images,
        progress: &progress,
        cancel,
    };
    let mut outcomes = vec![];
    for group in &plan.groups {
        let Some((header, _)) = group.cells.first() else {
            continue;
        };
        progress.say(format!(
            "{} {} {}",
            header.classifier, header.threat_model, header.attack
        ));
        let done = run.group(group)?;
        done.iter().for_each(log);
        outcomes.extend(done);
        if cancel.is_cancelled() {
            break;
        }
    }
    progress.finish();
    Ok(outcomes)
}

fn open(settings: &Settings) -> Result<(Results, Previous)> {
    match (&settings.out, settings.resume) {
        (None, _) => Ok((Results::nowhere(), Previous::default())),
        (Some(path), false) => Ok((Results::create(path)?, Previous::default())),
        (Some(path), true) => Results::resume(path),
    }
}

/// Images an attacker may have: those set aside, where the dataset has some.
pub fn seeds(dataset: &Dataset) -> Option<Arc<Dataset>> {
    let mnist = dataset.name.starts_with("mnist");
    mnist
        .then(|| advae_data::load("mnist-1k-seeds", None).ok().map(Arc::new))
        .flatten()
}

fn log(outcome: &CellOutcome) {
    let header = &outcome.header;
    let robust = outcome.rows.iter().filter(|row| row.robust).count();
    tracing::info!(
        "{} {} {} {}: {robust} of {} robust{}",
        header.classifier,
        header.purifier,
        header.threat_model,
        header.attack,
        outcome.rows.len(),
        outcome
            .error
            .as_ref()
            .map(|e| format!(", failed: {e}"))
            .unwrap_or_default()
    );
}
