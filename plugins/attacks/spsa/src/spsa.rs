//! Simultaneous perturbation stochastic approximation (Uesato et al. 2018, "Adversarial risk and the dangers of evaluating against weak
//! attacks", algorithm 1): descends the margin by Adam along gradients that are estimated from differences of logits. It needs no
//! gradients of the model, so what hides them does not stop it.

use advae_sdk::attack::{Active, Adam, rows, stack};
use advae_sdk::prelude::*;
use rand::Rng;

settings! {
    /// Defaults of the paper, with 128 pairs per step.
    pub struct SpsaSettings {
        /// Radius of the Linf ball.
        epsilon: f64 = 0.3,
        /// Number of steps.
        steps: u64 = 100,
        /// Pairs of images per step. Their margins give an estimate of the gradient. Each pair costs two queries.
        pairs: u64 = 128,
        /// Distance in every pixel between the images of a pair and the current image.
        delta: f64 = 0.01,
        /// Learning rate of Adam.
        learning_rate: f64 = 0.01,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
    }
}

/// Stream of the signs among a sample's generators.
const SIGNS: u64 = 0x5350;

/// SPSA in the Linf ball.
pub struct Spsa(SpsaSettings);

impl Attack for Spsa {
    type Settings = SpsaSettings;

    fn new(settings: SpsaSettings) -> Result<Self> {
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        in_range("steps", settings.steps, 1..=100_000)?;
        in_range("pairs", settings.pairs, 1..=100_000)?;
        in_range("delta", settings.delta, 1e-6..=1e6)?;
        in_range("learning_rate", settings.learning_rate, 1e-10..=100.)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.0.epsilon),
            targeted: self.0.target.targeted(),
            passes: self.0.steps * (2 * self.0.pairs + 1) + 1,
            random_start: Some(false),
            ..AttackInfo::new(Norm::Linf)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = self.0.target.objective(oracle, x, y)?;
        let mut active = Active::new(oracle, &objective, x, x.clone());
        let pixels = x.elem_count() / x.dim(0)?;
        let mut adams: Vec<Adam> = (0..oracle.samples()).map(|_| Adam::new(pixels)).collect();
        for _ in 0..self.0.steps {
            if stop(&mut active)? {
                break;
            }
            let gradients = self.estimate(&mut active)?;
            let mut images = rows(&active.x_adv)?;
            for (row, place) in active.places().iter().enumerate() {
                adams[*place].step(&mut images[row], &gradients[row], self.0.learning_rate);
            }
            let moved = stack(&images, x)?;
            let projected = Norm::Linf.project(&moved, &active.x, self.0.epsilon)?;
            active.x_adv = active.oracle.clip(&projected)?;
        }
        Ok(Perturbed {
            x_adv: active.images()?,
            found: None,
            targets: objective.targets(),
        })
    }
}

impl Spsa {
    /// Mean of `[m(x + delta v) - m(x - delta v)] / (2 delta) v` over random signs `v`, for the margin `m` of every active sample.
    fn estimate(&self, active: &mut Active) -> Result<Vec<Vec<f32>>> {
        let images = rows(&active.x_adv)?;
        let mut sums: Vec<Vec<f32>> = images.iter().map(|image| vec![0.; image.len()]).collect();
        for _ in 0..self.0.pairs {
            let signs = |row: usize| {
                let mut rng = active.oracle.pass().rng(row, SIGNS);
                images[row]
                    .iter()
                    .map(|_| if rng.random() { 1f32 } else { -1. })
                    .collect::<Vec<_>>()
            };
            let signs: Vec<Vec<f32>> = (0..images.len()).map(signs).collect();
            let v = stack(&signs, &active.x_adv)?;
            let way = (v * self.0.delta)?;
            let margin = |image: &Tensor| active.objective.margin(&active.oracle.logits(image)?)?.to_vec1::<f32>();
            let (above, below) = (margin(&(&active.x_adv + &way)?)?, margin(&(&active.x_adv - &way)?)?);
            for (row, (sum, signs)) in sums.iter_mut().zip(&signs).enumerate() {
                let slope = (above[row] - below[row]) / (2. * self.0.delta * self.0.pairs as f64) as f32;
                sum.iter_mut().zip(signs).for_each(|(sum, sign)| *sum += slope * sign);
            }
            active.next_draw();
        }
        Ok(sums)
    }
}

/// Ends the searches that have succeeded, where that is allowed. Whether none is left.
fn stop(active: &mut Active) -> Result<bool> {
    if active.oracle.early_stop() {
        let done = active.objective.is_adversarial(&active.oracle.logits(&active.x_adv)?)?;
        active.end(&done)?;
    }
    Ok(active.is_empty())
}
