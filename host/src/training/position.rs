//! Where a run stands: enough for an exact resume.

use super::exact;
use super::schedule::Schedule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a run stands. Everything random is keyed by seed, epoch and step, so this is all there is to remember beside
/// weights and moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Epoch in progress.
    pub epoch: usize,
    /// Next batch within the epoch.
    pub batch: usize,
    /// Steps taken in all.
    pub step: u64,
    /// Rate, plateau and best.
    pub schedule: Schedule,
    /// Sums of the epoch so far.
    pub sums: Sums,
    /// The recipe as TOML: another recipe cannot resume this run.
    pub recipe: String,
}

/// Sums over the batches of an epoch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Loss times images.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Images.
    pub images: usize,
    /// Correct among the images that were trained on.
    pub correct: usize,
    /// Images that were trained on (clean and adversarial).
    pub seen: usize,
    /// Seconds.
    #[serde(with = "exact")]
    pub seconds: f64,
    /// What an objective of the plugin's own measured, by name.
    #[serde(default)]
    pub own: BTreeMap<String, Total>,
}

/// A sum over images.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Total {
    /// The sum.
    #[serde(with = "exact")]
    pub sum: f64,
    /// Number of images.
    pub images: usize,
}

impl Total {
    /// The mean over the images.
    pub fn mean(self) -> f64 {
        self.sum / self.images as f64
    }
}
