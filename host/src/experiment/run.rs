//! Runs every group, one after another.

use super::cells::{Run, Substitutes};
use super::ids::Ids;
use super::images::Images;
use super::plan::Plan;
use super::repeat::Chosen;
use super::settings::Settings;
use crate::isolation::Channel;
use crate::results::{Cell, CellHeader, Records, Results, Run as Measured};
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::progress::Progress;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// What a run came to.
pub struct Outcome {
    /// The cells of the plan, or as many as came before a cancellation.
    pub cells: Vec<Cell>,
    /// The runs that measured them, this one at the end.
    pub runs: Vec<Measured>,
    /// Rows in the results file, or without one in memory.
    pub rows: usize,
    /// Why the results file, or one of images, is not whole.
    pub trouble: Option<String>,
}

/// The results that evaluations are measured into, and what is known already: it is not measured again.
pub struct Session {
    results: Mutex<Results>,
    known: Records,
}

impl Session {
    /// Opens the results file of the settings, where they name one.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub fn open(settings: &Settings) -> Result<Self> {
        let (results, known) = open(settings)?;
        Ok(Self {
            results: Mutex::new(results),
            known,
        })
    }

    /// Into the file of the process that started this one, with what it knows already.
    pub fn for_parent(channel: &'static Channel, known: Records) -> Self {
        Self {
            results: Mutex::new(Results::parent(channel)),
            known,
        }
    }

    /// The file, and what is known.
    pub fn parts(&mut self) -> (&mut Results, &mut Records) {
        let results = self.results.get_mut().unwrap_or_else(PoisonError::into_inner);
        (results, &mut self.known)
    }

    /// Learns cells from elsewhere. What it has of them itself stays.
    pub fn learn(&mut self, cells: &[Cell]) {
        for cell in cells {
            if self.known.cell(&cell.header.key).is_none() {
                self.known.cells.push(cell.clone());
            }
        }
    }

    /// Takes in what was measured.
    fn keep(&mut self, cells: &[Cell]) {
        for cell in cells {
            let place = self
                .known
                .cells
                .iter_mut()
                .find(|known| known.header.key == cell.header.key);
            match place {
                Some(known) => known.clone_from(cell),
                None => self.known.cells.push(cell.clone()),
            }
        }
    }
}

/// The session of a series, which its first evaluation opens.
///
/// # Errors
/// Where the results file cannot be read or written.
pub fn opened<'a>(session: &'a mut Option<Session>, settings: &Settings) -> Result<&'a mut Session> {
    match session {
        Some(session) => Ok(session),
        None => Ok(session.insert(Session::open(settings)?)),
    }
}

/// What is wrong with the rows, and what with the images.
pub fn both(rows: Option<String>, images: Option<String>) -> Option<String> {
    match (rows, images) {
        (Some(rows), Some(images)) => Some(format!("{rows}; {images}")),
        (rows, images) => rows.or(images),
    }
}

/// What a process has to know that runs the plugins for another.
pub struct Apart<'a> {
    /// Cells that have failed in a process before this one, by key, and why: their groups are not begun again.
    pub failed: &'a BTreeMap<String, String>,
    /// Says that a group begins.
    pub begins: &'a dyn Fn(usize),
}

/// Crafts and scores all cells of the plan, or as many as come before a cancellation.
///
/// # Errors
/// Where images cannot be written before anything is measured.
pub fn run(session: &mut Session, settings: &Settings, plan: &Plan, cancel: &Cancel) -> Result<Outcome> {
    let apart = Apart {
        failed: &BTreeMap::new(),
        begins: &|_| (),
    };
    let outcome = measure(session, settings, plan, cancel, &apart)?;
    session.keep(&outcome.cells);
    Ok(outcome)
}

/// The same, where nothing is kept for another run.
///
/// # Errors
/// As for [`run`].
pub fn measure(session: &Session, settings: &Settings, plan: &Plan, cancel: &Cancel, apart: &Apart) -> Result<Outcome> {
    let Session {
        results,
        known: previous,
    } = session;
    let headers = plan.headers();
    let larger = |header: &CellHeader| {
        let known = previous.cell(&header.key).map(|known| known.rows.len());
        known.filter(|rows| *rows > plan.dataset.len())
    };
    if let Some(rows) = headers.clone().filter_map(larger).max() {
        console::say(&format!(
            "note: the results file has up to {rows} samples a cell, more than the {} asked for: all of them are shown",
            plan.dataset.len()
        ));
    }
    let images = Images::new(
        settings.save_adversarial.as_deref(),
        settings.resume,
        headers,
        &plan.dataset,
        previous,
    )?;
    let passes = plan
        .groups
        .iter()
        .map(|group| group.crafting.attack.info().passes.max(1))
        .fold(0, u64::saturating_add);
    let progress = Progress::new(passes.saturating_mul(plan.dataset.len() as u64));
    let ids = Ids::new(&plan.dataset_sha256, settings.seed);
    let run = Run {
        chosen: Chosen::of(&ids, &plan.dataset.ids),
        pictured: plan.dataset.ids.iter().copied().take(settings.pictures).collect(),
        seeds: plan.attacker_images.clone(),
        seed: settings.seed,
        threads: settings.threads,
        batch: settings.batch,
        dataset: &plan.dataset,
        ids,
        previous,
        results,
        images: &images,
        progress: &progress,
        cells: plan.groups.iter().map(|group| group.cells.len()).sum(),
        cancel,
        substitutes: Substitutes::default(),
    };
    let mut cells = vec![];
    for (number, group) in plan.groups.iter().enumerate() {
        let Some((header, _)) = group.cells.first() else {
            continue;
        };
        let lost = group
            .cells
            .iter()
            .any(|(header, _)| apart.failed.contains_key(&header.key));
        if lost {
            let passes = group.crafting.attack.info().passes.max(1);
            progress.skip(passes.saturating_mul(plan.dataset.len() as u64));
            cells.extend(group.cells.iter().map(|(header, _)| {
                let mut cell = Cell::new(header.clone());
                if let Some(known) = previous.cell(&header.key) {
                    cell.clone_from(known);
                }
                cell.failed = apart.failed.get(&header.key).cloned();
                cell
            }));
            continue;
        }
        (apart.begins)(number);
        let (classifier, attack) = (&header.classifier.plugin, &header.attack.plugin);
        progress.say(format!("{classifier} {} {attack}", header.threat_model.plugin));
        let done = run.group(group, &cells)?;
        done.iter().for_each(log);
        cells.extend(done);
        if cancel.is_cancelled() {
            break;
        }
    }
    progress.finish();
    let results = results.lock().unwrap_or_else(PoisonError::into_inner);
    let here: usize = cells.iter().map(|cell| cell.rows.len()).sum();
    let others = previous
        .cells
        .iter()
        .filter(|known| !cells.iter().any(|cell| cell.header.key == known.header.key));
    Ok(Outcome {
        runs: previous.runs.iter().cloned().chain([Measured::here()]).collect(),
        rows: here + others.map(|cell| cell.rows.len()).sum::<usize>(),
        cells,
        trouble: both(results.trouble().map(String::from), images.trouble()),
    })
}

fn open(settings: &Settings) -> Result<(Results, Records)> {
    match (&settings.out, settings.resume) {
        (None, _) => Ok((Results::nowhere(), Records::default())),
        (Some(path), false) => Ok((Results::create(path)?, Records::default())),
        (Some(path), true) => Results::resume(path, settings.repair),
    }
}

fn log(cell: &Cell) {
    let robust = cell.rows.values().filter(|row| row.robust).count();
    tracing::info!(
        "{}: {robust} of {} robust{}",
        cell.header.key,
        cell.rows.len(),
        cell.failed
            .as_ref()
            .map(|e| format!(", failed: {e}"))
            .unwrap_or_default()
    );
}
