//! What a report holds.

use super::figures::{Summary, Worst, worst_cases};
use super::warnings::Warning;
use crate::results::{Cell, Run};
use serde::Serialize;

/// A verdict on a claim, as a page shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Audited {
    /// What was audited.
    pub defence: String,
    /// PASS, SUSPECT or INCONCLUSIVE.
    pub verdict: String,
    /// Whether it is PASS.
    pub passed: bool,
    /// Why.
    pub reasons: Vec<String>,
    /// What was claimed, and what measured.
    pub claim: String,
    /// Every check.
    pub checks: Vec<CheckLine>,
}

/// A check of an audit.
#[derive(Clone, Debug, Serialize)]
pub struct CheckLine {
    /// Its number in the list of checks.
    pub number: u8,
    /// Its name.
    pub name: String,
    /// What it says of the claim.
    pub says: String,
    /// Whether it objects.
    pub objects: bool,
    /// What was measured.
    pub measured: String,
    /// What was asked of it.
    pub asked: String,
    /// Where it comes from.
    pub source: String,
    /// What to do next; empty where nothing is.
    pub next: String,
}

/// Cells, worst cases and warnings.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One a cell.
    pub cells: Vec<Summary>,
    /// Per-sample worst cases within one norm and budget.
    pub worst_cases: Vec<Worst>,
    /// What to look at, as text.
    pub warnings: Vec<String>,
    /// The same for programs.
    pub typed_warnings: Vec<Warning>,
    /// Cells that lack rows and are in no table: how many they have.
    pub unfinished: Vec<String>,
    /// The audit that ran the cells, if one did.
    #[serde(skip)]
    pub audited: Option<Audited>,
    /// The runs that measured them; for pages, as figures do not depend on them.
    #[serde(skip)]
    pub runs: Vec<Run>,
}

impl Report {
    /// Of these cells, compared with one another.
    pub fn new(cells: &[Cell]) -> Self {
        Self::of(cells.to_vec())
    }

    /// The same, without a copy of their rows.
    pub fn of(cells: Vec<Cell>) -> Self {
        let all = Summary::all_of(cells);
        let (cells, lacking): (Vec<Summary>, Vec<Summary>) =
            all.into_iter().partition(|summary| summary.cell.is_whole());
        let unfinished = |summary: &Summary| {
            let (rows, all) = (summary.cell.rows.len(), summary.cell.header.samples);
            format!("{}: {rows} of {all} samples", summary.name())
        };
        let typed_warnings = Warning::all(&cells);
        Self {
            worst_cases: worst_cases(&cells),
            warnings: typed_warnings.iter().map(Warning::to_string).collect(),
            typed_warnings,
            unfinished: lacking.iter().map(unfinished).collect(),
            cells,
            audited: None,
            runs: vec![],
        }
    }

    /// The same, and by which runs it was measured. Runs that are alike are named once.
    pub fn by(self, runs: impl IntoIterator<Item = Run>) -> Self {
        let mut all: Vec<Run> = vec![];
        for run in runs {
            if !all.contains(&run) {
                all.push(run);
            }
        }
        Self { runs: all, ..self }
    }

    /// What went wrong, a line a cell: failures and refused images.
    pub fn complaints(&self) -> Vec<String> {
        self.cells.iter().filter_map(Summary::complaint).collect()
    }
}
