//! What attacks asked about every sample.

use crate::wire::tensor::Tensor;
use advae_abi::{AbiError, ErrorCode};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an attack asked about one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Gradients it asked for. One that is averaged over several draws counts once; one that the attack did not need, because the sample was
    /// misclassified and the loss had nothing left to gain, does not count.
    pub gradients: u64,
    /// Gradients that were zero in every pixel: the model's gradient was, or the attack's loss did not depend on the logits although the
    /// sample was still classified correctly (a saturated loss).
    pub zero_gradients: u64,
    /// Those of them where the loss did not depend on the logits.
    pub saturated: u64,
    /// Images whose label it asked for.
    pub queries: u64,
    /// Images that it asked anything about: logits, gradients or labels.
    pub asked: u64,
}

/// What all oracles of one cell share.
#[derive(Debug, Default)]
pub struct Meter {
    queries: AtomicU64,
    samples: Mutex<HashMap<u64, Counts>>,
}

impl Meter {
    /// What was asked about one sample so far.
    pub fn of(&self, id: u64) -> Counts {
        self.samples().get(&id).copied().unwrap_or_default()
    }

    /// Label queries so far, those of a threat model's preparation included.
    pub fn queries(&self) -> u64 {
        self.queries.load(Ordering::Relaxed)
    }

    /// Counts `images` queries.
    ///
    /// # Errors
    /// [`ErrorCode::Denied`] where that exceeds the limit.
    pub fn charge(&self, images: u64, limit: Option<u64>) -> Result<(), AbiError> {
        let before = self.queries.fetch_add(images, Ordering::Relaxed);
        match limit {
            Some(limit) if before + images > limit => Err(AbiError::new(
                ErrorCode::Denied,
                format!(
                    "the threat model grants {limit} label queries, {} were asked",
                    before + images
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Counts label queries.
    pub(super) fn count_queries(&self, ids: &[u64]) {
        let mut samples = self.samples();
        ids.iter().for_each(|id| samples.entry(*id).or_default().queries += 1);
    }

    /// Counts images that anything was asked about.
    pub(super) fn count_asked(&self, ids: &[u64]) {
        let mut samples = self.samples();
        ids.iter().for_each(|id| samples.entry(*id).or_default().asked += 1);
    }

    /// Counts the gradients of one backward pass; `correct` says of each row whether it was still classified correctly.
    pub(super) fn count_gradients(&self, ids: &[u64], correct: &[bool], cotangent: &Tensor, gradient: &Tensor) {
        let zero = |row: &[f32]| row.iter().all(|v| *v == 0.);
        let mut samples = self.samples();
        for (i, id) in ids.iter().enumerate() {
            let no_loss = zero(cotangent.row(i));
            if no_loss && !correct[i] {
                continue;
            }
            let counts = samples.entry(*id).or_default();
            counts.gradients += 1;
            counts.zero_gradients += u64::from(zero(gradient.row(i)));
            counts.saturated += u64::from(no_loss);
        }
    }

    /// Adds gradients that were counted elsewhere.
    pub(super) fn add_gradients(&self, id: u64, gradients: u64, zero_gradients: u64, saturated: u64) {
        let mut samples = self.samples();
        let counts = samples.entry(id).or_default();
        counts.gradients += gradients;
        counts.zero_gradients += zero_gradients;
        counts.saturated += saturated;
    }

    fn samples(&self) -> MutexGuard<'_, HashMap<u64, Counts>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_metered() {
        let meter = Meter::default();
        assert!(meter.charge(3, Some(4)).is_ok());
        let error = meter.charge(2, Some(4)).unwrap_err();
        assert!(
            error.is(ErrorCode::Denied) && error.message.contains("4 label queries, 5 were asked"),
            "{error}"
        );
        assert!(meter.charge(1000, None).is_ok());
    }

    #[test]
    fn gradients_and_queries_are_counted_by_sample() {
        let meter = Meter::default();
        let cotangent = Tensor::new(vec![4, 1], vec![1., 0., 1., 0.]).unwrap();
        let gradient = Tensor::new(vec![4, 2], vec![0., 0., 0., 0., 1., 0., 0., 0.]).unwrap();
        meter.count_gradients(&[3, 5, 7, 9], &[true, true, false, false], &cotangent, &gradient);
        meter.count_gradients(&[7], &[true], &cotangent.select(&[2]), &gradient.select(&[2]));
        meter.count_queries(&[7, 7, 5]);
        let counts = |gradients, zero_gradients, saturated, queries| Counts {
            gradients,
            zero_gradients,
            saturated,
            queries,
            asked: 0,
        };
        assert_eq!(meter.of(3), counts(1, 1, 0, 0), "the model's gradient is zero");
        assert_eq!(
            meter.of(5),
            counts(1, 1, 1, 1),
            "the loss is saturated: correct, and nothing to gain"
        );
        assert_eq!(meter.of(7), counts(2, 0, 0, 2));
        assert_eq!(meter.of(9), counts(0, 0, 0, 0), "broken already: it asked for nothing");
    }
}
