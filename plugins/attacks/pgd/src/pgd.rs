//! Projected gradient descent (Madry et al. 2017); BIM (Kurakin et al. 2016) is PGD without a random start.

use advae_sdk::attack::{Active, Best, positions};
use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

/// Largest epsilon and step: their squares summed over an image are far from what `f32` holds.
const LONGEST: f64 = 1e6;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019) for MNIST.
    pub struct PgdSettings {
        /// Sets random_start if that is not given: pgd (true) or bim (false; Kurakin et al. 2016).
        preset: Preset = Preset::Pgd,
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Number of steps.
        steps: u64 = 40,
        /// Length of a step. Default: 2.5 epsilon / steps, which crosses the ball. For linf, epsilon 0.3 and 40 steps (the paper's
        /// setting) the default is 0.01, which does not cross it.
        step_size: Option<f64> = None,
        /// Length of a step as a multiple of epsilon; takes precedence over step_size.
        relative_step_size: Option<f64> = None,
        /// Number of searches. For each sample, the best one counts.
        restarts: u64 = 1,
        /// Start at a uniform point of the ball instead of the clean image. Default: the preset's.
        random_start: Option<bool> = None,
        /// Stop attacking a sample at its first adversarial iterate, if the threat model allows it.
        early_stop: bool = true,
        /// Loss that is maximised: ce (cross-entropy) or margin (the largest other logit minus the label's logit).
        loss: Loss = Loss::Ce,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
        /// Label to move away from: true, or predicted (by the attacked model on the clean image).
        label: Label = Label::True,
    }
}

/// A named start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "snake_case")]
pub enum Preset {
    /// From a random point of the ball.
    Pgd,
    /// From the clean image.
    Bim,
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
    random_start: bool,
}

impl Attack for Pgd {
    type Settings = PgdSettings;

    fn new(settings: PgdSettings) -> Result<Self> {
        let epsilon = in_range("epsilon", settings.epsilon, 0. ..=LONGEST)?;
        let steps = in_range("steps", settings.steps, 1..=100_000)?;
        let restarts = in_range("restarts", settings.restarts, 1..=10_000)?;
        let random_start = settings.random_start.unwrap_or(settings.preset == Preset::Pgd);
        if restarts > 1 && !random_start {
            bail!(
                "restarts is {restarts} and random_start is false: every restart would be the first again, set it to 1"
            )
        }
        let step_size = match (settings.relative_step_size, settings.step_size) {
            (Some(share), _) => epsilon * in_range("relative_step_size", share, 0. ..=LONGEST)?,
            (None, Some(length)) => in_range("step_size", length, 0. ..=LONGEST)?,
            (None, None) => default_step_size(settings.norm, epsilon, steps),
        };
        Ok(Self {
            settings,
            step_size,
            random_start,
        })
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
            random_start: Some(self.random_start),
            loss: Some(self.settings.loss.name().into()),
            device: true,
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
        let mut active = Active::new(oracle, objective, x, self.start(oracle, x)?);
        for step in 0..self.settings.steps {
            let Some(gradient) = self.gradient(&mut active, step)? else {
                break;
            };
            let moved = (&active.x_adv + (norm.direction(&gradient)? * self.step_size)?)?;
            active.go(active.oracle.clip(&norm.project(&moved, &active.x, epsilon)?)?)?;
        }
        active.images()
    }

    fn start(&self, oracle: &Oracle, x: &Tensor) -> Result<Tensor> {
        let PgdSettings { norm, epsilon, .. } = self.settings;
        match self.random_start {
            true => oracle.clip(&norm.random_start(oracle.pass(), x, epsilon)?),
            false => Ok(x.clone()),
        }
    }

    /// Gradient of the loss for the samples that go on; none where all have ended. A random defence is drawn afresh at
    /// every step.
    fn gradient(&self, active: &mut Active, step: u64) -> Result<Option<Tensor>> {
        let oracle = active.oracle.draw(active.oracle.pass().draw + step);
        let answer = oracle.gradient(&active.x_adv, |logits| self.settings.loss.of(&active.objective, logits))?;
        if !self.stops(&active.oracle) {
            return Ok(Some(answer.x));
        }
        let searched = active.places().len();
        let open = active.end_reached(&answer.logits)?;
        match open.len() {
            0 => Ok(None),
            all if all == searched => Ok(Some(answer.x)),
            _ => select_rows(&answer.x, &open).map(Some),
        }
    }

    /// Several searches from random points. A sample's image is the adversarial one with the highest loss, or if none is adversarial,
    /// the one with the highest loss.
    fn best_of(&self, restarts: u64, oracle: &Oracle, objective: &Objective, x: &Tensor) -> Result<Tensor> {
        let mut best = Best::new(oracle.samples());
        for restart in 0..restarts {
            let found = |adversarial: bool| self.stops(oracle) && adversarial;
            let open = positions(&best.adversarial().into_iter().map(found).collect::<Vec<_>>(), false);
            if open.is_empty() {
                break;
            }
            let draw = oracle.pass().draw + restart * self.settings.steps;
            let (oracle, objective) = (oracle.draw(draw).select(&open), objective.select(&open));
            let x_adv = self.search(&oracle, &objective, &select_rows(x, &open)?)?;
            let logits = oracle.logits(&x_adv)?;
            let losses = self.settings.loss.of(&objective, &logits)?.to_vec1::<f32>()?;
            best.offer(&open, &x_adv, &objective.is_adversarial(&logits)?, &losses)?;
        }
        best.images(x)
    }

    fn stops(&self, oracle: &Oracle) -> bool {
        self.settings.early_stop && oracle.early_stop()
    }
}
