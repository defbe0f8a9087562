//! Fast adaptive boundary attack (Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
//! algorithm 1): goes to the boundary where logits are linear, with a pull towards the clean image, and back from it when it is beyond.

use crate::plane::{Bounds, Step};
use advae_sdk::attack::{Active, Best, Boundary, choose, column, others, rows, stack};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of AutoAttack. The attack minimises the distance. If there is a budget (the host sets epsilon), an image beyond epsilon
    /// counts as not found. With epsilon=null there is no budget, and the nearest image counts, however far it is.
    pub struct FabSettings {
        /// Norm of the distance: linf or l2.
        norm: Norm = Norm::Linf,
        /// Radius of the ball, or null for no budget.
        epsilon: Option<f64> = None,
        /// Number of steps of one search.
        steps: u64 = 100,
        /// Number of searches per target. All searches except the first start at a random point.
        restarts: u64 = 1,
        /// true: aim at the n_target_classes likeliest other classes, one after the other. false: aim at the nearest boundary of all
        /// classes, which needs one gradient per class.
        targeted: bool = true,
        /// Number of these target classes, at most all other classes.
        n_target_classes: usize = 9,
        /// Largest weight of the bias towards the clean image.
        alpha_max: f64 = 0.1,
        /// Length of a step, as a multiple of the distance to the boundary.
        eta: f64 = 1.05,
        /// Share of the distance to the clean image that remains after a backward step.
        beta: f64 = 0.9,
    }
}

/// Radius of random starts where nothing else bounds it, as in the authors' code.
const START: [f64; 2] = [0.3, 1.];

/// FAB in a norm.
pub struct Fab(FabSettings);

impl Attack for Fab {
    type Settings = FabSettings;

    fn new(settings: FabSettings) -> Result<Self> {
        if let Some(epsilon) = settings.epsilon {
            // Squares of the largest, summed over an image, are far from what f32 holds.
            in_range("epsilon", epsilon, 0. ..=1e6)?;
        }
        in_range("steps", settings.steps, 1..=100_000)?;
        in_range("restarts", settings.restarts, 1..=10_000)?;
        in_range("n_target_classes", settings.n_target_classes, 1..=1000)?;
        in_range("alpha_max", settings.alpha_max, 0. ..=1.)?;
        in_range("eta", settings.eta, 1. ..=10.)?;
        in_range("beta", settings.beta, 0. ..=1.)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        let targets = if self.0.targeted {
            self.0.n_target_classes as u64
        } else {
            1
        };
        AttackInfo {
            epsilon: self.0.epsilon,
            passes: 1 + 2 * self.0.steps * self.0.restarts * targets,
            random_start: Some(false),
            loss: Some("margin".into()),
            ..AttackInfo::new(self.0.norm)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = Goal::Untargeted.objective(oracle, x, y)?;
        let logits = oracle.logits(x)?;
        let (others, wrong) = (others(&logits, objective.labels())?, objective.is_adversarial(&logits)?);
        let (mut best, mut active) = (
            Best::new(oracle.samples()),
            Active::new(oracle, &objective, x, x.clone()),
        );
        // Nothing is nearer than the clean image.
        best.offer(active.places(), x, &wrong, &vec![0.; wrong.len()])?;
        active.end(&wrong)?;
        for target in self.targets(oracle.classes()) {
            for restart in 0..self.0.restarts {
                if !active.is_empty() {
                    self.search(&mut active, &mut best, &others, target, restart > 0)?;
                }
            }
        }
        best.nearest(x, self.longest())
    }
}

impl Fab {
    /// Ranks of the targets among the other classes, one after the other; none: all of them at once.
    fn targets(&self, classes: usize) -> Vec<Option<usize>> {
        match self.0.targeted {
            true => (0..self.0.n_target_classes.min(classes.saturating_sub(1)))
                .map(Some)
                .collect(),
            false => vec![None],
        }
    }

    /// The farthest that an image may be to count.
    fn longest(&self) -> f64 {
        self.0.epsilon.unwrap_or(f64::INFINITY)
    }

    /// One search for every active sample, towards one target or all other classes.
    fn search(
        &self,
        active: &mut Active,
        best: &mut Best,
        others: &[Vec<u32>],
        target: Option<usize>,
        random_start: bool,
    ) -> Result<()> {
        let (norm, bounds) = (self.0.norm, Bounds::from(active.oracle.bounds()));
        active.x_adv = match random_start {
            true => self.start(active, best)?,
            false => active.x.clone(),
        };
        for _ in 0..self.0.steps {
            let all = |place: &usize| others[*place].as_slice();
            let one = |place: &usize| target.map_or(all(place), |rank| &all(place)[rank..=rank]);
            let aims: Vec<&[u32]> = active.places().iter().map(one).collect();
            let boundary = Boundary::nearest(&active.oracle, norm, &active.x_adv, active.objective.labels(), &aims)?;
            active.x_adv = self.step(norm, bounds, active, &boundary)?;

            let adversarial = active.objective.is_adversarial(&active.oracle.logits(&active.x_adv)?)?;
            let delta = (&active.x_adv - &active.x)?;
            let scores: Vec<f32> = norm.length(&delta)?.neg()?.to_vec1()?;
            best.offer(active.places(), &active.x_adv, &adversarial, &scores)?;
            let back = (&active.x + (delta * self.0.beta)?)?;
            active.x_adv = choose(&adversarial, &back, &active.x_adv)?;
            active.next_draw();
            self.stop(active, best)?;
            if active.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Half as far away as the nearest image so far, or as the budget.
    fn start(&self, active: &Active, best: &Best) -> Result<Tensor> {
        let budget = self.0.epsilon.unwrap_or(START[usize::from(self.0.norm == Norm::L2)]);
        let found = best.adversarial();
        let radius = |place: &usize| match best.score(*place).filter(|_| found[*place]) {
            Some(score) => f64::from(-score).min(budget) / 2.,
            None => budget / 2.,
        };
        let radii: Vec<f32> = active.places().iter().map(|place| radius(place) as f32).collect();
        let noise = (self.0.norm.on_sphere(active.oracle.pass(), &active.x, 1.)? - &active.x)?;
        active
            .oracle
            .clip(&(&active.x + noise.broadcast_mul(&column(&radii, &noise)?)?)?)
    }

    /// `clip((x_adv + eta d1) (1 - a) + (x + eta d2) a)` for every sample.
    fn step(&self, norm: Norm, bounds: Bounds, active: &Active, boundary: &Boundary) -> Result<Tensor> {
        let step = Step {
            norm,
            bounds,
            alpha_max: self.0.alpha_max,
            eta: self.0.eta,
        };
        let (x, x_adv, w) = (rows(&active.x)?, rows(&active.x_adv)?, rows(&boundary.w)?);
        let moved: Vec<Vec<f32>> = (0..x.len())
            .map(|row| step.of(&x[row], &x_adv[row], boundary.f[row], &w[row]))
            .collect();
        stack(&moved, &active.x)
    }

    /// Within a budget, ends the search of the samples that have an image within it, where they may stop.
    fn stop(&self, active: &mut Active, best: &Best) -> Result<()> {
        let Some(epsilon) = self.0.epsilon.filter(|_| active.oracle.early_stop()) else {
            return Ok(());
        };
        let found = best.adversarial();
        let near = |place: &usize| best.score(*place).is_some_and(|score| -score <= epsilon as f32);
        let done: Vec<bool> = active
            .places()
            .iter()
            .map(|place| found[*place] && near(place))
            .collect();
        active.end(&done)?;
        Ok(())
    }
}
