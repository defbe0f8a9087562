//! The L2 attack of Carlini and Wagner (2017).

use crate::batch;
use crate::search::{Answer, Search};
use crate::settings::{CwSettings, Plan};
use crate::tanh_space::TanhSpace;
use advae_sdk::attack::{Active, rows, stack};
use advae_sdk::nn::relu;
use advae_sdk::prelude::*;

/// Looks for the nearest adversarial image in L2. Where it finds none, it says so and returns the clean image.
pub struct Cw {
    plan: Plan,
    target: Goal,
}

impl Attack for Cw {
    type Settings = CwSettings;

    fn new(settings: CwSettings) -> Result<Self> {
        Ok(Self {
            plan: settings.plan()?,
            target: settings.target,
        })
    }

    fn info(&self) -> AttackInfo {
        let passes = (self.plan.iterations * self.plan.search_steps) as u64;
        AttackInfo {
            targeted: self.target.targeted(),
            passes,
            random_start: Some(false),
            loss: Some("margin".into()),
            device: true,
            ..AttackInfo::new(Norm::L2)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let objective = self.target.objective(oracle, x, y)?;
        let (low, high) = oracle.bounds();
        let space = TanhSpace {
            low: low as f32,
            high: high as f32,
        };
        if !x.device().is_cpu() {
            let (found, x_adv) = batch::search(self.plan, space, oracle, &objective, x)?;
            return Ok(Perturbed {
                x_adv,
                found: Some(found),
                targets: objective.targets(),
            });
        }
        let clean = rows(x)?;
        let mut searches: Vec<Search> = clean.iter().map(|x| Search::new(self.plan, space, x)).collect();
        self.run(oracle, &objective, x, &mut searches)?;

        let found: Vec<bool> = searches.iter().map(|search| search.best().is_some()).collect();
        let images: Vec<&[f32]> = searches
            .iter()
            .zip(&clean)
            .map(|(search, x)| search.best().unwrap_or(x))
            .collect();
        Ok(Perturbed {
            x_adv: stack(&images, x)?,
            found: Some(found),
            targets: objective.targets(),
        })
    }
}

impl Cw {
    /// Asks the oracle for all searches together, until none has a question left.
    fn run(&self, oracle: &Oracle, objective: &Objective, x: &Tensor, searches: &mut [Search]) -> Result<()> {
        let mut active = Active::new(oracle, objective, x, x.clone());
        while !active.is_empty() {
            let open = active.places();
            let images: Vec<&[f32]> = open.iter().map(|i| searches[*i].image()).collect();
            let constants: Vec<f32> = open.iter().map(|i| searches[*i].constant()).collect();
            let (images, constants) = (stack(&images, x)?, Tensor::new(constants, x.device())?);

            let hinge =
                |logits: &Tensor| relu(&(active.objective.margin(logits)? + self.plan.confidence)?)? * &constants;
            let answer = active.oracle.gradient(&images, hinge)?;
            let losses = answer.loss.to_vec1::<f32>()?;
            let adversarial = active.objective.is_adversarial(&answer.logits)?;
            let gradients = answer.x.flatten_all()?.to_vec1::<f32>()?;
            let rows = gradients.chunks_exact(gradients.len() / open.len()).enumerate();
            let ends = |(row, gradient): (usize, &[f32])| {
                let answer = Answer {
                    hinge: losses[row],
                    adversarial: adversarial[row],
                    gradient,
                };
                !searches[open[row]].advance(&answer)
            };
            let ended: Vec<bool> = rows.map(ends).collect();

            // A random defence is drawn afresh at every iteration.
            active.next_draw();
            active.end(&ended)?;
        }
        Ok(())
    }
}
