//! Settings and their presets.

use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

/// Largest weight of the classification term, as in the authors' code. With it a hinge of any logits, and the square of its gradient,
/// are numbers that `f32` holds.
pub(crate) const LARGEST_CONSTANT: f64 = 1e10;

settings! {
    /// A preset, and the settings that differ from it.
    pub struct CwSettings {
        /// Defaults of the other settings: paper (Li et al. 2019: c 10, 1 search, rate 0.2, 1000 iterations, abort), strong (c 0.001,
        /// 9 searches, rate 0.01, 1000 iterations, no abort) or authors_bpda (paper, but 30 iterations without the gradient of the
        /// distance). The authors' code runs authors_bpda against DefenseGAN. It is weaker than the attack that their text describes.
        preset: Preset = Preset::Paper,
        /// Weight of the classification term in the first search, 1e-10 to 1e10.
        initial_constant: Option<f64> = None,
        /// Number of searches, each with its own weight: a binary search for the smallest weight that succeeds.
        search_steps: Option<usize> = None,
        /// Learning rate of Adam in tanh space.
        learning_rate: Option<f64> = None,
        /// Iterations of each search.
        iterations: Option<usize> = None,
        /// Required lead of the logit of another class (untargeted) or of the target (targeted).
        confidence: f64 = 0.,
        /// End a search if its loss fell by less than 0.01 % over a tenth of the iterations.
        abort: Option<bool> = None,
        /// Whether the loss includes the distance. Without it, any success counts, however far from the clean image.
        distance_gradient: Option<bool> = None,
        /// Target: null (untargeted), next, random, least_likely or a class.
        target: Goal = Goal::Untargeted,
    }
}

/// A named set of hyper-parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "snake_case")]
pub enum Preset {
    /// As the AdvAE paper used it.
    Paper,
    /// For distances worth reporting.
    Strong,
    /// As the authors' code attacked DefenseGAN; a deliberately weak attack, for comparison with their figure.
    AuthorsBpda,
}

/// Hyper-parameters of the attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    pub(crate) initial_constant: f64,
    pub(crate) search_steps: usize,
    pub(crate) learning_rate: f64,
    pub(crate) iterations: usize,
    pub(crate) confidence: f64,
    pub(crate) abort: bool,
    pub(crate) distance_gradient: bool,
}

impl Plan {
    /// Whether the search after so many is the last of ten or more, which repeats the best.
    pub(crate) fn final_repeat(&self, searches: usize) -> bool {
        searches + 1 == self.search_steps && self.search_steps >= 10
    }

    /// Weight of the squared distance in what is descended.
    pub(crate) fn distance_weight(&self) -> f32 {
        if self.distance_gradient { 1. } else { 0. }
    }
}

impl Preset {
    fn plan(self) -> Plan {
        let plan = Plan {
            initial_constant: 10.,
            search_steps: 1,
            learning_rate: 0.2,
            iterations: 1000,
            confidence: 0.,
            abort: true,
            distance_gradient: true,
        };
        match self {
            Self::Paper => plan,
            Self::Strong => Plan {
                initial_constant: 1e-3,
                search_steps: 9,
                learning_rate: 1e-2,
                abort: false,
                ..plan
            },
            Self::AuthorsBpda => Plan {
                iterations: 30,
                distance_gradient: false,
                ..plan
            },
        }
    }
}

impl CwSettings {
    /// The preset with the overrides, checked.
    pub(crate) fn plan(&self) -> Result<Plan> {
        let preset = self.preset.plan();
        let plan = Plan {
            initial_constant: self.initial_constant.unwrap_or(preset.initial_constant),
            search_steps: self.search_steps.unwrap_or(preset.search_steps),
            learning_rate: self.learning_rate.unwrap_or(preset.learning_rate),
            iterations: self.iterations.unwrap_or(preset.iterations),
            confidence: self.confidence,
            abort: self.abort.unwrap_or(preset.abort),
            distance_gradient: self.distance_gradient.unwrap_or(preset.distance_gradient),
        };
        in_range("initial_constant", plan.initial_constant, 1e-10..=LARGEST_CONSTANT)?;
        in_range("learning_rate", plan.learning_rate, 1e-10..=100.)?;
        in_range("confidence", plan.confidence, 0. ..=1e6)?;
        // A binary search has used up the digits of f32 long before.
        in_range("search_steps", plan.search_steps, 1..=50)?;
        in_range("iterations", plan.iterations, 1..=1_000_000)?;
        Ok(plan)
    }
}
