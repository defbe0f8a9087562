//! The image of the generator that is nearest to a given one.

use crate::PIXELS;
use crate::generator::{Generator, LATENT};
use advae_sdk::candle_core::{D, Var};
use advae_sdk::nn::vjp;
use advae_sdk::prelude::*;

/// Gradient descent with momentum on `z`, from several starts.
///
/// Bound by compute: a step takes a start through the generator and back, 47 million multiply-adds; the arithmetic here is less than
/// a hundredth of it.
#[derive(Clone, Debug)]
pub struct Projection {
    /// Name of the preset.
    pub name: &'static str,
    /// L.
    pub steps: usize,
    /// R.
    pub restarts: usize,
    /// Rate.
    pub learning_rate: f64,
    /// Share of the last step that a step keeps.
    pub momentum: f64,
    /// Factor on the rate in the last fifth.
    pub decay: f64,
    /// Whether every start is 0.
    pub constant_start: bool,
}

impl Projection {
    /// Images `x` `[N, 1, 28, 28]` to generated ones. Starts are `z ~ N(0, 1/128)`, drawn for each sample by itself.
    pub fn run(&self, generator: &Generator, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let n = x.dim(0)?;
        let rows = n * self.restarts;
        let starts = Tensor::zeros((n, self.restarts * LATENT), x.dtype(), x.device())?;
        let starts = match self.constant_start {
            true => starts,
            false => (pass.randn_like(&starts, 0)? * (1. / LATENT as f64).sqrt())?,
        };
        let mut z = starts.reshape((rows, LATENT))?;
        let mut velocity = z.zeros_like()?;
        let target = x.reshape((n, 1, PIXELS))?;
        let target = target
            .broadcast_as((n, self.restarts, PIXELS))?
            .reshape((rows, PIXELS))?;
        for step in 0..self.steps {
            let variable = Var::from_tensor(&z)?;
            let image = generator.forward(pass, variable.as_tensor())?;
            let difference = (image.detach().reshape((rows, PIXELS))? - &target)?;
            // The gradient of each row's mean squared error.
            let slope = (difference * (2. / PIXELS as f64))?.reshape(image.shape())?;
            let Some(gradient) = vjp(variable.as_tensor(), &image, &slope)?.0 else {
                advae_sdk::candle_core::bail!("no gradient reached z")
            };
            velocity = ((velocity * self.momentum)? + gradient)?;
            z = (z - (&velocity * self.rate(step))?)?;
        }
        let image = generator.forward(pass, &z)?.detach().reshape((rows, PIXELS))?;
        let errors = (&image - &target)?.sqr()?.mean(D::Minus1)?;
        let best = self.best(&errors.to_vec1::<f32>()?);
        image
            .index_select(&Tensor::new(best, x.device())?, 0)?
            .reshape(x.shape())
    }

    fn rate(&self, step: usize) -> f64 {
        match 5 * step >= 4 * self.steps {
            true => self.learning_rate * self.decay,
            false => self.learning_rate,
        }
    }

    /// The row of each sample's smallest error, the first of equals.
    fn best(&self, errors: &[f32]) -> Vec<u32> {
        let smallest = |errors: &[f32]| {
            (0..errors.len())
                .min_by(|a, b| errors[*a].total_cmp(&errors[*b]))
                .unwrap_or(0)
        };
        let samples = errors.chunks(self.restarts).enumerate();
        samples
            .map(|(i, errors)| (i * self.restarts + smallest(errors)) as u32)
            .collect()
    }

    /// In words.
    pub fn describe(&self) -> String {
        let start = if self.constant_start { ", constant start" } else { "" };
        format!(
            "projection {} (L {}, R {}{start})",
            self.name, self.steps, self.restarts
        )
    }
}
