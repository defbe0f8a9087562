//! Projected gradient descent (Madry et al. 2017); BIM (Kurakin et al. 2016) is PGD without a random start.

use crate::batch::{Batch, positions};
use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};
use std::cmp::Ordering;

/// Largest epsilon and step: their squares summed over an image are far from what `f32` holds.
const LONGEST: f64 = 1e6;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019) for MNIST.
    pub struct PgdSettings {
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Number of steps.
        steps: u64 = 40,
        /// Length of a step. Default: 2.5 epsilon / steps, which crosses the ball; but 0.01 for linf, epsilon 0.3 and 40 steps (the
        /// paper's setting), which does not.
        step_size: Option<f64> = None,
        /// Length of a step as a multiple of epsilon; takes precedence over step_size.
        relative_step_size: Option<f64> = None,
        /// Number of searches; the best one of each sample counts.
        restarts: u64 = 1,
        /// Start at a uniform point of the ball instead of the clean image.
        random_start: bool = true,
        /// Leave a sample alone at its first adversarial iterate, where the threat model allows it.
        early_stop: bool = true,
        /// What is ascended: ce (cross-entropy) or margin (largest other logit less the label's).
        loss: Loss = Loss::Ce,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
        /// Label to lead away from: true, or predicted (on the clean image, by the attacked model).
        label: Label = Label::True,
    }
}

/// What the attack ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy.
    Ce,
    /// The negated margin.
    Margin,
}

impl Loss {
    /// Its name among the settings.
    fn name(self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::Margin => "margin",
        }
    }

    fn of(self, objective: &Objective, logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Ce => objective.loss(logits),
            Self::Margin => objective.margin(logits)?.neg(),
        }
    }
}

/// PGD in the ball of a norm.
pub struct Pgd {
    settings: PgdSettings,
    step_size: f64,
}

impl Attack for Pgd {
    type Settings = PgdSettings;

    fn new(settings: PgdSettings) -> Result<Self> {
        let epsilon = in_range("epsilon", settings.epsilon, 0. ..=LONGEST)?;
        let steps = in_range("steps", settings.steps, 1..=100_000)?;
        let restarts = in_range("restarts", settings.restarts, 1..=10_000)?;
        if restarts > 1 && !settings.random_start {
            bail!(
                "restarts is {restarts} and random_start is false: every restart would be the first again, set it to 1"
            )
        }
        let step_size = match (settings.relative_step_size, settings.step_size) {
            (Some(share), _) => epsilon * in_range("relative_step_size", share, 0. ..=LONGEST)?,
            (None, Some(length)) => in_range("step_size", length, 0. ..=LONGEST)?,
            (None, None) => default_step_size(settings.norm, epsilon, steps),
        };
        Ok(Self { settings, step_size })
    }

    fn info(&self) -> AttackInfo {
        let (steps, restarts) = (self.settings.steps, self.settings.restarts);
        let judging = if restarts > 1 { restarts } else { 0 };
        let predicting = u64::from(self.settings.label == Label::Predicted);
        AttackInfo {
            epsilon: Some(self.settings.epsilon),
            targeted: self.settings.target.targeted(),
            passes: steps * restarts + judging + predicting,
            reach: Some(steps as f64 * self.step_size),
            random_start: Some(self.settings.random_start),
            loss: Some(self.settings.loss.name().into()),
            ..AttackInfo::new(self.settings.norm)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let PgdSettings { target, label, .. } = self.settings;
        let objective = target.objective_by(label, oracle, x, y)?;
        let x_adv = match self.settings.restarts {
            1 => self.search(oracle, &objective, x)?,
            restarts => self.best_of(restarts, oracle, &objective, x)?,
        };
        Ok(Perturbed {
            x_adv,
            found: None,
            targets: objective.targets(),
        })
    }
}

/// Length of a step where none is given. From a random start the ball's far side is 2 epsilon away, and 2.5 epsilon / steps reaches
/// it. The paper's attack on MNIST stays as published: 40 steps of 0.01 move 0.4 in a ball that is 0.6 wide.
fn default_step_size(norm: Norm, epsilon: f64, steps: u64) -> f64 {
    // An epsilon that went through f32 is the paper's too.
    let paper = norm == Norm::Linf && (epsilon - 0.3).abs() < 1e-6 && steps == 40;
    if paper { 0.01 } else { 2.5 * epsilon / steps as f64 }
}

impl Pgd {
    /// One search: the first adversarial iterate of a sample that may stop there, else its last.
    fn search(&self, oracle: &Oracle, objective: &Objective, x: &Tensor) -> Result<Tensor> {
        let (norm, epsilon) = (self.settings.norm, self.settings.epsilon);
        let mut batch = Batch::new(oracle, objective, x, self.start(oracle, x)?);
        for step in 0..self.settings.steps {
            let Some(gradient) = self.gradient(&mut batch, step)? else {
                break;
            };
            let moved = (&batch.x_adv + (norm.direction(&gradient)? * self.step_size)?)?;
            batch.x_adv = batch.oracle.clip(&norm.project(&moved, &batch.x, epsilon)?)?;
        }
        batch.images()
    }

    fn start(&self, oracle: &Oracle, x: &Tensor) -> Result<Tensor> {
        let PgdSettings { norm, epsilon, .. } = self.settings;
        match self.settings.random_start {
            true => oracle.clip(&norm.random_start(oracle.pass(), x, epsilon)?),
            false => Ok(x.clone()),
        }
    }

    /// Gradient of the loss for the samples that go on; none where all have ended. A random defence is drawn afresh at
    /// every step.
    fn gradient(&self, batch: &mut Batch, step: u64) -> Result<Option<Tensor>> {
        let oracle = batch.oracle.draw(batch.oracle.pass().draw + step);
        let answer = oracle.gradient(&batch.x_adv, |logits| self.settings.loss.of(&batch.objective, logits))?;
        if !self.stops(&batch.oracle) {
            return Ok(Some(answer.x));
        }
        let done = batch.objective.is_adversarial(&answer.logits)?;
        let open = positions(&done, false);
        if open.len() == done.len() {
            return Ok(Some(answer.x));
        }
        batch.end(&done)?;
        let rest = select_rows(&answer.x, &open)?;
        Ok((!open.is_empty()).then_some(rest))
    }

    /// Several searches from random points. A sample's image is the adversarial one with the highest loss, or if none is adversarial,
    /// the one with the highest loss.
    fn best_of(&self, restarts: u64, oracle: &Oracle, objective: &Objective, x: &Tensor) -> Result<Tensor> {
        let mut best: Vec<Option<Found>> = (0..oracle.samples()).map(|_| None).collect();
        for restart in 0..restarts {
            let finished = |found: &Option<Found>| self.stops(oracle) && found.as_ref().is_some_and(|f| f.adversarial);
            let open = positions(&best.iter().map(finished).collect::<Vec<_>>(), false);
            if open.is_empty() {
                break;
            }
            let draw = oracle.pass().draw + restart * self.settings.steps;
            let oracle = oracle.draw(draw).select(&open);
            let found = self.judged_search(&oracle, &objective.select(&open), &select_rows(x, &open)?)?;
            for (i, found) in open.into_iter().zip(found) {
                if best[i].as_ref().is_none_or(|best| found.beats(best)) {
                    best[i] = Some(found);
                }
            }
        }
        let images: Vec<Tensor> = best.into_iter().flatten().map(|found| found.image).collect();
        Tensor::stack(&images, 0)
    }

    fn judged_search(&self, oracle: &Oracle, objective: &Objective, x: &Tensor) -> Result<Vec<Found>> {
        let x_adv = self.search(oracle, objective, x)?;
        let logits = oracle.logits(&x_adv)?;
        let losses = self.settings.loss.of(objective, &logits)?.to_vec1::<f32>()?;
        let verdicts = objective.is_adversarial(&logits)?.into_iter().zip(losses);
        let found = |(i, (adversarial, loss))| {
            let image = x_adv.get(i)?;
            Ok(Found {
                image,
                adversarial,
                loss,
            })
        };
        verdicts.enumerate().map(found).collect()
    }

    fn stops(&self, oracle: &Oracle) -> bool {
        self.settings.early_stop && oracle.early_stop()
    }
}

/// Where one search of one sample ended.
struct Found {
    image: Tensor,
    adversarial: bool,
    loss: f32,
}

impl Found {
    /// Whether it is the better one: adversarial before not, then by the loss. One whose loss is NaN is the worst of all, whatever
    /// its verdict: both come from logits that are no numbers.
    fn beats(&self, other: &Self) -> bool {
        let rank = |found: &Self| (!found.loss.is_nan(), found.adversarial);
        let by_loss = self.loss.partial_cmp(&other.loss).unwrap_or(Ordering::Equal);
        rank(self).cmp(&rank(other)).then(by_loss).is_gt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Device;

    #[test]
    fn a_search_whose_loss_is_no_number_is_replaced_by_any_other() {
        let found = |adversarial, loss| Found {
            image: Tensor::new(0f32, &Device::Cpu).unwrap(),
            adversarial,
            loss,
        };
        // From the worst to the best; NaN of either sign.
        let ranks = [
            found(true, f32::NAN),
            found(false, f32::NEG_INFINITY),
            found(false, 3.),
            found(true, -1.),
            found(true, 2.),
            found(true, f32::INFINITY),
        ];
        for (i, better) in ranks.iter().enumerate() {
            for worse in &ranks[..i] {
                assert!(better.beats(worse) && !worse.beats(better), "{i}");
            }
        }
        let negative = found(true, -f32::NAN);
        assert!(ranks[1].beats(&negative) && !negative.beats(&ranks[1]));
        let (zero, negative_zero) = (found(true, 0.), found(true, -0.));
        assert!(!zero.beats(&negative_zero), "of equals the first stays");
    }
}
