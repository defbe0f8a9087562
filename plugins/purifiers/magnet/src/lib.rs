//! MagNet (Meng and Chen 2017) for MNIST, its reformer: an auto-encoder trained on images with Gaussian noise, which never saw an attack.
//! The auto-encoder is AdvAE's, so that only the training differs. (MagNet's detectors refuse images; a purifier cannot.)

use advae_sdk::nn::{Adam, Param};
use advae_sdk::prelude::*;
use advae_sdk::serde_json::{Map, Value};
use mnist_models::{AutoEncoder, AutoEncoderSettings};
use std::sync::Arc;

settings! {
    /// Training of the reformer.
    pub struct ReformerSettings {
        /// Standard deviation of the noise that is added to the training images.
        noise: f64 = 0.1,
    }
}

struct MagNet {
    reformer: Arc<AutoEncoder>,
    params: Vec<Param>,
}

impl Purifier for MagNet {
    type Settings = AutoEncoderSettings;
    const INPUT: Option<[usize; 3]> = AutoEncoder::INPUT;
    const THREADING: Threading = AutoEncoder::THREADING;
    const BATCH: Option<usize> = AutoEncoder::BATCH;

    fn new(settings: AutoEncoderSettings, weights: &Weights) -> Result<Self> {
        Ok(Self {
            reformer: Arc::new(AutoEncoder::new(settings, weights)?),
            params: weights.params(),
        })
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.reformer.purify(pass, x)
    }

    fn own_settings() -> Vec<advae_sdk::Setting> {
        advae_sdk::describe::<ReformerSettings>()
    }

    fn teacher(&self, own: &Map<String, Value>, _: &Weights) -> Result<Box<dyn Teacher>> {
        let settings: ReformerSettings = advae_sdk::read(own)?;
        in_range("noise", settings.noise, 0. ..=10.)?;
        Ok(Box::new(Denoising {
            settings,
            reformer: self.reformer.clone(),
            learner: Learner::new(self.params.clone(), Adam::new()),
        }))
    }
}

/// Mean squared error between reformed noisy images and clean ones.
struct Denoising {
    settings: ReformerSettings,
    reformer: Arc<AutoEncoder>,
    learner: Learner,
}

impl Teacher for Denoising {
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>> {
        let (pass, clean) = (&lesson.pass, &lesson.clean);
        let noise = (pass.randn_like(clean, 0)? * self.settings.noise)?;
        let noisy = nn::clamp(&(clean + noise)?, 0., 1.)?;
        let loss = (self.reformer.purify(pass, &noisy)? - clean)?.sqr()?.mean_all()?;
        self.learner.step(&loss, lesson.learning_rate)?;
        Ok(vec![("loss", advae_sdk::scalar(&loss)?)])
    }

    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)> {
        vec![("reformer", &mut self.learner)]
    }
}

export_plugin! {
    purifier: MagNet,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_refuses_values_out_of_range() {
        let weights = Weights::init(1);
        let model = MagNet::new(AutoEncoderSettings::default(), &weights).unwrap();
        for (text, said) in [
            (r#"{"noise": 1e300}"#, "noise is 1e300: choose a value from 0 to 10"),
            (r#"{"noise": -0.5}"#, "noise is -0.5: choose a value from 0 to 10"),
        ] {
            let own = advae_sdk::serde_json::from_str(text).unwrap();
            let error = model.teacher(&own, &weights).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
