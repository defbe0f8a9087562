//! Learning rate on a plateau, early stop, and the best epoch.

use super::exact;
use anyhow::{Result, ensure};
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

impl Rules {
    /// Checks the values.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<()> {
        let Self {
            factor,
            patience,
            floor,
            early_stop,
        } = self;
        ensure!(
            *factor > 0. && *factor <= 1.,
            "schedule.factor is {factor}: expected a number above 0, up to 1"
        );
        ensure!(
            *floor >= 0. && floor.is_finite(),
            "schedule.floor is {floor}: expected 0 or more"
        );
        ensure!(*patience > 0, "schedule.patience is 0: expected 1 epoch or more");
        ensure!(*early_stop > 0, "schedule.early_stop is 0: expected 1 epoch or more");
        Ok(())
    }
}

/// Where the schedule stands.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Schedule {
    /// Learning rate of the next epoch.
    #[serde(with = "exact")]
    pub learning_rate: f64,
    /// The epoch with the lowest validation loss so far.
    pub best: Option<Best>,
    stale: usize,
    stale_rate: usize,
}

/// The best epoch.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Best {
    /// Its validation loss.
    #[serde(with = "exact")]
    pub loss: f64,
    /// Epoch, from 0.
    pub epoch: usize,
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
        if self.best.is_none_or(|best| loss < best.loss) {
            self.best = Some(Best { loss, epoch });
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
        let best = Some(Best { loss: 0.5, epoch: 5 });
        assert_eq!((schedule.best, schedule.learning_rate), (best, 1.25e-4));
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
