//! Random noise, the best of ten: my_classifier has robust accuracy 45.1 % on mnist-1k at Linf 0.3.
//!
//! cargo build --release && advae-host eval --attack target/release/libmy_attack.so --classifier model_d.so

use advae_sdk::prelude::*;

settings! {
    /// An attack that needs labels only.
    pub struct NoiseSettings {
        /// Radius of the Linf ball.
        epsilon: f64 = 0.3,
        /// Corners of the ball that are tried.
        tries: u64 = 10,
    }
}

struct Noise(NoiseSettings);

impl Attack for Noise {
    type Settings = NoiseSettings;

    fn new(settings: NoiseSettings) -> Result<Self> {
        in_range("epsilon", settings.epsilon, 0. ..=1.)?;
        in_range("tries", settings.tries, 1..=10_000)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.0.epsilon),
            passes: self.0.tries,
            ..AttackInfo::new(Norm::Linf)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let mut x_adv = x.clone(); // [N, C, H, W]
        for draw in 0..self.0.tries {
            // Keyed by seed, sample and draw: the same whatever the batch.
            let noise = oracle.draw(draw).pass().randn_like(x, 0)?;
            let corner = oracle.clip(&(x + (noise.sign()? * self.0.epsilon)?)?)?;
            let wrong = oracle.labels(&corner)?.ne(y)?.reshape(((), 1, 1, 1))?;
            x_adv = wrong.broadcast_as(x.shape())?.where_cond(&corner, &x_adv)?;
        }
        Ok(x_adv.into())
    }
}

export_plugin! { attack: Noise }

#[cfg(test)]
mod tests;
