//! `lock`: the hashes of everything that an evaluation or an experiment is made of.

use super::eval::{EvalArgs, LOCK};
use super::run::Experiment;
use crate::experiment::{Lock, Series, Settings};
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

/// Flags of `lock`.
#[derive(Args, Clone, Debug)]
pub struct LockArgs {
    /// Experiment file (TOML) of `run`; without one, the flags of `eval` say what is locked
    experiment: Option<PathBuf>,
    /// File to write
    #[arg(long, value_name = "FILE", default_value = LOCK)]
    lock: PathBuf,
    #[command(flatten)]
    eval: EvalArgs,
}

/// Writes a lock. Returns the exit code.
///
/// # Errors
/// Where something does not load or fit, or the file cannot be written.
pub fn run(args: LockArgs) -> Result<i32> {
    let isolation = args.eval.isolation.limits();
    let evaluations = match &args.experiment {
        Some(file) => Experiment::read(file)?.evaluations()?,
        None => vec![args.eval.merged()?.fill()?],
    };
    let cancel = Cancel::on_ctrl_c()?;
    let (mut series, mut headers) = (Series::default(), vec![]);
    for settings in evaluations {
        let settings = Settings { isolation, ..settings };
        headers.extend(series.headers(&settings, &cancel)?);
    }
    let (lock, shown) = (Lock::of(&headers), args.lock.display());
    std::fs::write(&args.lock, lock.text()?)
        .with_context(|| format!("cannot write '{shown}': name a file in a folder that may be written"))?;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    console::print(&format!(
        "locked in '{shown}', for {}: {}, {}, {}\n",
        count(headers.len(), "cell"),
        count(lock.plugin.len(), "plugin"),
        count(lock.file.len(), "file"),
        count(lock.dataset.len(), "dataset")
    ))?;
    Ok(0)
}
