//! APE-GAN (Shen et al. 2017) for MNIST: a generator takes adversarial images to images that a discriminator cannot tell from clean
//! ones.

use advae_sdk::nn::{
    Adam, BatchNorm2d, Conv2d, ConvTranspose2d, Linear, Net, NetBuilder, Padding, Param, flatten, leaky_relu, relu,
};
use advae_sdk::prelude::*;
use advae_sdk::serde_json::{Map, Value};

/// Shape of an image.
const INPUT: [usize; 3] = [1, 28, 28];

settings! {
    /// Settings of the training.
    pub struct ApeGanSettings {
        /// Weight of the mean squared error.
        content: f64 = 0.7,
        /// Weight of the generator's loss against the discriminator.
        adversarial: f64 = 0.3,
        /// Decay rate of Adam's mean of the gradients.
        beta1: f64 = 0.5,
    }
}

/// Convolutions 5x5 of stride 2 to 64 and 128 channels, transposed ones back to 64 and 1; batch norm and ReLU between them, a sigmoid at
/// the end.
#[derive(Clone)]
struct Generator {
    net: Net,
    params: Vec<Param>,
}

impl Purifier for Generator {
    type Settings = NoSettings;
    const INPUT: Option<[usize; 3]> = Some(INPUT);
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let mut net = NetBuilder::new(INPUT);
        let mut x = net.input();
        for (name, from, to) in [("down1", 1, 64), ("down2", 64, 128)] {
            let at = weights.pp(name);
            x = net.conv2d(x, &Conv2d::new(&at, from, to, 5, 2, Padding::Same)?)?;
            x = net.batch_norm(x, &BatchNorm2d::new(&at.pp("norm"), to)?)?;
            x = net.relu(x);
        }
        let at = weights.pp("up1");
        x = net.conv_transpose2d(x, &ConvTranspose2d::new(&at, 128, 64, 5, 2, Padding::Same)?)?;
        x = net.batch_norm(x, &BatchNorm2d::new(&at.pp("norm"), 64)?)?;
        x = net.relu(x);
        let last = ConvTranspose2d::new(&weights.pp("up2"), 64, 1, 5, 2, Padding::Same)?;
        x = net.conv_transpose2d(x, &last)?;
        let x = net.sigmoid(x);
        Ok(Self {
            net: net.build(x)?,
            params: weights.params(),
        })
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.net.forward(pass, x)
    }

    fn own_settings() -> Vec<advae_sdk::Setting> {
        advae_sdk::describe::<ApeGanSettings>()
    }

    fn teacher(&self, own: &Map<String, Value>, weights: &Weights) -> Result<Box<dyn Teacher>> {
        let settings: ApeGanSettings = advae_sdk::read(own)?;
        in_range("content", settings.content, 0. ..=1e6)?;
        in_range("adversarial", settings.adversarial, 0. ..=1e6)?;
        in_range("beta1", settings.beta1, 0. ..=0.9999)?;
        let adam = || {
            let mut adam = Adam::new();
            adam.beta1 = settings.beta1;
            adam
        };
        let discriminator = Discriminator::new(&weights.pp("discriminator"))?;
        Ok(Box::new(Game {
            making: Learner::new(self.params.clone(), adam()),
            judging: Learner::new(discriminator.params.clone(), adam()),
            settings,
            generator: self.clone(),
            discriminator,
        }))
    }
}

/// Images to the logit of being clean: convolutions 5x5 of stride 2 to 64 and 128 channels with leaky ReLU, FC to one.
struct Discriminator {
    convolutions: [Conv2d; 2],
    last: Linear,
    params: Vec<Param>,
}

impl Discriminator {
    fn new(weights: &Weights) -> Result<Self> {
        Ok(Self {
            convolutions: [
                Conv2d::new(&weights.pp("conv1"), 1, 64, 5, 2, Padding::Same)?,
                Conv2d::new(&weights.pp("conv2"), 64, 128, 5, 2, Padding::Same)?,
            ],
            last: Linear::new(&weights.pp("fc"), 128 * 49, 1)?,
            params: weights.params(),
        })
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for layer in &self.convolutions {
            x = leaky_relu(&layer.forward(pass, &x)?, 0.2)?;
        }
        self.last.forward(pass, &flatten(&x)?)
    }
}

/// Both at once.
struct Game {
    settings: ApeGanSettings,
    generator: Generator,
    discriminator: Discriminator,
    making: Learner,
    judging: Learner,
}

impl Teacher for Game {
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>> {
        let (pass, clean) = (&lesson.pass, &lesson.clean);
        let n = clean.dim(0)?;
        // Clean images are to stay what they are.
        let x = Tensor::cat(&[lesson.adversarial()?, clean], 0)?;
        let made = self.generator.purify(pass, &x)?;
        let judged = Tensor::cat(&[clean, &made.detach().narrow(0, 0, n)?], 0)?;
        let logits = self.discriminator.forward(pass, &judged)?;
        let real = softplus(&logits.narrow(0, 0, n)?.neg()?)?.mean_all()?;
        let fake = softplus(&logits.narrow(0, n, n)?)?.mean_all()?;
        let discriminator = (real + fake)?;
        self.judging.step(&discriminator, lesson.learning_rate)?;
        let error = (&made - Tensor::cat(&[clean, clean], 0)?)?.sqr()?.mean_all()?;
        let constant = pass.clone().with_track(false);
        let fooled = self.discriminator.forward(&constant, &made.narrow(0, 0, n)?)?;
        let fooled = softplus(&fooled.neg()?)?.mean_all()?;
        let loss = ((&error * self.settings.content)? + (&fooled * self.settings.adversarial)?)?;
        self.making.step(&loss, lesson.learning_rate)?;
        Ok(vec![
            ("loss", advae_sdk::scalar(&loss)?),
            ("squared_error", advae_sdk::scalar(&error)?),
            ("discriminator", advae_sdk::scalar(&discriminator)?),
        ])
    }

    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)> {
        vec![("generator", &mut self.making), ("discriminator", &mut self.judging)]
    }
}

/// `ln(1 + e^x)`, without overflow.
fn softplus(x: &Tensor) -> Result<Tensor> {
    relu(x)? + (x.abs()?.neg()?.exp()? + 1.)?.log()?
}

export_plugin! {
    purifier: Generator,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{Device, Var};

    #[test]
    fn softplus_has_the_logistic_derivative() {
        let x = Var::from_slice(&[-800f64, -1.5, 0.3, 800.], 4, &Device::Cpu).unwrap();
        let y = softplus(x.as_tensor()).unwrap();
        let values = y.to_vec1::<f64>().unwrap();
        assert_eq!((values[0], values[3]), (0., 800.));
        assert!((values[1] - (-1.5f64).exp().ln_1p()).abs() < 1e-12);
        let gradient = y.sum_all().unwrap().backward().unwrap();
        let gradient = gradient.get(x.as_tensor()).unwrap().to_vec1::<f64>().unwrap();
        for (g, x) in gradient.iter().zip([-800f64, -1.5, 0.3, 800.]) {
            assert!((g - 1. / (1. + (-x).exp())).abs() < 1e-12, "{x}: {g}");
        }
    }

    #[test]
    fn training_refuses_values_out_of_range() {
        let weights = Weights::init(1);
        let model = Generator::new(NoSettings::default(), &weights).unwrap();
        for (text, said) in [
            (
                r#"{"content": 1e300}"#,
                "content is 1e300: choose a value from 0 to 1000000",
            ),
            (
                r#"{"adversarial": -0.5}"#,
                "adversarial is -0.5: choose a value from 0 to 1000000",
            ),
            (r#"{"beta1": 1.5}"#, "beta1 is 1.5: choose a value from 0 to 0.9999"),
        ] {
            let own = advae_sdk::serde_json::from_str(text).unwrap();
            let error = model.teacher(&own, &weights).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn images_keep_their_shape() {
        let generator = Generator::new(NoSettings::default(), &Weights::init(1)).unwrap();
        let x = Tensor::zeros((2, 1, 28, 28), advae_sdk::candle_core::DType::F32, &Device::Cpu).unwrap();
        assert_eq!(generator.purify(&Pass::eval(), &x).unwrap().dims(), [2, 1, 28, 28]);
    }
}
