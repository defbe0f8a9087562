//! DeepFool (Moosavi-Dezfooli et al. 2016, "DeepFool: a simple and accurate method to fool deep neural networks", algorithm 2): steps
//! onto the nearest boundary where logits are linear, until one is crossed.

use advae_sdk::attack::{Active, Best, Boundary, column, others};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the paper, with the step of foolbox. The attack looks for a small L2 distance. There is no budget.
    pub struct DeepFoolSettings {
        /// Maximum number of steps.
        steps: u64 = 50,
        /// Number of classes whose boundaries are considered: the label's class and the likeliest other classes.
        classes: usize = 10,
        /// How far the image goes beyond the boundary, as a share of the perturbation.
        overshoot: f64 = 0.02,
    }
}

/// Added to the length of every step, so that rounding does not leave it before the boundary.
const SURPLUS: f32 = 1e-4;

/// DeepFool, in L2.
pub struct DeepFool(DeepFoolSettings);

impl Attack for DeepFool {
    type Settings = DeepFoolSettings;

    fn new(settings: DeepFoolSettings) -> Result<Self> {
        in_range("steps", settings.steps, 1..=100_000)?;
        in_range("classes", settings.classes, 2..=1000)?;
        in_range("overshoot", settings.overshoot, 0. ..=100.)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            passes: 2 + self.0.steps,
            random_start: Some(false),
            loss: Some("margin".into()),
            device: true,
            ..AttackInfo::new(Norm::L2)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = Goal::Untargeted.objective(oracle, x, y)?;
        let others = others(&oracle.logits(x)?, objective.labels())?;
        let mut best = Best::new(oracle.samples());
        let mut active = Active::new(oracle, &objective, x, x.clone());
        let mut way = x.zeros_like()?;
        for _ in 0..self.0.steps {
            let classes = |place: &usize| &others[*place][..others[*place].len().min(self.0.classes - 1)];
            let aims: Vec<&[u32]> = active.places().iter().map(classes).collect();
            let boundary = Boundary::nearest(
                &active.oracle,
                Norm::L2,
                &active.x_adv,
                active.objective.labels(),
                &aims,
            )?;
            let open = judge(&mut active, &mut best, &boundary.logits)?;
            if open.is_empty() {
                break;
            }
            let w = select_rows(&boundary.w, &open)?;
            let slopes: Vec<f32> = Norm::L2.length(&w)?.to_vec1()?;
            let lengths = open.iter().zip(slopes).map(|(row, slope)| match slope > 0. {
                true => boundary.f[*row].abs() / slope + SURPLUS,
                false => 0.,
            });
            let step = Norm::L2
                .direction(&w)?
                .broadcast_mul(&column(&lengths.collect::<Vec<_>>(), &w)?)?;
            way = (select_rows(&way, &open)? + step)?;
            active.x_adv = active.oracle.clip(&(&active.x + (&way * (1. + self.0.overshoot))?)?)?;
            active.next_draw();
        }
        if !active.is_empty() {
            let logits = active.oracle.logits(&active.x_adv)?;
            judge(&mut active, &mut best, &logits)?;
        }
        best.nearest(x, f64::INFINITY)
    }
}

/// Ends the searches that have crossed a boundary. Returns the rows of the others.
fn judge(active: &mut Active, best: &mut Best, logits: &Tensor) -> Result<Vec<usize>> {
    let adversarial = active.objective.is_adversarial(logits)?;
    let scores: Vec<f32> = Norm::L2.length(&(&active.x_adv - &active.x)?)?.neg()?.to_vec1()?;
    best.offer(active.places(), &active.x_adv, &adversarial, &scores)?;
    active.end(&adversarial)
}
