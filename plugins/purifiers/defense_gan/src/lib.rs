//! DefenseGAN (Samangouei, Kabkab and Chellappa 2018) for MNIST: an image is replaced by the nearest one that a generator makes,
//! found by gradient descent from several starts.

mod critic;
mod generator;
mod projection;
mod settings;
mod wgan;

use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde_json::{Map, Value};
use generator::Generator;
use projection::Projection;
use settings::{DefenseGanSettings, WganSettings};

/// Shape of an image.
const INPUT: [usize; 3] = [1, 28, 28];
/// Pixels of an image.
const PIXELS: usize = 28 * 28;

struct DefenseGan {
    generator: Generator,
    projection: Projection,
}

impl Purifier for DefenseGan {
    type Settings = DefenseGanSettings;
    const INPUT: Option<[usize; 3]> = Some(INPUT);
    const RANDOM: bool = true;
    /// BPDA as published. The true derivative leads back through every step of the descent, and explodes on the way: a poor guide.
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Identity, BackwardRule::Exact];
    const THREADING: Threading = Threading::Caller;

    fn new(settings: DefenseGanSettings, weights: &Weights) -> Result<Self> {
        Ok(Self {
            generator: Generator::new(&weights.pp("generator"))?,
            projection: settings.projection()?,
        })
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if pass.track {
            bail!("the generator learns against a critic: give objective = \"own\" in the recipe")
        }
        let pass = Pass {
            train: false,
            batch_statistics: false,
            ..pass.clone()
        };
        self.projection.run(&self.generator, &pass, x)
    }

    /// From one start that is always the same nothing is.
    fn random(&self) -> bool {
        !self.projection.constant_start
    }

    /// Some 48 restarts a call: enough for the kernels, and soon over.
    fn batch(&self) -> Option<usize> {
        Some((48 / self.projection.restarts).max(1))
    }

    fn note(&self) -> String {
        let trained = self.generator.trained();
        format!(
            "{}, generator trained for {trained} iterations",
            self.projection.describe()
        )
    }

    fn own_settings() -> Vec<advae_sdk::Setting> {
        advae_sdk::describe::<WganSettings>()
    }

    fn teacher(&self, own: &Map<String, Value>, weights: &Weights) -> Result<Box<dyn Teacher>> {
        let settings = advae_sdk::read::<WganSettings>(own)?;
        Ok(Box::new(wgan::Wgan::new(settings, self.generator.clone(), weights)?))
    }
}

export_plugin! {
    purifier: DefenseGan,
    weights: { "default" => include_bytes!("../weights/default.safetensors") },
}
