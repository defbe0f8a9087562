//! Auto-PGD (Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks",
//! algorithm 1): a step that halves itself, and momentum.

use crate::walk::{Walk, checkpoints};
use advae_sdk::attack::{Active, Best, column, dlr, dlr_targeted, others};
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

settings! {
    /// Defaults of AutoAttack.
    pub struct ApgdSettings {
        /// Norm of the ball: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball.
        epsilon: f64 = 0.3,
        /// Number of steps of one search.
        steps: u64 = 100,
        /// Number of searches, each from a random point of the ball. With dlr_targeted, this is the number per target.
        restarts: u64 = 1,
        /// Loss that is maximised: ce (cross-entropy), dlr (difference of logits ratio, needs 3 classes), or dlr_targeted (the same
        /// towards the likeliest other classes, one after the other; needs 4 classes).
        loss: Loss = Loss::Ce,
        /// Number of classes that dlr_targeted aims at, at most all other classes.
        n_target_classes: usize = 9,
        /// The step is halved if at most this share of the steps since the last checkpoint raised the loss.
        rho: f64 = 0.75,
    }
}

/// What the attack ascends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy.
    Ce,
    /// Difference of logits ratio.
    Dlr,
    /// The same towards a target.
    DlrTargeted,
}

impl Loss {
    /// Its name among the settings.
    fn name(self) -> &'static str {
        match self {
            Self::Ce => "ce",
            Self::Dlr => "dlr",
            Self::DlrTargeted => "dlr_targeted",
        }
    }

    fn of(self, objective: &Objective, targets: &[u32], logits: &Tensor) -> Result<Tensor> {
        match self {
            Self::Ce => objective.loss(logits),
            Self::Dlr => dlr(logits, objective.labels()),
            Self::DlrTargeted => dlr_targeted(logits, objective.labels(), targets),
        }
    }
}

/// Share of the new direction in a step; the rest is momentum.
const NEW: f64 = 0.75;

/// APGD in the ball of a norm.
pub struct Apgd(ApgdSettings);

impl Attack for Apgd {
    type Settings = ApgdSettings;

    fn new(settings: ApgdSettings) -> Result<Self> {
        // Squares of the largest, summed over an image, are far from what f32 holds.
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        in_range("steps", settings.steps, 1..=100_000)?;
        in_range("restarts", settings.restarts, 1..=10_000)?;
        in_range("n_target_classes", settings.n_target_classes, 1..=1000)?;
        in_range("rho", settings.rho, 0. ..=1.)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        let ApgdSettings { epsilon, steps, .. } = self.0;
        let targets = if self.0.loss == Loss::DlrTargeted {
            self.0.n_target_classes as u64
        } else {
            1
        };
        AttackInfo {
            epsilon: Some(epsilon),
            passes: 1 + targets * self.0.restarts * (steps + 1),
            reach: Some(2. * epsilon * steps as f64),
            random_start: Some(true),
            loss: Some(self.0.loss.name().into()),
            device: true,
            ..AttackInfo::new(self.0.norm)
        }
    }

    /// A sample whose search may stop ends at its first adversarial image. Of the others the best is returned: an adversarial image with
    /// the highest loss, or if none is adversarial, the one with the highest loss.
    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = Goal::Untargeted.objective(oracle, x, y)?;
        let logits = oracle.logits(x)?;
        let mut best = Best::new(oracle.samples());
        let mut active = Active::new(oracle, &objective, x, x.clone());
        active.end_found(&objective.is_adversarial(&logits)?)?;
        let others = others(&logits, objective.labels())?;
        for target in 0..self.targets(oracle.classes()) {
            for _ in 0..self.0.restarts {
                if !active.is_empty() {
                    self.search(&mut active, &mut best, &others, target)?;
                }
            }
        }
        Ok(best.images(x)?.into())
    }
}

impl Apgd {
    /// How many targets are tried one after the other.
    fn targets(&self, classes: usize) -> usize {
        match self.0.loss {
            Loss::DlrTargeted => self.0.n_target_classes.min(classes.saturating_sub(1)),
            Loss::Ce | Loss::Dlr => 1,
        }
    }

    /// One search for every active sample; where there are targets, towards the other class of this rank.
    fn search(&self, active: &mut Active, best: &mut Best, others: &[Vec<u32>], rank: usize) -> Result<()> {
        let ApgdSettings { norm, epsilon, rho, .. } = self.0;
        let target = |place: &usize| others[*place].get(rank).copied().unwrap_or_default();
        let mut targets: Vec<u32> = active.places().iter().map(target).collect();
        active.x_adv = active
            .oracle
            .clip(&norm.on_sphere(active.oracle.pass(), &active.x, epsilon)?)?;
        let Some((_, gradient, losses)) = self.ask(active, best, &mut targets)? else {
            return Ok(());
        };
        let mut walk = Walk::new(&active.x_adv, gradient, &losses, 2. * epsilon);
        let mut checkpoints = checkpoints(self.0.steps).into_iter().peekable();
        for step in 1..=self.0.steps {
            let moved = self.step(active, &walk, if step == 1 { 1. } else { NEW })?;
            walk.previous = std::mem::replace(&mut active.x_adv, moved);
            let Some((open, gradient, losses)) = self.ask(active, best, &mut targets)? else {
                return Ok(());
            };
            walk.select(&open)?;
            walk.see(&active.x_adv, gradient, &losses)?;
            if checkpoints.next_if_eq(&step).is_some() {
                active.x_adv = walk.check(rho, &active.x_adv)?;
            }
        }
        Ok(())
    }

    /// `z = P(x + a direction(g))`, then `P(x + share (z - x) + (1 - share) (x - previous))`.
    fn step(&self, active: &Active, walk: &Walk, share: f64) -> Result<Tensor> {
        let ApgdSettings { norm, epsilon, .. } = self.0;
        let within = |moved: &Tensor| active.oracle.clip(&norm.project(moved, &active.x, epsilon)?);
        let x_adv = &active.x_adv;
        let length = column(&walk.step_sizes(), x_adv)?;
        let z = within(&(x_adv + norm.direction(&walk.gradient)?.broadcast_mul(&length)?)?)?;
        let momentum = ((x_adv - &walk.previous)? * (1. - share))?;
        within(&((x_adv + ((z - x_adv)? * share)?)? + momentum)?)
    }

    /// Gradients and losses at the present images, and the rows that go on with them; none where all searches have ended. A random
    /// defence is drawn afresh every time.
    fn ask(&self, active: &mut Active, best: &mut Best, targets: &mut Vec<u32>) -> Result<Option<Answer>> {
        let loss = |logits: &Tensor| self.0.loss.of(&active.objective, targets, logits);
        let answer = active.oracle.gradient(&active.x_adv, loss)?;
        let losses: Vec<f32> = answer.loss.to_vec1()?;
        let adversarial = active.objective.is_adversarial(&answer.logits)?;
        best.offer(active.places(), &active.x_adv, &adversarial, &losses)?;
        active.next_draw();
        let open = active.end_found(&adversarial)?;
        if open.is_empty() {
            return Ok(None);
        }
        *targets = open.iter().map(|row| targets[*row]).collect();
        let losses = open.iter().map(|row| losses[*row]).collect();
        let gradient = select_rows(&answer.x, &open)?;
        Ok(Some((open, gradient, losses)))
    }
}

/// Rows that go on, with their gradients and losses.
type Answer = (Vec<usize>, Tensor, Vec<f32>);
