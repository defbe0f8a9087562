//! Decoupled direction and norm (Rony et al. 2019, "Decoupling direction and norm for efficient gradient-based L2 adversarial attacks and
//! defenses", algorithm 1): steps along the gradient, on a sphere that shrinks where the image is adversarial and grows where it is not.

use advae_sdk::attack::{Best, choose, column, cosine, farthest};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the paper, with its longest search. The attack minimises the L2 distance. There is no budget.
    pub struct DdnSettings {
        /// Number of steps.
        steps: u64 = 1000,
        /// Radius of the first sphere.
        initial_radius: f64 = 1.,
        /// Share by which the radius shrinks or grows in a step.
        gamma: f64 = 0.05,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
    }
}

/// Length of the first and of the last step.
const STEP_SIZES: [f64; 2] = [1., 0.01];

/// Stream of the directions where there is no gradient, among a sample's generators.
const DIRECTIONS: u64 = 0x4444;

/// DDN, in L2.
pub struct Ddn(DdnSettings);

impl Attack for Ddn {
    type Settings = DdnSettings;

    fn new(settings: DdnSettings) -> Result<Self> {
        in_range("steps", settings.steps, 1..=1_000_000)?;
        in_range("initial_radius", settings.initial_radius, 1e-6..=1e6)?;
        in_range("gamma", settings.gamma, 1e-6..=0.99)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            targeted: self.0.target.targeted(),
            passes: self.0.steps,
            random_start: Some(false),
            loss: Some("ce".into()),
            device: true,
            ..AttackInfo::new(Norm::L2)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = self.0.target.objective(oracle, x, y)?;
        let (norm, n) = (Norm::L2, oracle.samples());
        let places: Vec<usize> = (0..n).collect();
        let farthest = farthest(norm, oracle, x)?;
        let mut radii = vec![self.0.initial_radius as f32; n];
        let (mut best, mut x_adv) = (Best::new(n), x.clone());
        for step in 0..self.0.steps {
            let oracle = oracle.draw(oracle.pass().draw + step);
            let answer = oracle.gradient(&x_adv, |logits| objective.loss(logits))?;
            let adversarial = objective.is_adversarial(&answer.logits)?;
            let delta = (&x_adv - x)?;
            let scores: Vec<f32> = norm.length(&delta)?.neg()?.to_vec1()?;
            best.offer(&places, &x_adv, &adversarial, &scores)?;

            let step_size = cosine(STEP_SIZES[0], STEP_SIZES[1], step, self.0.steps);
            let delta = (delta + (direction(&oracle, &answer.x)? * step_size)?)?;
            for ((radius, farthest), adversarial) in radii.iter_mut().zip(&farthest).zip(adversarial) {
                let gamma = self.0.gamma as f32;
                *radius = (*radius * if adversarial { 1. - gamma } else { 1. + gamma }).min(*farthest);
            }
            let on_sphere = norm.direction(&delta)?.broadcast_mul(&column(&radii, x)?)?;
            x_adv = oracle.clip(&(x + on_sphere)?)?;
        }
        Ok(Perturbed {
            targets: objective.targets(),
            ..best.nearest(x, f64::INFINITY)?
        })
    }
}

/// Direction of the gradient, or a random one where it is zero.
fn direction(oracle: &Oracle, gradient: &Tensor) -> Result<Tensor> {
    let flat: Vec<bool> = Norm::Linf
        .length(gradient)?
        .to_vec1::<f32>()?
        .iter()
        .map(|l| *l == 0.)
        .collect();
    let direction = Norm::L2.direction(gradient)?;
    if !flat.contains(&true) {
        return Ok(direction);
    }
    let random = Norm::L2.direction(&oracle.pass().randn_like(gradient, DIRECTIONS)?)?;
    choose(&flat, &random, &direction)
}
