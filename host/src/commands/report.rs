//! `report`: the report of an evaluation from its results file, without measuring anything.

use super::complain::complain;
use super::merge::joined;
use crate::report::{Format, Report};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Flags of `report`.
#[derive(Args, Clone, Debug)]
pub struct ReportArgs {
    /// Files that `eval --out` or `reproduce` wrote; several files are shown as one report
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Format of the printed report
    #[arg(long, default_value = "table")]
    format: Format,
}

/// Prints the report of the files. Returns the exit code.
///
/// # Errors
/// Where a file cannot be read, is damaged, or contradicts another one.
pub fn run(args: ReportArgs) -> Result<i32> {
    let merged = joined(&args.files)?;
    let report = Report::of(merged.cells).by(merged.runs);
    report.print(args.format)?;
    Ok(complain(&report, None))
}
