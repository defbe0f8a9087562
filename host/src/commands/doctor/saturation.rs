//! Logits so large that a cross-entropy in f32 has no gradient left.

use super::checklist::Finding;
use super::sample::{IDS, images, input, real};
use crate::wire::model::Model;
use crate::wire::tensor::Call;
use anyhow::Result;

/// Real images that are looked at.
const REAL: usize = 100;
/// From this lead of the largest logit on, its probability rounds to 1 in f32: ln 2^24.
const ROUNDS: f64 = 16.636;
/// From this lead on, every other probability is below f32's normal range: -ln 2^-126.
const UNDERFLOWS: f64 = 87.336;

/// By how much the largest logit leads: on real images where their shape fits, else on noise.
pub fn examine(model: &Model) -> Result<Finding> {
    let (x, what) = match real(REAL, input(model))? {
        Some(real) => real,
        None => (images(IDS.len(), input(model)), "images of noise".into()),
    };
    let ids: Vec<u64> = (0..x.rows() as u64).collect();
    let logits = model.forward(&Call::score(0, &ids), &x)?;
    let leads = (0..logits.rows()).map(|i| lead(logits.row(i))).collect();
    Ok(judge(leads, &what))
}

/// The largest logit less the second largest.
fn lead(logits: &[f32]) -> f64 {
    let mut sorted = logits.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    f64::from(sorted[0]) - f64::from(sorted[1])
}

/// A warning where most images saturate, or any leaves cross-entropy without a gradient.
fn judge(mut leads: Vec<f64>, what: &str) -> Finding {
    leads.sort_by(f64::total_cmp);
    let n = leads.len();
    let beyond = |limit: f64| leads.iter().filter(|lead| **lead > limit).count();
    let (rounds, underflows) = (beyond(ROUNDS), beyond(UNDERFLOWS));
    let text = format!(
        "on {n} {what} the largest logit leads by {:.1} (median), {:.1} at most",
        leads[n / 2],
        leads[n - 1]
    );
    let advice = format!(
        "in f32 its probability rounds to 1 on {rounds} of them, and the others underflow on {underflows}: a cross-entropy's \
         gradient is noise there, or zero, and attacks on it flatter the model: run --attack pgd:loss=margin too"
    );
    Finding::hope(2 * rounds <= n && underflows == 0, text, &advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_where_f32_rounds_and_underflows() {
        let others = |lead: f64| (-lead).exp() as f32;
        let label = |lead: f64| 1. / (1. + others(lead));
        assert_eq!(label(ROUNDS + 0.001), 1.);
        assert!(label(ROUNDS - 0.001) < 1.);
        assert!(!others(UNDERFLOWS + 0.01).is_normal() && others(UNDERFLOWS - 0.01).is_normal());
    }

    #[test]
    fn a_lead_is_that_of_the_largest_logit() {
        assert_eq!(lead(&[1., -3., 7., 2.5]), 4.5);
        assert_eq!(lead(&[7., 7.]), 0.);
    }

    #[test]
    fn most_images_rounded_or_one_without_a_gradient_is_a_warning() {
        assert!(matches!(judge(vec![1., 15., 20.], "digits"), Finding::Pass(_)));
        assert!(matches!(judge(vec![1., 17., 20.], "digits"), Finding::Warn(_)));
        assert!(matches!(judge(vec![1., 2., 90.], "digits"), Finding::Warn(_)));
    }
}
