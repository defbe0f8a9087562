//! Fast minimum-norm attack (Pintor et al. 2021, "Fast minimum-norm adversarial attacks through adaptive norm constraints", algorithm 1):
//! steps along the gradient, within a ball whose radius follows the distance to the boundary.

use crate::start::{QUESTIONS, Start, beyond};
use advae_sdk::attack::{Best, column, cosine, farthest, positions};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the paper, with its longest search, from both of its starts. `start=clean` is the algorithm as other toolboxes run it.
    /// In front of a defence, a search from the clean image often ends at a local maximum of the margin. The attack minimises the
    /// distance. There is no budget.
    pub struct FmnSettings {
        /// Norm of the distance: linf or l2.
        norm: Norm = Norm::L2,
        /// Where a search starts: clean (the clean image), adversarial (an adversarial image near the boundary, found by bisection between
        /// the clean image and images of noise) or both (one search from each; the nearer result counts).
        start: Start = Start::Both,
        /// Number of steps of a search.
        steps: u64 = 1000,
        /// Length of the first step, in L2. The last step is a hundredth of it.
        step_size: f64 = 1.,
        /// Share by which the radius changes in the first step. In the last step this share is 0.001.
        gamma: f64 = 0.05,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
    }
}

/// Share by which the radius changes in the last step.
const LAST_GAMMA: f64 = 0.001;

/// FMN in a norm.
pub struct Fmn(FmnSettings);

impl Attack for Fmn {
    type Settings = FmnSettings;

    fn new(settings: FmnSettings) -> Result<Self> {
        in_range("steps", settings.steps, 1..=1_000_000)?;
        in_range("step_size", settings.step_size, 1e-6..=1e6)?;
        in_range("gamma", settings.gamma, 1e-6..=0.99)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            targeted: self.0.target.targeted(),
            passes: match self.0.start {
                Start::Clean => self.0.steps,
                Start::Adversarial => QUESTIONS + self.0.steps,
                Start::Both => QUESTIONS + 2 * self.0.steps,
            },
            random_start: Some(self.0.start != Start::Clean),
            loss: Some("margin".into()),
            device: true,
            ..AttackInfo::new(self.0.norm)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = self.0.target.objective(oracle, x, y)?;
        let (norm, draw) = (self.0.norm, oracle.pass().draw);
        let all: Vec<usize> = (0..oracle.samples()).collect();
        let mut best = Best::new(all.len());
        if self.0.start != Start::Adversarial {
            self.search(oracle, &objective, x, x, &all, &mut best)?;
        }
        if self.0.start != Start::Clean {
            let later = oracle.draw(draw + self.0.steps);
            let (found, start) = beyond(norm, &later, &objective, x)?;
            // Without a start beyond the boundary it would be the search from the clean image once more.
            let places = match self.0.start {
                Start::Both => positions(&found, true),
                _ => all,
            };
            let later = oracle.draw(draw + self.0.steps + QUESTIONS);
            self.search(&later, &objective, x, &start, &places, &mut best)?;
        }
        Ok(Perturbed {
            targets: objective.targets(),
            ..best.nearest(x, f64::INFINITY)?
        })
    }
}

impl Fmn {
    /// One search from `start` `[N,C,H,W]` for the samples at `places`, whose nearest adversarial images it offers.
    fn search(
        &self,
        oracle: &Oracle,
        objective: &Objective,
        x: &Tensor,
        start: &Tensor,
        places: &[usize],
        nearest: &mut Best,
    ) -> Result<()> {
        if places.is_empty() {
            return Ok(());
        }
        let (oracle, objective) = (oracle.select(places), objective.select(places));
        let (x, start) = (select_rows(x, places)?, select_rows(start, places)?);
        let out = self
            .descend(&oracle, &objective, &x, start)?
            .nearest(&x, f64::INFINITY)?;
        let lengths: Vec<f32> = self.0.norm.length(&(&out.x_adv - x)?)?.to_vec1()?;
        let scores: Vec<f32> = lengths.iter().map(|length| -length).collect();
        nearest.offer(places, &out.x_adv, &out.found.unwrap_or_default(), &scores)
    }

    /// The algorithm.
    fn descend(&self, oracle: &Oracle, objective: &Objective, x: &Tensor, start: Tensor) -> Result<Best> {
        let (norm, n) = (self.0.norm, oracle.samples());
        let places: Vec<usize> = (0..n).collect();
        let farthest = farthest(norm, oracle, x)?;
        let mut radii = vec![f32::INFINITY; n];
        let (mut best, mut x_adv) = (Best::new(n), start);
        for step in 0..self.0.steps {
            let oracle = oracle.draw(oracle.pass().draw + step);
            let answer = oracle.gradient(&x_adv, |logits| objective.margin(logits)?.neg())?;
            let adversarial = objective.is_adversarial(&answer.logits)?;
            let lengths: Vec<f32> = norm.length(&(&x_adv - x)?)?.to_vec1()?;
            best.offer(
                &places,
                &x_adv,
                &adversarial,
                &lengths.iter().map(|l| -l).collect::<Vec<_>>(),
            )?;

            let gamma = cosine(self.0.gamma, LAST_GAMMA, step, self.0.steps) as f32;
            let (margins, slopes) = (
                answer.loss.to_vec1::<f32>()?,
                norm.dual_length(&answer.x)?.to_vec1::<f32>()?,
            );
            let found = best.adversarial();
            for i in 0..n {
                let nearest = best.score(i).filter(|_| found[i]).map(|score| -score);
                let boundary = || lengths[i] + margins[i].abs() / slopes[i];
                let radius = next_radius(radii[i], gamma, adversarial[i], nearest, boundary);
                // Where there is no gradient the boundary is 0 / 0 away.
                radii[i] = if radius.is_nan() {
                    farthest[i]
                } else {
                    radius.min(farthest[i])
                };
            }
            let step_size = cosine(self.0.step_size, self.0.step_size / 100., step, self.0.steps);
            let moved = (&x_adv + (Norm::L2.direction(&answer.x)? * step_size)?)?;
            let radii = column(&radii, x)?.flatten_all()?;
            x_adv = oracle.clip(&norm.project_each(&moved, x, &radii)?)?;
        }
        Ok(best)
    }
}

/// The radius shrinks where the image is adversarial, to no more than the nearest found. Where it is not, the radius grows once there is
/// a nearest; before, it reaches to the boundary and a share beyond. The paper's reaches just there: pixels at their bounds do not take
/// part as they should, and searches come ever closer to a boundary that they never cross.
pub(crate) fn next_radius(
    radius: f32,
    gamma: f32,
    adversarial: bool,
    nearest: Option<f32>,
    boundary: impl FnOnce() -> f32,
) -> f32 {
    match (adversarial, nearest) {
        (true, Some(nearest)) => (radius * (1. - gamma)).min(nearest),
        (true, None) => radius * (1. - gamma),
        (false, Some(_)) => radius * (1. + gamma),
        (false, None) => boundary() * (1. + gamma),
    }
}
