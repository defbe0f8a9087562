//! The L2 attack of Carlini and Wagner (2017).

use crate::search::{Answer, Search};
use crate::settings::{CwSettings, Plan};
use crate::tanh_space::TanhSpace;
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
        let clean = x.flatten_from(1)?.to_vec2::<f32>()?;
        let mut searches: Vec<Search> = clean.iter().map(|x| Search::new(self.plan, space, x)).collect();
        self.run(oracle, &objective, x, &mut searches)?;

        let found: Vec<bool> = searches.iter().map(|search| search.best().is_some()).collect();
        let images: Vec<&[f32]> = searches
            .iter()
            .zip(&clean)
            .map(|(search, x)| search.best().unwrap_or(x))
            .collect();
        let x_adv = Tensor::from_vec(images.concat(), x.dims(), x.device())?;
        Ok(Perturbed {
            x_adv,
            found: Some(found),
            targets: objective.targets(),
        })
    }
}

impl Cw {
    /// Asks the oracle for all searches together, until none has a question left.
    fn run(&self, oracle: &Oracle, objective: &Objective, x: &Tensor, searches: &mut [Search]) -> Result<()> {
        let mut open: Vec<usize> = (0..searches.len()).collect();
        let (mut oracle, mut objective) = (oracle.clone(), objective.clone());
        while !open.is_empty() {
            let images: Vec<&[f32]> = open.iter().map(|i| searches[*i].image()).collect();
            let shape = [&[open.len()], &x.dims()[1..]].concat();
            let images = Tensor::from_vec(images.concat(), shape, x.device())?;
            let constants: Vec<f32> = open.iter().map(|i| searches[*i].constant()).collect();
            let constants = Tensor::new(constants, x.device())?;

            let hinge = |logits: &Tensor| relu(&(objective.margin(logits)? + self.plan.confidence)?)? * &constants;
            let answer = oracle.gradient(&images, hinge)?;
            let (losses, adversarial) = (answer.loss.to_vec1::<f32>()?, objective.is_adversarial(&answer.logits)?);
            let gradients = answer.x.flatten_all()?.to_vec1::<f32>()?;
            let rows = gradients.chunks_exact(gradients.len() / open.len()).enumerate();
            let goes_on = |(row, gradient): (usize, &[f32])| {
                let answer = Answer {
                    hinge: losses[row],
                    adversarial: adversarial[row],
                    gradient,
                };
                searches[open[row]].advance(&answer)
            };
            let more: Vec<bool> = rows.map(goes_on).collect();

            // A random defence is drawn afresh at every iteration.
            oracle = oracle.draw(oracle.pass().draw + 1);
            if more.contains(&false) {
                let rest: Vec<usize> = (0..open.len()).filter(|row| more[*row]).collect();
                (oracle, objective) = (oracle.select(&rest), objective.select(&rest));
                open = rest.iter().map(|row| open[*row]).collect();
            }
        }
        Ok(())
    }
}
