//! `merge`: results files of several processes as one.

use crate::report::Report;
use crate::results::{Records, Results, merge, read};
use crate::terminal::console;
use crate::terminal::exit::EXIT_FAILED;
use anyhow::{Result, ensure};
use clap::Args;
use std::path::{Path, PathBuf};

/// Flags of `merge`.
#[derive(Args, Clone, Debug)]
pub struct MergeArgs {
    /// Results files to join, such as those of `run --shard`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The joined file, which is made
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Joins results files and says what they lack. Returns the exit code.
///
/// # Errors
/// Where a file cannot be read, is damaged, or contradicts another one; where the joined file is there already.
pub fn run(args: &MergeArgs) -> Result<i32> {
    let merged = joined(&args.files)?;
    write(&merged, &args.out)?;
    let (cells, rows) = (
        merged.cells.len(),
        merged.cells.iter().map(|cell| cell.rows.len()).sum::<usize>(),
    );
    console::print(&format!("{cells} cells with {rows} rows in '{}'\n", args.out.display()))?;
    let unfinished = Report::of(merged.cells).unfinished;
    for cell in &unfinished {
        console::say(&format!(
            "error: unfinished: {cell}: a file is missing, or its run has not ended"
        ));
    }
    Ok(if unfinished.is_empty() { 0 } else { EXIT_FAILED })
}

/// The records of several files.
///
/// # Errors
/// As for [`run`].
pub fn joined(files: &[PathBuf]) -> Result<Records> {
    let records = files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    for (path, records) in files.iter().zip(&records) {
        ensure!(
            !records.cells.is_empty() || files.len() > 1,
            "'{}' holds no results: give a file that eval --out wrote",
            path.display()
        );
    }
    merge(records)
}

/// Writes a results file of its own.
///
/// # Errors
/// Where it is there already or cannot be written.
pub fn write(records: &Records, path: &Path) -> Result<()> {
    let mut results = Results::create(path)?;
    results.copy(records)?;
    match results.trouble() {
        Some(trouble) => anyhow::bail!("{trouble}"),
        None => Ok(()),
    }
}
