//! A training run as a file: what is trained, on what, and how.

use super::schedule::Rules;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everything that defines a run; kept beside the weights it made.
///
/// With a purifier, the purifier is trained in front of the frozen classifier (Eq. 7); without one the classifier is.
/// With an attack the examples are crafted on the whole pipeline while it trains; without one training is clean.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Classifier, `model_x.so@clean`. Without a purifier it is what is trained, from a seeded initialisation unless
    /// weights are named.
    pub classifier: String,
    /// Purifier to train, from a seeded initialisation unless weights are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purifier: Option<String>,
    /// Attack that crafts the examples, `pgd:steps=10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack: Option<String>,
    /// Radius of the attack's ball.
    pub epsilon: f64,
    /// Steps over which the radius grows from 0 to `epsilon`.
    pub epsilon_ramp_steps: u64,
    /// Weight of the loss on adversarial images.
    pub adversarial_weight: f64,
    /// Weight of the loss on clean images (of use only with an attack: without one it is 1).
    pub clean_weight: f64,
    /// Eq. 7's lambda: weight of the reconstruction loss between purified and clean images.
    pub lambda: f64,
    /// Dataset.
    pub dataset: String,
    /// Share of the training set held out for validation, its last images (paper: 10 %).
    pub validation: f64,
    /// Use only that many training images, 0 for all.
    pub samples: usize,
    /// Use only that many validation images, 0 for all.
    pub validation_samples: usize,
    /// Largest number of epochs.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Adam's rate at the start.
    pub learning_rate: f64,
    /// Adam's rate in the last epoch, reached linearly; 0 leaves the rate to the plateau rule.
    pub final_learning_rate: f64,
    /// Plateau and early stop.
    pub schedule: Rules,
    /// Seed of the initialisation, the order of the images and every random start.
    pub seed: u64,
    /// Steps between checkpoints within an epoch.
    pub checkpoint_steps: u64,
    /// Round the weights that come out to `f16`: half the size. Checkpoints stay as they are.
    pub half_precision: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            classifier: String::new(),
            purifier: None,
            attack: None,
            epsilon: 0.3,
            epsilon_ramp_steps: 0,
            adversarial_weight: 1.,
            clean_weight: 0.,
            lambda: 0.,
            dataset: "mnist-train".into(),
            validation: 0.1,
            samples: 0,
            validation_samples: 0,
            epochs: 100,
            batch_size: 128,
            learning_rate: 1e-3,
            final_learning_rate: 0.,
            schedule: Rules::default(),
            seed: 0,
            checkpoint_steps: 200,
            half_precision: false,
        }
    }
}

impl Recipe {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// Where it is missing, is no TOML, or has unknown keys.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the recipe '{}'", path.display()))?;
        toml::from_str(&text).with_context(|| format!("bad recipe '{}'", path.display()))
    }

    /// Checks the values.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.classifier.is_empty(),
            "no classifier: give --classifier or 'classifier' in the recipe"
        );
        ensure!(self.batch_size > 0, "batch_size is 0: expected at least 1");
        ensure!(self.epochs > 0, "epochs is 0: expected at least 1");
        ensure!(
            (0. ..1.).contains(&self.validation),
            "validation is {}: expected a share in [0, 1)",
            self.validation
        );
        ensure!(
            self.learning_rate > 0. && self.learning_rate.is_finite(),
            "learning_rate is {}: expected more than 0",
            self.learning_rate
        );
        ensure!(
            self.epsilon >= 0. && self.epsilon.is_finite(),
            "epsilon is {}: expected 0 or more",
            self.epsilon
        );
        for (name, weight) in [
            ("adversarial_weight", self.adversarial_weight),
            ("clean_weight", self.clean_weight),
            ("lambda", self.lambda),
        ] {
            ensure!(
                weight >= 0. && weight.is_finite(),
                "{name} is {weight}: expected 0 or more"
            );
        }
        ensure!(
            self.lambda == 0. || self.purifier.is_some(),
            "lambda is {} but there is no purifier to reconstruct images",
            self.lambda
        );
        ensure!(
            self.attack.is_none() || self.adversarial_weight + self.clean_weight + self.lambda > 0.,
            "every weight of the loss is 0: nothing would be learnt"
        );
        Ok(())
    }

    /// The rate of an epoch, where it is not left to the plateau rule.
    pub fn learning_rate_at(&self, epoch: usize) -> Option<f64> {
        let share = epoch as f64 / self.epochs.saturating_sub(1).max(1) as f64;
        (self.final_learning_rate > 0.)
            .then_some(self.learning_rate + share * (self.final_learning_rate - self.learning_rate))
    }

    /// The attack's radius at a step: a linear ramp from the start of training.
    pub fn epsilon_at(&self, step: u64) -> f64 {
        match self.epsilon_ramp_steps {
            0 => self.epsilon,
            ramp => self.epsilon * (step as f64 / ramp as f64).min(1.),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_radius_grows_linearly_and_stays() {
        let recipe = Recipe {
            epsilon_ramp_steps: 100,
            ..Recipe::default()
        };
        assert_eq!(
            [recipe.epsilon_at(0), recipe.epsilon_at(50), recipe.epsilon_at(500)],
            [0., 0.15, 0.3]
        );
        assert_eq!(Recipe::default().epsilon_at(0), 0.3);
    }

    #[test]
    fn the_rate_falls_linearly_to_the_last_epoch() {
        let recipe = Recipe {
            epochs: 3,
            learning_rate: 3.,
            final_learning_rate: 1.,
            ..Recipe::default()
        };
        assert_eq!(
            [0, 1, 2].map(|epoch| recipe.learning_rate_at(epoch)),
            [Some(3.), Some(2.), Some(1.)]
        );
        assert_eq!(Recipe::default().learning_rate_at(1), None);
    }

    #[test]
    fn unknown_keys_and_values_without_sense_are_refused() {
        let error = toml::from_str::<Recipe>("batchsize = 3").unwrap_err().to_string();
        assert!(error.contains("batchsize") && error.contains("batch_size"), "{error}");
        let recipe = Recipe {
            classifier: "x".into(),
            lambda: 1.,
            ..Recipe::default()
        };
        assert!(recipe.check().unwrap_err().to_string().contains("lambda"));
        assert!(
            Recipe::default()
                .check()
                .unwrap_err()
                .to_string()
                .contains("--classifier")
        );
    }

    #[test]
    fn a_recipe_survives_being_written() {
        let recipe = Recipe {
            classifier: "x".into(),
            attack: Some("pgd".into()),
            ..Recipe::default()
        };
        let again: Recipe = toml::from_str(&toml::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{recipe:?}"));
    }
}
