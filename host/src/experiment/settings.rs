//! What an evaluation does, with every default filled in.

use super::budgets::Budgets;
use super::lock::Lock;
use super::shard::Shard;
use crate::isolation::Limits;
use crate::results::Precision;
use advae_abi::info::BackwardRule;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The backward rules that gradients through purifiers go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backward {
    /// One rule for all.
    One(BackwardRule),
    /// Every rule that leads somewhere: those a purifier offers, and the identity.
    All,
}

/// What `eval` does, with every default filled in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Classifiers, at least one.
    pub classifiers: Vec<String>,
    /// Purifiers; `none` stands for none.
    pub purifiers: Vec<String>,
    /// Attacks; empty: the default ones.
    pub attacks: Vec<String>,
    /// Threat models; empty: the default ones.
    pub threat_models: Vec<String>,
    /// Name or path of the dataset; absent: the embedded sample of the first classifier's shape.
    pub dataset: Option<String>,
    /// Folder of datasets.
    pub data_dir: Option<PathBuf>,
    /// Number of samples.
    pub samples: usize,
    /// Seed.
    pub seed: u64,
    /// Budgets that were given.
    pub budgets: Budgets,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// How a GPU computes while images are crafted.
    pub precision: Precision,
    /// Threads.
    pub threads: usize,
    /// Samples a micro-batch.
    pub batch: Option<usize>,
    /// EOT draws.
    pub eot: u64,
    /// Scoring draws.
    pub draws: u64,
    /// Whether random defences are also attacked by one who knows the draw that scores.
    pub known_draw: bool,
    /// Whether every classifier also runs without a purifier, and with the weights of adversarial training where it has some.
    pub baseline: bool,
    /// Bits a pixel that images are rounded to before they are scored; absent: they are not.
    pub quantize: Option<u32>,
    /// Backward rules of the purifiers; absent: each purifier's own.
    pub backward: Option<Backward>,
    /// Whether decided samples may be left alone.
    pub early_stop: bool,
    /// Results file.
    pub out: Option<PathBuf>,
    /// Whether to go on with it.
    pub resume: bool,
    /// Whether damaged lines of it are dropped and measured again.
    pub repair: bool,
    /// Folder of adversarial images.
    pub save_adversarial: Option<PathBuf>,
    /// Samples of every cell that pictures are kept of.
    pub pictures: usize,
    /// Leave the black-box attacker's seeds out of scoring even where no threat model uses them, for one subset in all runs.
    pub keep_seeds_out: bool,
    /// The part that this process measures; absent: all of it.
    pub shard: Option<Shard>,
    /// What everything that is loaded has to be; absent: whatever it is.
    #[serde(skip)]
    pub lock: Option<Lock>,
    /// What holds for the process that runs the plugins; absent: this process runs them.
    #[serde(skip)]
    pub isolation: Option<Limits>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            classifiers: vec![],
            purifiers: vec!["none".into()],
            attacks: vec![],
            threat_models: vec![],
            dataset: None,
            data_dir: None,
            samples: 1000,
            seed: 0,
            budgets: Budgets::default(),
            device: "cpu".into(),
            precision: Precision::F32,
            threads: 1,
            batch: None,
            eot: 1,
            draws: 10,
            known_draw: false,
            baseline: false,
            quantize: None,
            backward: None,
            early_stop: true,
            out: None,
            resume: false,
            repair: false,
            save_adversarial: None,
            pictures: 0,
            keep_seeds_out: false,
            shard: None,
            lock: None,
            isolation: None,
        }
    }
}

/// Accepts `cpu` and `cuda:N`.
///
/// # Errors
/// For anything else.
pub fn check_device(device: &str) -> Result<()> {
    let ordinal = device.strip_prefix("cuda:").map(str::parse::<u32>);
    let known = device == "cpu" || matches!(ordinal, Some(Ok(_)));
    ensure!(known, "no device '{device}': give cpu or cuda:N, such as cuda:0");
    Ok(())
}
