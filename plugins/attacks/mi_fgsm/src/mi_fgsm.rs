//! Momentum iterative FGSM (Dong et al. 2018, "Boosting adversarial attacks with momentum", algorithm 1): signed steps along a running
//! sum of gradients.

use advae_sdk::attack::Active;
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the paper.
    pub struct MiFgsmSettings {
        /// Radius of the Linf ball.
        epsilon: f64 = 0.3,
        /// Number of steps.
        steps: u64 = 10,
        /// Length of a step. Default: epsilon / steps.
        step_size: Option<f64> = None,
        /// Factor on the sum of the earlier gradients in each step (momentum).
        decay: f64 = 1.,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
        /// Label to move away from: true, or predicted (by the attacked model on the clean image).
        label: Label = Label::True,
    }
}

/// MI-FGSM in the Linf ball.
pub struct MiFgsm {
    settings: MiFgsmSettings,
    step_size: f64,
}

impl Attack for MiFgsm {
    type Settings = MiFgsmSettings;

    fn new(settings: MiFgsmSettings) -> Result<Self> {
        let epsilon = in_range("epsilon", settings.epsilon, 0. ..=1e6)?;
        let steps = in_range("steps", settings.steps, 1..=100_000)?;
        in_range("decay", settings.decay, 0. ..=10.)?;
        let step_size = match settings.step_size {
            Some(length) => in_range("step_size", length, 0. ..=1e6)?,
            None => epsilon / steps as f64,
        };
        Ok(Self { settings, step_size })
    }

    fn info(&self) -> AttackInfo {
        AttackInfo {
            epsilon: Some(self.settings.epsilon),
            targeted: self.settings.target.targeted(),
            passes: self.settings.steps + u64::from(self.settings.label == Label::Predicted),
            reach: Some(self.settings.steps as f64 * self.step_size),
            random_start: Some(false),
            loss: Some("ce".into()),
            device: true,
            ..AttackInfo::new(Norm::Linf)
        }
    }

    fn perturb(&self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Perturbed> {
        let MiFgsmSettings {
            target, label, decay, ..
        } = self.settings;
        let objective = target.objective_by(label, oracle, x, y)?;
        let mut active = Active::new(oracle, &objective, x, x.clone());
        let mut sum = x.zeros_like()?;
        for _ in 0..self.settings.steps {
            let answer = active
                .oracle
                .gradient(&active.x_adv, |logits| active.objective.loss(logits))?;
            let open = active.end_reached(&answer.logits)?;
            if open.is_empty() {
                break;
            }
            let gradient = normalised(&select_rows(&answer.x, &open)?)?;
            sum = ((select_rows(&sum, &open)? * decay)? + gradient)?;
            let moved = (&active.x_adv + (sum.sign()? * self.step_size)?)?;
            let projected = Norm::Linf.project(&moved, &active.x, self.settings.epsilon)?;
            active.go(active.oracle.clip(&projected)?)?;
            active.next_draw();
        }
        Ok(Perturbed {
            x_adv: active.images()?,
            found: None,
            targets: objective.targets(),
        })
    }
}

/// A gradient over its mean absolute value; zero stays zero. That is the authors' code; the paper's L1 norm differs by the number of
/// pixels, the same for every step.
fn normalised(gradient: &Tensor) -> Result<Tensor> {
    // Over the largest value first: sums of large gradients overflow, and small ones underflow.
    let scaled = gradient.broadcast_div(&divisors(&Norm::Linf.length(gradient)?)?)?;
    scaled.broadcast_div(&divisors(&scaled.flatten_from(1)?.abs()?.mean(1)?)?)
}

/// Lengths `[N]` as `[N,1,1,1]`, with 1 in place of what is not positive.
fn divisors(lengths: &Tensor) -> Result<Tensor> {
    let positive = lengths.gt(0f64)?.where_cond(lengths, &lengths.ones_like()?)?;
    positive.reshape(((), 1, 1, 1))
}
