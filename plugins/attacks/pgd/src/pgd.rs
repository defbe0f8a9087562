//! Projected gradient descent (Madry et al. 2017); BIM (Kurakin et al. 2016) is PGD without a random start.

use crate::batch::{Batch, positions};
use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019) for MNIST.
    pub struct PgdSettings {
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Number of steps.
        steps: u64 = 40,
        /// Length of a step; by default 0.01 (linf) or 2.5 epsilon / steps (l2).
        step_size: Option<f64> = None,
        /// Length of a step as a multiple of epsilon; goes before step_size.
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
        let (epsilon, steps, restarts) = (settings.epsilon, settings.steps, settings.restarts);
        if !(epsilon.is_finite() && epsilon >= 0.) {
            bail!("epsilon is {epsilon}: it must be a finite number, 0 or more")
        }
        if steps == 0 || restarts == 0 {
            bail!("steps is {steps}, restarts is {restarts}: both must be 1 or more")
        }
        if restarts > 1 && !settings.random_start {
            bail!(
                "restarts is {restarts} and random_start is false: every restart would be the first again, set it to 1"
            )
        }
        let step_size = match (settings.relative_step_size, settings.step_size, settings.norm) {
            (Some(share), _, _) => share * epsilon,
            (None, Some(length), _) => length,
            (None, None, Norm::Linf) => 0.01,
            (None, None, Norm::L2) => 2.5 * epsilon / steps as f64,
        };
        if !(step_size.is_finite() && step_size >= 0.) {
            bail!("a step would have the length {step_size}: step_size or relative_step_size must be finite, 0 or more")
        }
        Ok(Self { settings, step_size })
    }

    fn info(&self) -> AttackInfo {
        let (steps, restarts) = (self.settings.steps, self.settings.restarts);
        let judging = if restarts > 1 { restarts } else { 0 };
        let predicting = u64::from(self.settings.label == Label::Predicted);
        AttackInfo {
            norm: self.settings.norm,
            epsilon: Some(self.settings.epsilon),
            targeted: self.settings.target.targeted(),
            passes: steps * restarts + judging + predicting,
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

    /// Several searches from random points. A sample's image is that of the search whose image is adversarial with
    /// the highest loss, or where none is, of the highest loss.
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
    fn beats(&self, other: &Self) -> bool {
        (self.adversarial, self.loss) > (other.adversarial, other.loss)
    }
}
