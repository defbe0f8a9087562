//! What a report holds.

use super::figures::{Summary, Worst, worst_cases};
use super::warnings::Warning;
use crate::results::{Cell, Run};
use serde::Serialize;

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
    /// The runs that measured them; for pages, as figures do not depend on them.
    #[serde(skip)]
    pub runs: Vec<Run>,
}

impl Report {
    /// Of these cells, compared with one another.
    pub fn new(cells: &[Cell]) -> Self {
        let all = Summary::all(cells);
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
