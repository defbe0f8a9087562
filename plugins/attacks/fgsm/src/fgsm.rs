//! The fast gradient sign method (Goodfellow et al. 2014).

use advae_sdk::prelude::*;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019) for MNIST.
    pub struct FgsmSettings {
        /// Norm of the ball: linf (the sign of the gradient) or l2 (the normalised gradient).
        norm: Norm = Norm::Linf,
        /// Radius of the ball: the length of the step.
        epsilon: f64 = 0.3,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
        /// Label to move away from: true, or predicted (by the attacked model on the clean image).
        label: Label = Label::True,
    }
}

/// One step of length epsilon up the loss, from the clean image.
pub struct Fgsm(FgsmSettings);

impl Attack for Fgsm {
    type Settings = FgsmSettings;

    fn new(settings: FgsmSettings) -> Result<Self> {
        // Squares of the largest, summed over an image, are far from what f32 holds.
        in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        Ok(Self(settings))
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.0.epsilon),
            targeted: self.0.target.targeted(),
            passes: 1 + u64::from(self.0.label == Label::Predicted),
            reach: Some(self.0.epsilon),
            random_start: Some(false),
            loss: Some("ce".into()),
            device: true,
            ..AttackInfo::new(self.0.norm)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let FgsmSettings {
            norm,
            epsilon,
            target,
            label,
        } = self.0;
        let objective = target.objective_by(label, oracle, x, y)?;
        let gradient = oracle.gradient(x, |logits| objective.loss(logits))?.x;
        let x_adv = oracle.clip(&(x + (norm.direction(&gradient)? * epsilon)?)?)?;
        Ok(Perturbed {
            x_adv,
            found: None,
            targets: objective.targets(),
        })
    }
}
