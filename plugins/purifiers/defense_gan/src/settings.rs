//! What can be set: the projection, and the training of the generator.

use crate::projection::Projection;
use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

/// How thoroughly an image is projected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "lowercase")]
pub enum Preset {
    /// L = 200 steps from R = 10 starts, as published: 96 billion multiply-adds an image.
    Paper,
    /// L = 50 steps from R = 2 starts, for a first look: a twentieth.
    Quick,
}

settings! {
    /// Projection onto the generator's range.
    pub struct DefenseGanSettings {
        /// `paper` (L 200, R 10) or `quick` (L 50, R 2).
        preset: Preset = Preset::Quick,
        /// L, the number of steps of gradient descent. If null, the preset decides.
        steps: Option<usize> = None,
        /// R, the number of starts; the best one is used. If null, the preset decides.
        restarts: Option<usize> = None,
        /// Learning rate of the descent on the mean squared error of an image.
        learning_rate: f64 = 10.,
        /// Momentum: the share of the previous step that is added to a step.
        momentum: f64 = 0.7,
        /// Factor on the learning rate in the last fifth of the steps, as in the authors' code.
        decay: f64 = 0.1,
        /// Always start from 0, with one start. This is the deterministic purifier of a weaker evaluation.
        constant_start: bool = false,
    }
}

impl DefenseGanSettings {
    /// The projection, checked.
    pub fn projection(&self) -> Result<Projection> {
        let (name, steps, restarts) = match self.preset {
            Preset::Paper => ("paper", 200, 10),
            Preset::Quick => ("quick", 50, 2),
        };
        let steps = self.steps.unwrap_or(steps);
        let restarts = match self.constant_start {
            true => 1,
            false => self.restarts.unwrap_or(restarts),
        };
        if let (true, Some(restarts @ 2..)) = (self.constant_start, self.restarts) {
            bail!(
                "restarts is {restarts}, but from a constant start all are alike: leave restarts out, or constant_start"
            )
        }
        in_range("steps", steps, 1..=10_000)?;
        in_range("restarts", restarts, 1..=100)?;
        in_range("learning_rate", self.learning_rate, 0. ..=1000.)?;
        in_range("momentum", self.momentum, 0. ..=1.)?;
        in_range("decay", self.decay, 0. ..=1.)?;
        let own = self.steps.or(self.restarts).is_some() || self.constant_start;
        Ok(Projection {
            name: if own { "own settings" } else { name },
            steps,
            restarts,
            learning_rate: self.learning_rate,
            momentum: self.momentum,
            decay: self.decay,
            constant_start: self.constant_start,
        })
    }
}

impl WganSettings {
    /// Checks every value.
    pub fn check(&self) -> Result<()> {
        in_range("critic_steps", self.critic_steps, 1..=1000)?;
        in_range("critic_channels", self.critic_channels, 1..=512)?;
        in_range("penalty", self.penalty, 0. ..=1e6)?;
        in_range("beta1", self.beta1, 0. ..=0.9999)?;
        in_range("beta2", self.beta2, 0. ..=0.9999)?;
        Ok(())
    }
}

settings! {
    /// WGAN-GP (Gulrajani et al. 2017).
    pub struct WganSettings {
        /// Steps of the critic per step of the generator.
        critic_steps: u64 = 5,
        /// Channels of the critic's first convolution. The next two convolutions have twice and four times as many.
        critic_channels: u64 = 64,
        /// Weight of the gradient penalty.
        penalty: f64 = 10.,
        /// Decay rate of Adam's mean of the gradients.
        beta1: f64 = 0.5,
        /// Decay rate of Adam's mean of the squared gradients.
        beta2: f64 = 0.9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_refuses_values_out_of_range() {
        assert!(WganSettings::default().check().is_ok());
        for (text, said) in [
            (
                r#"{"critic_steps": 0}"#,
                "critic_steps is 0: choose a value from 1 to 1000",
            ),
            (
                r#"{"critic_channels": 18446744073709551615}"#,
                "critic_channels is 18446744073709551615: choose a value from 1 to 512",
            ),
            (
                r#"{"penalty": 1e300}"#,
                "penalty is 1e300: choose a value from 0 to 1000000",
            ),
            (r#"{"beta1": 1.5}"#, "beta1 is 1.5: choose a value from 0 to 0.9999"),
            (r#"{"beta2": -0.5}"#, "beta2 is -0.5: choose a value from 0 to 0.9999"),
        ] {
            let settings: WganSettings = advae_sdk::serde_json::from_str(text).unwrap();
            let error = settings.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn what_makes_no_projection_is_refused() {
        let with = |change: &dyn Fn(&mut DefenseGanSettings)| {
            let mut settings = DefenseGanSettings::default();
            change(&mut settings);
            settings.projection().map_err(|error| error.to_string())
        };
        let quick = with(&|_| {}).unwrap();
        assert_eq!((quick.name, quick.steps, quick.restarts), ("quick", 50, 2));
        let constant = with(&|settings| settings.constant_start = true).unwrap();
        assert_eq!((constant.name, constant.restarts), ("own settings", 1));
        let refused = |change: &dyn Fn(&mut DefenseGanSettings), says: &str| {
            let error = with(change).unwrap_err();
            assert!(error.contains(says), "{error}");
        };
        refused(
            &|settings| settings.steps = Some(0),
            "steps is 0: choose a value from 1 to 10000",
        );
        refused(
            &|settings| settings.restarts = Some(0),
            "restarts is 0: choose a value from 1 to 100",
        );
        refused(
            &|settings| settings.steps = Some(usize::MAX),
            "steps is 18446744073709551615: choose a value from 1 to 10000",
        );
        refused(&|settings| settings.learning_rate = -1., "from 0 to 1000");
        refused(
            &|settings| settings.momentum = 1.5,
            "momentum is 1.5: choose a value from 0 to 1",
        );
        refused(
            &|settings| (settings.constant_start, settings.restarts) = (true, Some(3)),
            "restarts is 3, but from a constant start all are alike",
        );
    }
}
