//! Defense-VAE (Li and Ji 2019) for MNIST: a variational auto-encoder whose input is adversarial and whose output is clean.

use advae_sdk::nn::{Adam, Conv2d, ConvTranspose2d, Linear, Net, NetBuilder, Padding, Param, relu};
use advae_sdk::prelude::*;
use advae_sdk::serde_json::{Map, Value};

/// Shape of an image.
const INPUT: [usize; 3] = [1, 28, 28];
/// Numbers that an image is made from.
const LATENT: usize = 64;

settings! {
    /// Settings of the training.
    pub struct VaeSettings {
        /// Weight of the KL divergence between the code and a standard normal distribution. It is added to the squared error,
        /// which is summed over an image.
        divergence: f64 = 0.1,
    }
}

/// Encoder: convolutions 5x5 of stride 2 to 32 and 64 channels, FC to mean and logarithmic variance of the code; decoder: its mirror.
#[derive(Clone)]
struct Vae {
    encoder: Net,
    first: Linear,
    decoder: Net,
    params: Vec<Param>,
}

impl Vae {
    /// Mean and logarithmic variance `[N, 64]` of the codes of images.
    fn encode(&self, pass: &Pass, x: &Tensor) -> Result<[Tensor; 2]> {
        let both = self.encoder.forward(pass, x)?;
        Ok([both.narrow(1, 0, LATENT)?, both.narrow(1, LATENT, LATENT)?])
    }

    /// Images from codes.
    fn decode(&self, pass: &Pass, code: &Tensor) -> Result<Tensor> {
        let map = relu(&self.first.forward(pass, &code.contiguous()?)?)?;
        self.decoder.forward(pass, &map.reshape((code.dim(0)?, 64, 7, 7))?)
    }
}

impl Purifier for Vae {
    type Settings = NoSettings;
    const INPUT: Option<[usize; 3]> = Some(INPUT);
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let mut net = NetBuilder::new(INPUT);
        let mut x = net.input();
        for (name, from, to) in [("enc1", 1, 32), ("enc2", 32, 64)] {
            let layer = Conv2d::new(&weights.pp(name), from, to, 5, 2, Padding::Same)?;
            x = net.conv2d(x, &layer)?;
            x = net.relu(x);
        }
        x = net.linear(x, &Linear::new(&weights.pp("code"), 64 * 49, 2 * LATENT)?)?;
        let encoder = net.build(x)?;
        let first = Linear::new(&weights.pp("dec1"), LATENT, 64 * 49)?;
        let mut net = NetBuilder::new([64, 7, 7]);
        let mut x = net.input();
        for (name, from, to) in [("dec2", 64, 32), ("dec3", 32, 1)] {
            let layer = ConvTranspose2d::new(&weights.pp(name), from, to, 5, 2, Padding::Same)?;
            x = net.conv_transpose2d(x, &layer)?;
            x = if to == 1 { net.sigmoid(x) } else { net.relu(x) };
        }
        Ok(Self {
            encoder,
            first,
            decoder: net.build(x)?,
            params: weights.params(),
        })
    }

    /// By the mean of the code: no randomness that an attacker would have to average over.
    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let [mean, _] = self.encode(pass, x)?;
        self.decode(pass, &mean)
    }

    fn own_settings() -> Vec<advae_sdk::Setting> {
        advae_sdk::describe::<VaeSettings>()
    }

    fn teacher(&self, own: &Map<String, Value>, _: &Weights) -> Result<Box<dyn Teacher>> {
        let settings: VaeSettings = advae_sdk::read(own)?;
        in_range("divergence", settings.divergence, 0. ..=1e6)?;
        Ok(Box::new(Variational {
            settings,
            vae: self.clone(),
            learner: Learner::new(self.params.clone(), Adam::new()),
        }))
    }
}

/// Squared error between what comes of adversarial and clean images and the clean ones, and the code's divergence.
struct Variational {
    settings: VaeSettings,
    vae: Vae,
    learner: Learner,
}

impl Teacher for Variational {
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>> {
        let n = lesson.clean.dim(0)?;
        let x = Tensor::cat(&[lesson.adversarial()?, &lesson.clean], 0)?;
        let aim = Tensor::cat(&[&lesson.clean, &lesson.clean], 0)?;
        let [mean, log_variance] = self.vae.encode(&lesson.pass, &x)?;
        // Noise for the two images of a sample, drawn from the sample's own generator.
        let noise = Tensor::zeros((n, 2 * LATENT), x.dtype(), x.device())?;
        let noise = lesson.pass.randn_like(&noise, 0)?;
        let noise = Tensor::cat(&[noise.narrow(1, 0, LATENT)?, noise.narrow(1, LATENT, LATENT)?], 0)?;
        let code = (&mean + (&log_variance * 0.5)?.exp()? * noise)?;
        let error = (self.vae.decode(&lesson.pass, &code)? - aim)?.sqr()?.sum_all()?;
        let divergence = divergence(&mean, &log_variance)?;
        let [error, divergence] = [(error / (2 * n) as f64)?, (divergence / (2 * n) as f64)?];
        let loss = (&error + (&divergence * self.settings.divergence)?)?;
        self.learner.step(&loss, lesson.learning_rate)?;
        Ok(vec![
            ("loss", advae_sdk::scalar(&loss)?),
            ("squared_error", advae_sdk::scalar(&error)?),
            ("divergence", advae_sdk::scalar(&divergence)?),
        ])
    }

    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)> {
        vec![("vae", &mut self.learner)]
    }
}

/// `KL(N(mean, e^log_variance) || N(0, 1))`, summed.
fn divergence(mean: &Tensor, log_variance: &Tensor) -> Result<Tensor> {
    let terms = ((mean.sqr()? + log_variance.exp()?)? - log_variance)?;
    (terms - 1.)?.sum_all()? * 0.5
}

export_plugin! {
    purifier: Vae,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Device;

    #[test]
    fn the_divergence_is_that_of_two_normal_distributions() {
        let at = |mean: f64, deviation: f64| {
            let mean = Tensor::new(&[mean], &Device::Cpu).unwrap();
            let log_variance = Tensor::new(&[2. * deviation.ln()], &Device::Cpu).unwrap();
            divergence(&mean, &log_variance).unwrap().to_scalar::<f64>().unwrap()
        };
        assert!(at(0., 1.).abs() < 1e-15);
        // ln(1 / s) + (s^2 + m^2) / 2 - 1/2.
        assert!((at(0.7, 2.) - (-(2f64.ln()) + (4. + 0.49) / 2. - 0.5)).abs() < 1e-12);
    }

    #[test]
    fn training_refuses_values_out_of_range() {
        let weights = Weights::init(1);
        let model = Vae::new(NoSettings::default(), &weights).unwrap();
        for (text, said) in [
            (
                r#"{"divergence": 1e300}"#,
                "divergence is 1e300: choose a value from 0 to 1000000",
            ),
            (
                r#"{"divergence": -0.5}"#,
                "divergence is -0.5: choose a value from 0 to 1000000",
            ),
        ] {
            let own = advae_sdk::serde_json::from_str(text).unwrap();
            let error = model.teacher(&own, &weights).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn images_keep_their_shape() {
        let weights = Weights::init(1);
        let vae = Vae::new(NoSettings::default(), &weights).unwrap();
        let x = Tensor::zeros((2, 1, 28, 28), advae_sdk::candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(vae.purify(&Pass::eval(), &x).unwrap().dims(), [2, 1, 28, 28]);
    }
}
