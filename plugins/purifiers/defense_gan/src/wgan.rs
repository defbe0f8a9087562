//! WGAN with gradient penalty (Gulrajani et al. 2017).

use crate::critic::Critic;
use crate::generator::{Generator, LATENT};
use crate::settings::WganSettings;
use advae_sdk::nn::Adam;
use advae_sdk::prelude::*;

/// Streams of random numbers within a step.
const CRITIC_NOISE: u64 = 1;
const MIXING: u64 = 2;
const GENERATOR_NOISE: u64 = 3;

/// A generator and its critic.
pub struct Wgan {
    settings: WganSettings,
    generator: Generator,
    critic: Critic,
    making: Learner,
    judging: Learner,
}

impl Wgan {
    /// The critic starts from `weights`.
    pub fn new(settings: WganSettings, generator: Generator, weights: &Weights) -> Result<Self> {
        settings.check()?;
        let adam = || {
            let mut adam = Adam::new();
            (adam.beta1, adam.beta2) = (settings.beta1, settings.beta2);
            adam
        };
        let critic = Critic::new(&weights.pp("critic"), settings.critic_channels as usize)?;
        Ok(Self {
            making: Learner::new(generator.params.clone(), adam()),
            judging: Learner::new(critic.params.clone(), adam()),
            settings,
            generator,
            critic,
        })
    }

    /// One step of the critic: its loss, the distance that it sees, and the penalty.
    fn judge(&mut self, lesson: &Lesson) -> Result<[f64; 3]> {
        let (real, constant) = (&lesson.clean, lesson.pass.clone().with_track(false));
        let n = real.dim(0)?;
        let fake = self.make(&constant, real, CRITIC_NOISE)?;
        let both = self.critic.forward(&lesson.pass, &Tensor::cat(&[real, &fake], 0)?)?;
        let [real_score, fake_score] = [both.narrow(0, 0, n)?.mean_all()?, both.narrow(0, n, n)?.mean_all()?];
        let distance = (&real_score - &fake_score)?;
        let mix = lesson.pass.rand_uniform(&[n, 1, 1, 1], 0., 1., MIXING, real.device())?;
        let between = (real + (fake - real)?.broadcast_mul(&mix)?)?;
        let penalty = self.critic.penalty(&lesson.pass, &between, self.settings.penalty)?;
        let mut gradients = distance.neg()?.backward()?;
        for (param, more) in penalty.gradients {
            let at = param.var().as_tensor();
            let sum = match gradients.get(at) {
                Some(gradient) => (gradient + more)?,
                None => more,
            };
            gradients.insert(at, sum);
        }
        self.judging.step_along(&gradients, lesson.learning_rate)?;
        let distance = advae_sdk::scalar(&distance)?;
        Ok([
            self.settings.penalty * penalty.value - distance,
            distance,
            penalty.value,
        ])
    }

    /// One step of the generator: minus the critic's score.
    fn improve(&mut self, lesson: &Lesson) -> Result<f64> {
        let fake = self.make(&lesson.pass, &lesson.clean, GENERATOR_NOISE)?;
        let constant = lesson.pass.clone().with_track(false);
        let loss = self.critic.forward(&constant, &fake)?.mean_all()?.neg()?;
        self.making.step(&loss, lesson.learning_rate)?;
        self.generator.set_trained(self.making.steps())?;
        advae_sdk::scalar(&loss)
    }

    /// As many images as there are in `like`, from noise of their own.
    fn make(&self, pass: &Pass, like: &Tensor, stream: u64) -> Result<Tensor> {
        let noise = Tensor::zeros((like.dim(0)?, LATENT), like.dtype(), like.device())?;
        self.generator.forward(pass, &pass.randn_like(&noise, stream)?)
    }
}

impl Teacher for Wgan {
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>> {
        let [loss, distance, penalty] = self.judge(lesson)?;
        let mut measured = vec![("loss", loss), ("distance", distance), ("penalty", penalty)];
        if self.judging.steps().is_multiple_of(self.settings.critic_steps) {
            measured.push(("generator", self.improve(lesson)?));
        }
        Ok(measured)
    }

    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)> {
        vec![("generator", &mut self.making), ("critic", &mut self.judging)]
    }
}
