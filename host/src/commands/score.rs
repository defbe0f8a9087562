//! `score`: measures and classifies saved adversarial images again.

use super::complain::complain;
use crate::experiment::{Budgets, Rescored, Rescoring, check_device, threads};
use crate::isolation::IsolationArgs;
use crate::report::{Format, Report};
use crate::results::Cell;
use crate::terminal::console;
use advae_abi::info::NormKind;
use advae_data::Conventions;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// Flags of `score`.
#[derive(Args, Clone, Debug)]
pub struct ScoreArgs {
    /// Files that `eval --save-adversarial` wrote, or files with the same arrays
    #[arg(required = true, value_name = "FILE.npz")]
    files: Vec<PathBuf>,
    /// Classifier [default: the one the file names]
    #[arg(long, value_name = "PLUGIN")]
    classifier: Option<String>,
    /// Purifier in front of the classifier, or `none` [default: the one the file names]
    #[arg(long, value_name = "PLUGIN")]
    purifier: Option<String>,
    /// Budget, `linf=0.3` or `l2=2` [default: the one the file names]
    #[arg(long, value_name = "NORM=VALUE")]
    epsilon: Option<String>,
    /// Seed of a random defence [default: the one the file names]
    #[arg(long)]
    seed: Option<u64>,
    /// Number of draws that score a random defence
    #[arg(long, value_name = "N", default_value_t = 10)]
    draws: u64,
    /// Device that runs the models: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write the logits of the clean and adversarial images of every file, as `NAME.logits.npz`
    #[arg(long, value_name = "DIR")]
    logits: Option<PathBuf>,
    /// Format of the printed report
    #[arg(long, default_value = "table")]
    format: Format,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: IsolationArgs,
}

/// Scores the files and prints a report. Returns the exit code.
///
/// # Errors
/// Where a file or a plugin cannot be read, or files contradict each other.
pub fn run(args: ScoreArgs) -> Result<i32> {
    check_device(&args.device)?;
    ensure!(args.draws > 0, "--draws is 0: give 1 or more");
    let rescoring = Rescoring {
        classifier: args.classifier,
        purifier: args.purifier,
        budget: args.epsilon.as_deref().map(budget).transpose()?,
        seed: args.seed,
        draws: args.draws,
        device: args.device,
        threads: threads(args.threads)?,
    };
    let logits = args
        .logits
        .as_deref()
        .map(|dir| logits_files(dir, &args.files))
        .transpose()?;
    let (mut cells, mut known): (Vec<Cell>, _) = (vec![], Known::default());
    for (i, path) in args.files.iter().enumerate() {
        let mut score = || -> Result<Cell> {
            let file = Rescored::open(&rescoring, path)?;
            known.compare(path, &file)?;
            if let Some(files) = &logits {
                file.logits()?.write(&files[i])?;
            }
            file.score()
        };
        let cell = score().with_context(|| format!("'{}'", path.display()))?;
        match cells.iter().any(|other| other.header.key == cell.header.key) {
            true => console::say(&format!(
                "note: '{}' holds the images of an earlier file: they are shown once",
                path.display()
            )),
            false => cells.push(cell),
        }
    }
    let report = Report::new(&cells);
    report.print(args.format)?;
    Ok(complain(&report, None))
}

fn budget(text: &str) -> Result<(NormKind, f64)> {
    let norm = match text.split_once('=') {
        Some(("linf", _)) => NormKind::Linf,
        Some(("l2", _)) => NormKind::L2,
        _ => bail!("--epsilon {text} names no norm: give linf=VALUE or l2=VALUE"),
    };
    match Budgets::parse(&[text.to_string()])?.resolve(norm, &Conventions::NONE)?[..] {
        [budget] => Ok((norm, budget)),
        _ => bail!("--epsilon {text} is a range: the images of a file are measured by one budget"),
    }
}

/// Where the logits of each file go. None of them is there yet.
fn logits_files(dir: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder '{}'", dir.display()))?;
    let mut seen = BTreeSet::new();
    let mut all = vec![];
    for file in files {
        let name = format!("{}.logits.npz", file.file_stem().unwrap_or_default().to_string_lossy());
        let path = dir.join(&name);
        ensure!(
            seen.insert(name),
            "the logits of '{}' and of another file would both be '{}': score them one by one, into two folders",
            file.display(),
            path.display()
        );
        ensure!(
            !path.exists(),
            "'{}' is there already: move it away, or choose another folder with --logits",
            path.display()
        );
        all.push(path);
    }
    Ok(all)
}

/// The samples of the files so far, by dataset and id.
#[derive(Default)]
struct Known(HashMap<(String, u64), (PathBuf, u32, Vec<f32>)>);

impl Known {
    /// Refuses a file that means another image or label by an id of an earlier one.
    fn compare(&mut self, path: &Path, file: &Rescored) -> Result<()> {
        let (name, hash) = file.dataset();
        let dataset = format!("{name} {hash}");
        for (id, label, x) in file.samples() {
            let key = (dataset.clone(), id);
            match self.0.get(&key) {
                Some((other, its_label, its_x)) => ensure!(
                    (*its_label, its_x.as_slice()) == (label, x),
                    "its sample {id} is another one than that of '{}': score them one by one",
                    other.display()
                ),
                None => drop(self.0.insert(key, (path.into(), label, x.to_vec()))),
            }
        }
        Ok(())
    }
}
