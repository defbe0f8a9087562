//! Black box (Papernot et al. 2017): the attacker sees only the labels that the whole model gives, trains a substitute on them and
//! attacks that.

mod substitute;
#[cfg(test)]
mod tests;

use advae_sdk::prelude::*;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019): 4,800 label queries.
    pub struct BlackBoxSettings {
        /// Classifier plugin with the architecture of the substitute, such as model_b.so. If empty, that of the attacked classifier.
        substitute: String = String::new(),
        /// Rounds of training. Before each round except the first, the attacker doubles its images.
        rounds: u64 = 6,
        /// Epochs per round.
        epochs: u64 = 10,
        /// Images per step.
        batch_size: u64 = 128,
        /// Learning rate of Adam.
        learning_rate: f64 = 1e-3,
        /// Length of the augmentation's step along the sign of the gradient.
        augmentation: f64 = 0.1,
        /// Number of images to start with, from those that the dataset sets aside.
        seeds: u64 = 150,
    }
}

struct BlackBox(BlackBoxSettings);

impl ThreatModel for BlackBox {
    type Settings = BlackBoxSettings;

    fn new(settings: BlackBoxSettings) -> Result<Self> {
        in_range("rounds", settings.rounds, 1..=16)?;
        in_range("epochs", settings.epochs, 1..=10_000)?;
        in_range("batch_size", settings.batch_size, 1..=4096)?;
        in_range("learning_rate", settings.learning_rate, 1e-10..=100.)?;
        in_range("augmentation", settings.augmentation, 1e-6..=1.)?;
        in_range("seeds", settings.seeds, 1..=10_000)?;
        Ok(Self(settings))
    }

    fn access(&self) -> Access {
        Access {
            target: Target::Substitute,
            gradients: true,
            logits: true,
            labels: true,
            query_limit: None,
        }
    }

    fn prepare(&self, services: &Services) -> Result<Option<RemoteModel>> {
        let model = services.fresh_classifier(&self.0.substitute, services.pass().seed)?;
        let (x, _) = services.seeds()?;
        let x = x.narrow(0, 0, x.dim(0)?.min(self.0.seeds as usize))?;
        let ask = |x: &Tensor| services.labels(x);
        substitute::train(&self.0, services.pass(), &model, x, ask)?;
        Ok(Some(model))
    }
}

export_plugin! { threat_model: BlackBox }
