//! `run`: an experiment file, in one process or several.

mod file;
mod local;
mod parts;
mod slurm;

pub use file::Experiment;

use super::eval::LOCK;
use crate::commands::complain::complain;
use crate::experiment::{Lock, Series, Settings, Shard};
use crate::isolation::{Limits, SandboxArgs};
use crate::report::{Format, Report, page_can_be_written};
use crate::results::{Cell, Records, read};
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::exit::{EXIT_CANCELLED, EXIT_FAILED};
use anyhow::{Result, bail, ensure};
use clap::Args;
use parts::shard_file;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Samples by which a dry run measures how long a cell takes.
const TIMED: usize = 4;

/// Flags of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Experiment file (TOML)
    file: PathBuf,
    /// Results file; what is in it is not measured again [default: the file's `out`, else NAME.jsonl beside NAME.toml]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Measure one part of the experiment only, part i of n, into a results file of its own
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// Run in several processes and join what they find: `local:N` on this machine, or `slurm` as a job array
    #[arg(long, value_name = "LAUNCHER", conflicts_with = "shard")]
    launcher: Option<Launcher>,
    /// List the cells, what is missing of each, and how long that may take; nothing is written
    #[arg(long, conflicts_with_all = ["shard", "launcher"])]
    dry_run: bool,
    /// Threads of each process [default: the file's, else all cores, shared by the processes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// With damaged lines in the results file: drop them and measure them again
    #[arg(long)]
    repair: bool,
    /// Write the report as a page, too: one HTML file that needs nothing beside it
    #[arg(long, value_name = "FILE.html", conflicts_with = "shard")]
    report: Option<PathBuf>,
    /// How the report is printed
    #[arg(long, default_value = "table")]
    format: Format,
    /// Refuse plugins, weights and datasets that are not those of the lock that `advae-host lock` wrote [default file: advae.lock]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = LOCK)]
    locked: Option<PathBuf>,
    #[command(flatten)]
    isolation: SandboxArgs,
}

impl RunArgs {
    /// Flags that every process of the run is given.
    fn flags(&self) -> Vec<String> {
        let locked = self.locked.iter().map(|file| format!("--locked={}", file.display()));
        locked.chain(self.isolation.flags()).collect()
    }
}

/// What starts the processes of an experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Launcher {
    /// So many processes on this machine.
    Local(usize),
    /// One job array of Slurm, as the file's table [slurm] says.
    Slurm,
}

impl Launcher {
    /// Into how many parts it cuts an experiment.
    fn count(self, experiment: &Experiment) -> usize {
        match self {
            Self::Local(count) => count,
            Self::Slurm => experiment.slurm.tasks,
        }
    }
}

impl FromStr for Launcher {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("local:").map(str::parse) {
            Some(Ok(count @ 1..=1024)) => Ok(Self::Local(count)),
            None if text == "slurm" => Ok(Self::Slurm),
            _ => bail!("'{text}' is no launcher: expected slurm, or local:N with N from 1 to 1024"),
        }
    }
}

/// Runs an experiment and prints its report. Returns the exit code.
///
/// # Errors
/// Where the file, a plugin or the data do not fit, or results cannot be read or written.
pub fn run(args: RunArgs) -> Result<i32> {
    args.report.as_deref().map(page_can_be_written).transpose()?;
    let experiment = Experiment::read(&args.file)?;
    let out = args.out.clone().unwrap_or_else(|| experiment.results(&args.file));
    let evaluations = experiment.evaluations()?;
    if args.dry_run {
        return dry_run(evaluations, &out, args.isolation.limits());
    }
    let out = match args.shard {
        Some(shard) => shard_file(&out, shard),
        None => out,
    };
    let cancel = Cancel::on_ctrl_c()?;
    match args.launcher {
        Some(Launcher::Local(count)) => {
            let all = evaluations.iter().map(|settings| settings.threads).max().unwrap_or(1);
            let threads = args.threads.map_or_else(|| all.div_ceil(count), usize::from);
            local::measure(&args.file, &out, count, threads, &args.flags(), &cancel)?;
        }
        Some(Launcher::Slurm) => slurm::measure(&experiment.slurm, &args.file, &out, &args.flags(), &cancel)?,
        None => {}
    }
    if cancel.is_cancelled() {
        return Ok(stopped(&out));
    }
    let measured = match args.launcher {
        // Other processes have measured, perhaps with devices that are not here.
        Some(launcher) => {
            let complaints = parts::Parts::new(&out, launcher.count(&experiment)).complaints();
            complaints.iter().for_each(|line| console::say(line));
            Measured {
                records: read(&out)?,
                trouble: None,
                whole: complaints.is_empty(),
            }
        }
        None => measure(&evaluations, &args, &out, &cancel)?,
    };
    if cancel.is_cancelled() {
        return Ok(stopped(&out));
    }
    if let Some(shard) = args.shard {
        let rows: usize = measured.records.cells.iter().map(|cell| cell.rows.len()).sum();
        console::print(&format!(
            "part {} of {}: {} cells with {rows} rows in '{}'\n",
            shard.index,
            shard.count,
            measured.records.cells.len(),
            out.display()
        ))?;
        let failed = measured
            .records
            .cells
            .iter()
            .filter_map(|cell| Some((cell, cell.failed.as_ref()?)));
        let failed: Vec<String> = failed
            .map(|(cell, why)| format!("{}: {why}", cell.header.name()))
            .collect();
        failed.iter().for_each(|text| console::say(&format!("error: {text}")));
        return Ok(if failed.is_empty() && measured.trouble.is_none() && measured.whole {
            0
        } else {
            EXIT_FAILED
        });
    }
    let report = Report::of(measured.records.cells).by(measured.records.runs);
    report.print(args.format)?;
    if let Some(page) = &args.report {
        report.write_page(page)?;
    }
    let code = complain(&report, measured.trouble.as_deref());
    Ok(if measured.whole { code } else { EXIT_FAILED })
}

/// Prints the JSON schema of experiment files. Returns the exit code.
///
/// # Errors
/// Where it cannot be written.
pub fn print_schema() -> Result<i32> {
    console::print(&format!("{}\n", serde_json::to_string_pretty(&file::schema())?))?;
    Ok(0)
}

/// What an experiment came to.
struct Measured {
    records: Records,
    trouble: Option<String>,
    /// Whether every evaluation could be begun.
    whole: bool,
}

/// Measures what the results file lacks, evaluation by evaluation. One that cannot be begun keeps no other from being measured.
fn measure(evaluations: &[Settings], args: &RunArgs, out: &Path, cancel: &Cancel) -> Result<Measured> {
    let mut measured = Measured {
        records: Records::default(),
        trouble: None,
        whole: true,
    };
    let lock = args.locked.as_deref().map(Lock::read).transpose()?;
    let mut series = Series::default();
    for (number, settings) in evaluations.iter().enumerate() {
        let settings = Settings {
            out: Some(out.into()),
            resume: true,
            repair: args.repair,
            shard: args.shard,
            threads: args.threads.map_or(settings.threads, usize::from),
            pictures: if args.report.is_some() {
                super::eval::PICTURES
            } else {
                0
            },
            lock: lock.clone(),
            isolation: args.isolation.limits(),
            ..settings.clone()
        };
        series.open(&settings)?;
        let outcome = match series.outcomes(&settings, cancel) {
            Ok(outcome) => outcome,
            Err(error) => {
                measured.whole = false;
                let text = console::one_line(&error);
                console::say(&format!("{}{}: {text}", parts::NOT_BEGUN, number + 1));
                continue;
            }
        };
        measured.records.runs = outcome.runs;
        for cell in outcome.cells {
            let known = |other: &Cell| other.header.key == cell.header.key;
            if !measured.records.cells.iter().any(known) {
                measured.records.cells.push(cell);
            }
        }
        measured.trouble = measured.trouble.or(outcome.trouble);
        if cancel.is_cancelled() {
            break;
        }
    }
    Ok(measured)
}

fn stopped(out: &Path) -> i32 {
    console::say(&format!(
        "stopped: the same command goes on from what is in '{}' and its parts",
        out.display()
    ));
    EXIT_CANCELLED
}

/// Lists the cells, and how long what is missing of each may take, by what a few samples take.
fn dry_run(evaluations: Vec<Settings>, out: &Path, isolation: Option<Limits>) -> Result<i32> {
    let known = match out.is_file() {
        true => read(out)?,
        false => Records::default(),
    };
    let cancel = Cancel::on_ctrl_c()?;
    let (mut cells, mut all) = (0, 0.);
    let mut series = Series::default();
    for settings in evaluations {
        let samples = settings.samples;
        let few = Settings {
            samples: samples.min(TIMED),
            isolation,
            ..settings
        };
        for cell in series.outcomes(&few, &cancel)?.cells {
            ensure!(!cancel.is_cancelled(), "stopped");
            let there = known.cell(&cell.header.key).map_or(0, |cell| cell.rows.len());
            let left = samples.saturating_sub(there);
            let seconds = cell.seconds() / cell.rows.len().max(1) as f64 * left as f64;
            let budget = cell
                .header
                .config
                .epsilon
                .map(|epsilon| format!(" {epsilon}"))
                .unwrap_or_default();
            let time = match &cell.failed {
                Some(why) => format!("fails: {why}"),
                None => format!("{left} of {samples} samples left, about {}", duration(seconds)),
            };
            console::print(&format!("{}{budget}: {time}\n", cell.header.name()))?;
            (cells, all) = (cells + 1, all + seconds);
        }
    }
    console::print(&format!(
        "{cells} cells, about {} in all, by {TIMED} samples of each; results go to '{}'\n",
        duration(all),
        out.display()
    ))?;
    Ok(0)
}

/// Seconds as people say them.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1. => "a second".into(),
        s if s < 120. => format!("{s:.0} s"),
        s if s < 7200. => format!("{:.0} min", s / 60.),
        s => format!("{:.1} h", s / 3600.),
    }
}
