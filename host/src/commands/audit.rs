//! `audit`: whether a stated robust accuracy can be believed.

use super::eval::{PICTURES, Rule};
use crate::audit::{self, Claim, DEFAULT_ATTACK, Extent};
use crate::experiment::{Backward, Settings, check_device, threads, within_range};
use crate::isolation::IsolationArgs;
use crate::plugin::number;
use crate::report::page_can_be_written;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::exit::{EXIT_CANCELLED, EXIT_FAILED};
use advae_abi::info::NormKind;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// A norm on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Norm {
    /// Largest absolute difference of a pixel
    Linf,
    /// Euclidean distance
    L2,
}

/// Format of a printed audit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AuditFormat {
    /// For a person to read
    #[default]
    Markdown,
    /// For a program to read
    Json,
}

/// Flags of `audit`. The exit code is 0 for PASS, 3 for SUSPECT, 4 for INCONCLUSIVE.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// Classifier
    #[arg(long, value_name = "PLUGIN")]
    classifier: String,
    /// Purifier in front of the classifier, or `none`
    #[arg(long, value_name = "PLUGIN", default_value = "none")]
    purifier: String,
    /// Claimed robust accuracy, as a fraction (`0.92`)
    #[arg(long, value_name = "SHARE")]
    claim: String,
    /// Norm of the claim
    #[arg(long, value_name = "NORM", default_value = "linf")]
    norm: Norm,
    /// Budget of the claim (`0.3`, `8/255`)
    #[arg(long, value_name = "VALUE")]
    epsilon: String,
    /// Attack with a budget that the claim is based on; the audit also examines its search
    #[arg(long, value_name = "PLUGIN", default_value = DEFAULT_ATTACK)]
    attack: String,
    /// Threat model that the claim is based on
    #[arg(long, value_name = "PLUGIN", default_value = "white_box")]
    threat_model: String,
    /// Backward rule of the purifier that the claim is based on [default: the purifier's own]
    #[arg(long, value_name = "RULE")]
    backward: Option<Rule>,
    /// Allowed difference between the claim and the result of the strongest attack, as a fraction
    #[arg(long, value_name = "SHARE", default_value = "0.02")]
    tolerance: String,
    /// Number of draws over which the claimed attack averages the gradients of a random defence
    #[arg(long, value_name = "K", default_value_t = 1)]
    eot: u64,
    /// Number of draws that score a random defence
    #[arg(long, value_name = "N", default_value_t = 10)]
    draws: u64,
    /// Use fewer samples for single checks, and shorter searches: minutes instead of an hour
    #[arg(long)]
    quick: bool,
    /// Dataset, or a path to your own images [default: the embedded sample that the classifier takes]
    #[arg(long, value_name = "NAME|PATH")]
    dataset: Option<String>,
    /// Folder of the datasets that are not embedded [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Number of samples, chosen by the seed
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: usize,
    /// Seed of all randomness
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device that runs the models: `cpu` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Write one JSON line per sample and attack, as soon as it is measured
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Continue an interrupted run from the file of --out
    #[arg(long, requires = "out")]
    resume: bool,
    /// With --resume: drop damaged lines of the file and measure them again
    #[arg(long, requires = "resume")]
    repair: bool,
    /// Also write the audit as a page: one self-contained HTML file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Format of the printed audit
    #[arg(long, value_name = "FORMAT", default_value = "markdown")]
    format: AuditFormat,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: IsolationArgs,
}

/// Audits and prints the verdict. Returns the exit code.
///
/// # Errors
/// Where nothing can be run: unknown plugins, settings or data.
pub fn run(args: AuditArgs) -> Result<i32> {
    let format = args.format;
    let extent = if args.quick { Extent::QUICK } else { Extent::FULL };
    let page = args.report.clone();
    page.as_deref().map(page_can_be_written).transpose()?;
    let (claim, settings) = args.fill()?;
    let cancel = Cancel::on_ctrl_c()?;
    let audit = match audit::audit(&claim, &settings, extent, &cancel) {
        Err(_) if cancel.is_cancelled() => {
            console::say(&match &settings.out {
                Some(path) => format!(
                    "stopped: what was measured is in '{}': the same command with --resume goes on from there",
                    path.display()
                ),
                None => "stopped: nothing was written: add --out results.jsonl to be able to resume".into(),
            });
            return Ok(EXIT_CANCELLED);
        }
        audit => audit?,
    };
    console::print(&match format {
        AuditFormat::Markdown => audit::markdown(&audit),
        AuditFormat::Json => serde_json::to_string_pretty(&audit)? + "\n",
    })?;
    if let Some(page) = &page {
        audit::report(&audit).write_page(page)?;
    }
    if let Some(trouble) = &audit.trouble {
        console::say(&format!("error: {trouble}"));
        return Ok(EXIT_FAILED);
    }
    Ok(audit.verdict.exit_code())
}

/// A share between 0 and 1.
fn share(flag: &str, text: &str) -> Result<f64> {
    let value = number(text).with_context(|| format!("--{flag} {text} is no number: give a share such as 0.92"))?;
    ensure!(
        (0. ..=1.).contains(&value),
        "--{flag} is {text}: give a share between 0 and 1, {} for {text} %",
        if value <= 100. {
            format!("{}", value / 100.)
        } else {
            "0.92".into()
        }
    );
    Ok(value)
}

impl AuditArgs {
    fn fill(self) -> Result<(Claim, Settings)> {
        check_device(&self.device)?;
        ensure!(self.samples > 0, "--samples is 0: give 1 or more");
        ensure!(self.eot > 0, "--eot is 0: give 1 or more");
        ensure!(self.draws > 0, "--draws is 0: give 1 or more");
        let norm = match self.norm {
            Norm::Linf => NormKind::Linf,
            Norm::L2 => NormKind::L2,
        };
        let epsilon = number(&self.epsilon)
            .with_context(|| format!("--epsilon {} is no number: give 0.3 or 8/255", self.epsilon))?;
        ensure!(
            epsilon > 0.,
            "--epsilon is {}: a claim is about a budget above 0",
            self.epsilon
        );
        let backward = self.backward.map(Backward::from);
        ensure!(
            backward != Some(Backward::All),
            "--backward all is no rule that a claim rests on: every rule is tried anyway, name the claim's or leave it away"
        );
        let claim = Claim {
            robust: share("claim", &self.claim)?,
            norm,
            epsilon: within_range(norm, epsilon)?,
            attack: self.attack,
            threat_model: self.threat_model,
            tolerance: share("tolerance", &self.tolerance)?,
        };
        let settings = Settings {
            classifiers: vec![self.classifier],
            purifiers: vec![self.purifier],
            dataset: self.dataset,
            data_dir: self.data_dir,
            samples: self.samples,
            seed: self.seed,
            device: self.device,
            threads: threads(self.threads)?,
            eot: self.eot,
            draws: self.draws,
            backward,
            pictures: if self.report.is_some() { PICTURES } else { 0 },
            out: self.out,
            resume: self.resume,
            repair: self.repair,
            ..Settings::default()
        };
        Ok((claim, settings))
    }
}
