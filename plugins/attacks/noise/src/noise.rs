//! Random noise: a control. An attack that finds no more than this does not work.

use advae_sdk::attack::{Active, Best};
use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

settings! {
    /// The best of a hundred random images.
    pub struct NoiseSettings {
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Distribution of the noise: uniform (in the ball) or sign (a corner of the Linf ball).
        kind: Kind = Kind::Uniform,
        /// Number of images that are tried, one query per image. With tries=1 the attack makes no query.
        tries: u64 = 100,
    }
}

/// How noise is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "snake_case")]
pub enum Kind {
    /// Uniformly from the ball.
    Uniform,
    /// Epsilon or minus epsilon in every pixel.
    Sign,
}

/// The best of several random images of the ball.
pub struct Noise(NoiseSettings);

impl Attack for Noise {
    type Settings = NoiseSettings;

    fn new(settings: NoiseSettings) -> Result<Self> {
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        in_range("tries", settings.tries, 1..=10_000_000)?;
        if (settings.kind, settings.norm) == (Kind::Sign, Norm::L2) {
            bail!("kind is sign and norm is l2, whose ball has no corners: choose kind=uniform or norm=linf")
        }
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.0.epsilon),
            passes: self.0.tries,
            random_start: Some(true),
            ..AttackInfo::new(self.0.norm)
        }
    }

    /// A sample whose search may stop ends at its first adversarial image; of the others the one with the lowest margin is returned.
    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        if self.0.tries == 1 {
            return Ok(self.draw(oracle, x)?.into());
        }
        let objective = Goal::Untargeted.objective(oracle, x, y)?;
        let mut best = Best::new(oracle.samples());
        let mut active = Active::new(oracle, &objective, x, x.clone());
        for _ in 0..self.0.tries {
            active.x_adv = self.draw(&active.oracle, &active.x)?;
            let logits = active.oracle.logits(&active.x_adv)?;
            let adversarial = active.objective.is_adversarial(&logits)?;
            let scores: Vec<f32> = active.objective.margin(&logits)?.neg()?.to_vec1()?;
            best.offer(active.places(), &active.x_adv, &adversarial, &scores)?;
            active.end_found(&adversarial)?;
            if active.is_empty() {
                break;
            }
            active.next_draw();
        }
        Ok(best.images(x)?.into())
    }
}

impl Noise {
    fn draw(&self, oracle: &Oracle, x: &Tensor) -> Result<Tensor> {
        let NoiseSettings {
            norm, epsilon, kind, ..
        } = self.0;
        let uniform = norm.random_start(oracle.pass(), x, epsilon)?;
        let noisy = match kind {
            Kind::Uniform => uniform,
            Kind::Sign => (x + ((uniform - x)?.sign()? * epsilon)?)?,
        };
        oracle.clip(&noisy)
    }
}
