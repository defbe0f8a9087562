//! Learning rate on a plateau, early stop, and the best epoch.

use serde::{Deserialize, Serialize};

/// Rules of the schedule (paper, section 5.1: halve after 4 epochs without improvement, stop after 10).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rules {
    /// Factor on a plateau.
    pub factor: f64,
    /// Epochs without improvement before the rate falls.
    pub patience: usize,
    /// Lowest rate.
    pub floor: f64,
    /// Epochs without improvement before training stops.
    pub early_stop: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            factor: 0.5,
            patience: 4,
            floor: 5e-5,
            early_stop: 10,
        }
    }
}

/// Where the schedule stands.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Schedule {
    /// Learning rate of the next epoch.
    pub learning_rate: f64,
    /// Lowest validation loss so far, and its epoch.
    pub best: Option<(f64, usize)>,
    stale: usize,
    stale_rate: usize,
}

impl Schedule {
    /// At the start.
    pub fn new(learning_rate: f64) -> Self {
        Self {
            learning_rate,
            best: None,
            stale: 0,
            stale_rate: 0,
        }
    }

    /// Takes note of an epoch's validation loss; says whether it is the best so far.
    pub fn observe(&mut self, epoch: usize, loss: f64, rules: &Rules) -> bool {
        if self.best.is_none_or(|(best, _)| loss < best) {
            self.best = Some((loss, epoch));
            (self.stale, self.stale_rate) = (0, 0);
            return true;
        }
        self.stale += 1;
        self.stale_rate += 1;
        if self.stale_rate >= rules.patience {
            self.learning_rate = (self.learning_rate * rules.factor).max(rules.floor.min(self.learning_rate));
            self.stale_rate = 0;
        }
        false
    }

    /// Whether to stop.
    pub fn exhausted(&self, rules: &Rules) -> bool {
        self.stale >= rules.early_stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_halves_on_a_plateau_and_training_stops() {
        let rules = Rules::default();
        let mut schedule = Schedule::new(1e-3);
        assert!(schedule.observe(0, 1., &rules));
        for epoch in 1..=4 {
            assert!(!schedule.observe(epoch, 1., &rules));
        }
        assert_eq!(schedule.learning_rate, 5e-4);
        assert!(schedule.observe(5, 0.5, &rules), "an improvement starts the count anew");
        (6..16).for_each(|epoch| assert!(!schedule.observe(epoch, 0.6, &rules)));
        assert!(schedule.exhausted(&rules));
        assert_eq!((schedule.best, schedule.learning_rate), (Some((0.5, 5)), 1.25e-4));
    }

    #[test]
    fn the_rate_never_rises_to_the_floor() {
        let rules = Rules {
            patience: 1,
            ..Rules::default()
        };
        let mut schedule = Schedule::new(1e-5);
        schedule.observe(0, 1., &rules);
        schedule.observe(1, 1., &rules);
        assert_eq!(schedule.learning_rate, 1e-5);
    }
}
