//! Logits so large that a cross-entropy in f32 has no gradient left.

use super::checklist::Finding;
use super::model::input;
use super::sample::{IDS, digits, images};
use crate::wire::model::Model;
use crate::wire::tensor::Call;
use anyhow::Result;

/// Real images that are looked at.
const DIGITS: usize = 100;
/// From this lead of the largest logit on, its probability rounds to 1 in f32: ln 2^24.
const ROUNDS: f64 = 16.636;
/// From this lead on, every other probability is below f32's normal range: -ln 2^-126.
const UNDERFLOWS: f64 = 87.336;

/// By how much the largest logit leads: on real images where their shape fits, else on noise.
pub fn examine(model: &Model) -> Result<Finding> {
    let (x, what) = match digits(DIGITS, input(model))? {
        Some(x) => (x, "digits"),
        None => (images(IDS.len(), input(model)), "images of noise"),
    };
    let ids: Vec<u64> = (0..x.rows() as u64).collect();
    let logits = model.forward(&Call::score(0, &ids), &x)?;
    let leads = (0..logits.rows()).map(|i| lead(logits.row(i))).collect();
    Ok(judge(leads, what))
}

/// The largest logit less the second largest.
fn lead(logits: &[f32]) -> f64 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    f64::from(sorted[0]) - f64::from(sorted[1])
}

fn judge(mut leads: Vec<f64>, what: &str) -> Finding {
    leads.sort_by(f64::total_cmp);
    let n = leads.len();
    let beyond = |limit: f64| leads.iter().filter(|lead| **lead > limit).count();
    let (rounds, underflows) = (beyond(ROUNDS), beyond(UNDERFLOWS));
    let text = format!(
        "on {n} {what} the largest leads by {:.1} (median), {:.1} at most",
        leads[n / 2],
        leads[n - 1]
    );
    if rounds == 0 { return Finding::Pass(text) }
    Finding::Warn(format!("{text}, {rounds} {underflows}"))
}
