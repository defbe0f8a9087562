//! An audit as it is kept and told.

use super::cells::Figure;
use super::finding::{Finding, Verdict};
use super::subject::{Claim, Extent};
use crate::report::Share;
use crate::results::Cell;
use serde::Serialize;

/// What an audit came to.
#[derive(Clone, Debug, Serialize)]
pub struct Audit {
    /// The verdict.
    pub verdict: Verdict,
    /// Why.
    pub reasons: Vec<String>,
    /// What was claimed.
    pub claim: Claim,
    /// What was audited.
    pub defence: String,
    /// Name of the dataset.
    pub dataset: String,
    /// Samples.
    pub samples: usize,
    /// Seed.
    pub seed: u64,
    /// How much was measured.
    pub extent: Extent,
    /// Accuracy without an attack.
    pub clean: Option<Share>,
    /// Robust accuracy under the strongest attack, per sample.
    pub strongest: Option<Share>,
    /// What a reader must know of dataset and models.
    pub notes: Vec<String>,
    /// What each check found, in order.
    pub findings: Vec<Finding>,
    /// Robust accuracy under each attack.
    pub figures: Vec<Figure>,
    /// Their cells, for a page.
    #[serde(skip)]
    pub cells: Vec<Cell>,
    /// Why the results file is not whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}
