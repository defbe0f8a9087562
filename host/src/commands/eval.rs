//! Flags of `eval`, the same keys in a file, and what is left when both are settled.

use super::complain::complain;
use crate::experiment::{self, Backward, Budgets, Lock, Settings, check_device};
use crate::isolation::SandboxArgs;
use crate::report::{Format, Report, page_can_be_written};
use crate::results::Precision;
use crate::terminal::cancel::Cancel;
use crate::terminal::config::{self, Case};
use crate::terminal::console;
use crate::terminal::exit::EXIT_CANCELLED;
use advae_abi::info::BackwardRule;
use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::path::PathBuf;

/// A backward rule on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// The true derivative
    Exact,
    /// The identity in the backward pass (BPDA)
    Identity,
    /// The purifier's own surrogate gradient
    Custom,
    /// No gradient
    None,
    /// Every rule that a purifier offers, and the identity: one row per rule, and the worst case over all
    All,
}

impl From<Rule> for Backward {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Exact => Self::One(BackwardRule::Exact),
            Rule::Identity => Self::One(BackwardRule::Identity),
            Rule::Custom => Self::One(BackwardRule::Custom),
            Rule::None => Self::One(BackwardRule::None),
            Rule::All => Self::All,
        }
    }
}

/// The file that `lock` writes where no other is named.
pub const LOCK: &str = "advae.lock";

/// Samples that a page shows of every cell.
pub const PICTURES: usize = 8;

/// Flags of `eval`. A plugin is `NAME[@WEIGHTS][:key=value,...]`. NAME is a path, or a name that is searched for in
/// $ADVAE_PLUGIN_PATH and then beside the executable.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct EvalArgs {
    /// Classifier to attack; repeatable
    #[arg(long, value_name = "PLUGIN")]
    #[serde(deserialize_with = "crate::plugin::lists::one_or_many")]
    classifier: Vec<String>,
    /// Purifier in front of the classifier, or `none`; repeatable [default: none]
    #[arg(long, value_name = "PLUGIN")]
    #[serde(deserialize_with = "crate::plugin::lists::one_or_many")]
    purifier: Vec<String>,
    /// Attack, or the suite autoattack; repeatable [default: fgsm, pgd, cw, and every attack on $ADVAE_PLUGIN_PATH that does not ship with the host]
    #[arg(long, value_name = "PLUGIN")]
    #[serde(deserialize_with = "crate::plugin::lists::one_or_many")]
    attack: Vec<String>,
    /// Threat model; repeatable [default: white_box, and oblivious where there is a purifier]
    #[arg(long, value_name = "PLUGIN")]
    #[serde(deserialize_with = "crate::plugin::lists::one_or_many")]
    threat_model: Vec<String>,
    /// Dataset, or a path to your own images: a folder (`./DIR`, with one subfolder per class), FILE.npz or FILE.parquet
    /// [default: the embedded sample that the first classifier takes, mnist-1k or cifar10-1k]
    #[arg(long, value_name = "NAME|PATH")]
    dataset: Option<String>,
    /// Folder of the datasets that are not embedded [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Number of samples, chosen by the seed [default: 1000]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Seed of all randomness [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Budget for all norms or for one (`l2=2`), or a range of budgets `first:last:step` (`0:0.4:0.05`); repeatable [default: the
    /// dataset's; MNIST Linf 0.3, L2 2; CIFAR-10 Linf 8/255, L2 0.5]
    #[arg(long, value_name = "[NORM=]VALUE", allow_hyphen_values = true)]
    #[serde(deserialize_with = "crate::plugin::lists::one_or_many")]
    epsilon: Vec<String>,
    /// Device that runs the models: `cpu` or `cuda:N` [default: cpu]
    #[arg(long)]
    device: Option<String>,
    /// How a GPU rounds the factors of products while images are crafted; images are always scored in f32 [default: f32]
    #[arg(long)]
    precision: Option<Precision>,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Samples per micro-batch; affects the speed, not the results [default: what the models prefer]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Number of draws over which gradients through a random defence are averaged [default: 1]
    #[arg(long, value_name = "K")]
    eot: Option<u64>,
    /// Number of draws that score a random defence [default: 10]
    #[arg(long, value_name = "N")]
    draws: Option<u64>,
    /// Attack random defences a second time, with an attacker who knows the draw that scores (fixed randomness)
    #[arg(long)]
    known_draw: bool,
    /// Also attack every classifier without a purifier, and with its adversarially trained weights (`it_adv`) if it has any
    #[arg(long)]
    baseline: bool,
    /// Round images to this number of bits per pixel before scoring, as an image file would store them
    #[arg(long, value_name = "BITS")]
    quantize: Option<u32>,
    /// Backward rule of the purifiers [default: each purifier's own]
    #[arg(long, value_name = "RULE")]
    backward: Option<Rule>,
    /// Continue to attack samples that are already misclassified
    #[arg(long)]
    no_early_stop: bool,
    /// Write one JSON line per sample and cell, as soon as it is measured
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Continue an interrupted run from the file of --out
    #[arg(long)]
    resume: bool,
    /// With --resume: drop damaged lines of the file and measure them again; the original file is kept beside it
    #[arg(long)]
    repair: bool,
    /// Save the adversarial images, one npz file per cell
    #[arg(long, value_name = "DIR")]
    save_adversarial: Option<PathBuf>,
    /// Keep pictures of N samples per cell in the results, for HTML pages [default: 8 with --report]
    #[arg(long, value_name = "N")]
    pictures: Option<usize>,
    /// Also write the report as a page: one self-contained HTML file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Format of the printed report [default: table]
    #[arg(long)]
    format: Option<Format>,
    /// Read flags from a TOML file with the same keys; flags on the command line override it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Refuse plugins, weights and datasets that are not those of the lock that `advae-host lock` wrote [default file: advae.lock]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = LOCK)]
    #[serde(skip)]
    locked: Option<PathBuf>,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    #[serde(skip)]
    pub isolation: SandboxArgs,
}

/// Runs the evaluation and prints its report. Returns the exit code.
///
/// # Errors
/// Where nothing can be run: unknown plugins, settings or data.
pub fn run(args: EvalArgs) -> Result<i32> {
    let args = args.merged()?;
    let format = args.format.unwrap_or_default();
    let page = args.report.clone();
    page.as_deref().map(page_can_be_written).transpose()?;
    let settings = args.fill()?;
    let cancel = Cancel::on_ctrl_c()?;
    let outcome = experiment::outcomes(&settings, &cancel)?;
    let report = Report::of(outcome.cells).by(outcome.runs);
    report.print(format)?;
    if let Some(page) = &page {
        report.write_page(page)?;
    }
    if cancel.is_cancelled() {
        console::say(&farewell(&settings, outcome.rows));
        return Ok(EXIT_CANCELLED);
    }
    Ok(complain(&report, outcome.trouble.as_deref()))
}

/// Bits a pixel, if a file can have so many.
fn bits(bits: u32) -> Result<u32> {
    ensure!(
        (1..=16).contains(&bits),
        "--quantize is {bits}: give 1 to 16 bits a pixel, 8 for common files"
    );
    Ok(bits)
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

impl EvalArgs {
    /// The flags, and where they say nothing the file of `--config`.
    ///
    /// # Errors
    /// Where that file cannot be read.
    pub fn merged(self) -> Result<Self> {
        Ok(match self.config.clone() {
            Some(path) => self.or(config::read(&path, Case::Kebab, &[])?),
            None => self,
        })
    }

    fn or(self, file: Self) -> Self {
        let many = |flag: Vec<String>, file: Vec<String>| if flag.is_empty() { file } else { flag };
        Self {
            classifier: many(self.classifier, file.classifier),
            purifier: many(self.purifier, file.purifier),
            attack: many(self.attack, file.attack),
            threat_model: many(self.threat_model, file.threat_model),
            dataset: self.dataset.or(file.dataset),
            data_dir: self.data_dir.or(file.data_dir),
            samples: self.samples.or(file.samples),
            seed: self.seed.or(file.seed),
            epsilon: many(self.epsilon, file.epsilon),
            device: self.device.or(file.device),
            precision: self.precision.or(file.precision),
            threads: self.threads.or(file.threads),
            batch: self.batch.or(file.batch),
            eot: self.eot.or(file.eot),
            draws: self.draws.or(file.draws),
            known_draw: self.known_draw || file.known_draw,
            baseline: self.baseline || file.baseline,
            quantize: self.quantize.or(file.quantize),
            backward: self.backward.or(file.backward),
            no_early_stop: self.no_early_stop || file.no_early_stop,
            out: self.out.or(file.out),
            resume: self.resume || file.resume,
            repair: self.repair || file.repair,
            save_adversarial: self.save_adversarial.or(file.save_adversarial),
            pictures: self.pictures.or(file.pictures),
            report: self.report.or(file.report),
            format: self.format.or(file.format),
            config: None,
            locked: self.locked,
            isolation: self.isolation,
        }
    }

    /// What is asked for, with every default filled in.
    ///
    /// # Errors
    /// Where something is missing or impossible.
    pub fn fill(self) -> Result<Settings> {
        ensure!(
            !self.classifier.is_empty(),
            "no classifier to attack: give --classifier model_x.so"
        );
        ensure!(
            !self.resume || self.out.is_some(),
            "--resume needs the file to go on with: add --out FILE"
        );
        ensure!(
            self.resume || !self.repair,
            "--repair is for a file to go on with: add --resume --out FILE"
        );
        let at_least_one = |name: &str, value: Option<u64>, default: u64| {
            let value = value.unwrap_or(default);
            ensure!(value > 0, "--{name} is 0: give 1 or more");
            Ok(value)
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        let device = self.device.unwrap_or_else(|| "cpu".into());
        check_device(&device)?;
        let precision = self.precision.unwrap_or_default();
        ensure!(
            precision.is_single() || device != "cpu",
            "--precision tf32 is for GPUs: add --device cuda:0, or leave it out"
        );
        Ok(Settings {
            classifiers: self.classifier,
            purifiers: if self.purifier.is_empty() {
                vec!["none".into()]
            } else {
                self.purifier
            },
            attacks: self.attack,
            threat_models: self.threat_model,
            dataset: self.dataset,
            data_dir: self.data_dir,
            samples: at_least_one("samples", self.samples.map(|n| n as u64), 1000)? as usize,
            seed: self.seed.unwrap_or(0),
            budgets: Budgets::parse(&self.epsilon)?,
            device,
            precision,
            threads: at_least_one("threads", self.threads.map(|n| n as u64), cores)? as usize,
            batch: self
                .batch
                .map(|n| at_least_one("batch", Some(n as u64), 1))
                .transpose()?
                .map(|n| n as usize),
            eot: at_least_one("eot", self.eot, 1)?,
            draws: at_least_one("draws", self.draws, 10)?,
            known_draw: self.known_draw,
            baseline: self.baseline,
            quantize: self.quantize.map(bits).transpose()?,
            backward: self.backward.map(Backward::from),
            early_stop: !self.no_early_stop,
            out: self.out,
            resume: self.resume,
            repair: self.repair,
            save_adversarial: self.save_adversarial,
            pictures: self
                .pictures
                .unwrap_or(if self.report.is_some() { PICTURES } else { 0 }),
            keep_seeds_out: false,
            shard: None,
            lock: self.locked.as_deref().map(Lock::read).transpose()?,
            isolation: self.isolation.limits(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_toml(text: &str) -> Result<EvalArgs> {
        config::parse(text, "run.toml", Case::Kebab, &[])
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = "classifier = \"a.so\"\nattack = [\"pgd:steps=3\", \"fgsm\"]\nsamples = 5\nepsilon = 0.2\nno_early_stop = true";
        let flags = EvalArgs {
            classifier: vec!["b.so".into()],
            seed: Some(3),
            ..EvalArgs::default()
        };
        let settings = flags.or(from_toml(file).unwrap()).fill().unwrap();
        assert_eq!(
            (settings.classifiers, settings.samples, settings.seed),
            (vec!["b.so".into()], 5, 3)
        );
        assert_eq!(settings.attacks, ["pgd:steps=3", "fgsm"]);
        assert!(!settings.early_stop);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let error = from_toml("samples = 5\nclasifier = \"a\"").unwrap_err().to_string();
        assert!(error.contains("'run.toml' line 2"), "{error}");
        assert!(
            error.contains("clasifier") && error.contains("`threat-model`"),
            "{error}"
        );
    }

    #[test]
    fn impossible_values_are_refused() {
        let with = |change: fn(&mut EvalArgs)| {
            let mut args = EvalArgs {
                classifier: vec!["x".into()],
                ..EvalArgs::default()
            };
            change(&mut args);
            args.fill()
        };
        assert!(with(|_| {}).is_ok());
        assert!(with(|a| a.classifier.clear()).is_err());
        assert!(with(|a| a.threads = Some(0)).is_err());
        assert!(with(|a| a.resume = true).is_err());
        let rounding = |device: &str| {
            from_toml(&format!(
                "classifier = \"a.so\"\nprecision = \"tf32\"\ndevice = \"{device}\""
            ))
            .unwrap()
        };
        let error = rounding("cpu").fill().unwrap_err().to_string();
        assert!(
            error.contains("--precision tf32") && error.contains("--device cuda:0"),
            "{error}"
        );
        assert_eq!(rounding("cuda:0").fill().unwrap().precision, Precision::Tf32);
        for device in ["cuda", "cuda:x", "gpu", "cuda:-1"] {
            assert!(check_device(device).is_err(), "{device}");
        }
        assert!(check_device("cuda:1").is_ok());
    }
}
