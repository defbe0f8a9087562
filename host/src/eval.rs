//! `eval`: classifiers behind purifiers, attacked under threat models.

mod budget;
mod cells;
mod images;
mod options;
mod plan;
mod run;

pub use budget::{Budgets, l2_caps};
pub use cells::{CellOutcome, Crafting, Group, Run};
pub use images::SavedMeta;
pub use options::{EvalArgs, Format, Settings, check_device};
pub use plan::{LoadedModel, OTHER_RULE, load_model};

use crate::cancel::{Cancel, EXIT_CANCELLED};
use crate::report::{Report, Summary};
use anyhow::Result;

/// Exit code where a cell failed or an image was refused.
pub const EXIT_FAILED: i32 = 2;

/// Runs the evaluation and prints its report. Returns the exit code.
///
/// # Errors
/// Where nothing can be run: unknown plugins, settings or data.
pub fn run(args: EvalArgs) -> Result<i32> {
    let settings = args.settle()?;
    let cancel = Cancel::on_ctrl_c()?;
    let outcomes = outcomes(&settings, &cancel)?;
    let whole = outcomes.iter().filter(|o| o.is_whole());
    let report = Report::new(whole.map(Summary::of).collect());
    report.print(settings.format)?;
    if cancel.is_cancelled() {
        eprintln!("{}", farewell(&settings, outcomes.iter().map(|o| o.rows.len()).sum()));
        return Ok(EXIT_CANCELLED);
    }
    Ok(complain(&report))
}

/// Crafts and scores every cell, or as many as come before a cancellation.
///
/// # Errors
/// Where nothing can be run, or results cannot be read or written.
pub fn outcomes(settings: &Settings, cancel: &Cancel) -> Result<Vec<CellOutcome>> {
    run::run(settings, &plan::plan(settings)?, cancel)
}

/// Tells what went wrong, and the exit code that follows from it.
pub fn complain(report: &Report) -> i32 {
    let complaints = report.complaints();
    complaints.iter().for_each(|complaint| eprintln!("error: {complaint}"));
    if complaints.is_empty() { 0 } else { EXIT_FAILED }
}

fn farewell(settings: &Settings, rows: usize) -> String {
    match &settings.out {
        Some(path) => format!(
            "stopped: {rows} rows are in '{}': the same command with --resume goes on from there",
            path.display()
        ),
        None => format!("stopped: {rows} rows were not written: add --out results.jsonl to be able to resume"),
    }
}
