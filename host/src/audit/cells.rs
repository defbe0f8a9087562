//! Attacks as an evaluation runs them, and what their figures say together: checks 4, 13, 14, 19, 20 and 21.

use super::bench::{Bench, Outside, WhiteBox};
use super::finding::Finding;
use super::order::{more_search, order};
use super::rivals::{baseline, every_rule, known_draw};
use super::shares::least;
use super::subject::Subject;
use crate::report::{Share, Summary};
use crate::results::{Cell, Row};
use crate::terminal::console;
use anyhow::Result;
use serde::Serialize;

/// Robust accuracy of one attack, as an audit tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was attacked.
    pub defence: String,
    /// Under which threat model.
    pub threat_model: String,
    /// By what, with its backward rule where that is not the purifier's own.
    pub attack: String,
    /// Within which budget.
    pub budget: String,
    /// What is left; absent where the cell failed.
    pub robust: Option<Share>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What the cells came to.
pub struct Figures {
    /// Checks 4, 13, 14, 19, 20, 21.
    pub findings: Vec<Finding>,
    /// Robust accuracy under the strongest attack within the claim's budget, per sample, clean images included.
    pub strongest: Option<Share>,
    /// Accuracy without an attack.
    pub clean: Option<Share>,
    /// Every attack.
    pub figures: Vec<Figure>,
    /// Their cells.
    pub cells: Vec<Cell>,
    /// Trouble with the results file.
    pub trouble: Option<String>,
}

/// Runs the attacks.
///
/// # Errors
/// Where nothing can be run, results cannot be written, or the audit is cancelled.
pub fn examine(subject: &Subject, eot: u64) -> Result<Figures> {
    let mut bench = Bench {
        subject,
        eot,
        cells: vec![],
        begun: false,
        trouble: None,
    };
    let white = WhiteBox::run(&mut bench)?;
    let mut findings = vec![white.square()];
    let outside = Outside::run(&mut bench)?;
    findings.push(order(subject, &white, &outside));
    findings.push(more_search(subject, &white).or_else(|error| -> Result<Finding> {
        subject.cancel.check()?;
        // A check that fails does not end the others.
        Ok(Finding::not_run(14, console::one_line(&error)))
    })?);
    findings.push(known_draw(&mut bench, &white)?);
    let (finding, rules) = every_rule(&mut bench, &white)?;
    findings.push(finding);
    let own: Vec<&Cell> = white.cells.iter().chain(&outside.less).chain(&rules).collect();
    let strongest = least(own.iter().copied());
    findings.push(baseline(&mut bench, strongest.as_ref())?);
    let clean = own.iter().find(|cell| cell.failed.is_none() && !cell.rows.is_empty());
    Ok(Figures {
        clean: clean.and_then(|cell| Share::of(cell.rows.values().map(Row::clean_share))),
        strongest: strongest.and_then(|shares| Share::of(shares.into_values())),
        findings,
        figures: figures(&bench.cells),
        cells: bench.cells,
        trouble: bench.trouble,
    })
}

fn figures(cells: &[Cell]) -> Vec<Figure> {
    let summaries = Summary::all(cells);
    let figure = |summary: &Summary| Figure {
        defence: summary.defence(),
        threat_model: summary.threat_model.clone(),
        attack: summary.attack_and_rule(),
        budget: summary.budget(),
        robust: summary.robust_accuracy,
        failed: summary.failed.clone(),
    };
    summaries.iter().map(figure).collect()
}
