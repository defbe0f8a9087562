//! Settings and their presets.

use advae_sdk::candle_core::bail;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

settings! {
    /// A preset, and what departs from it.
    pub struct CwSettings {
        /// Where the other settings come from: paper (Li et al. 2019: c 10, 1 search, rate 0.2, 1000 iterations, abort),
        /// strong (c 0.001, 9 searches, rate 0.01, 1000 iterations, no abort) or authors_bpda (paper, but 30 iterations without
        /// the distance's gradient: what the authors' code runs against DefenseGAN, weaker than what their text says).
        preset: Preset = Preset::Paper,
        /// Weight of the classification term in the first search.
        initial_constant: Option<f64> = None,
        /// Number of searches, each with a weight of its own: a binary search for the smallest that succeeds.
        search_steps: Option<usize> = None,
        /// Learning rate of Adam in tanh space.
        learning_rate: Option<f64> = None,
        /// Iterations of each search.
        iterations: Option<usize> = None,
        /// By how much the logit of another class must lead (untargeted), or the target's (targeted).
        confidence: f64 = 0.,
        /// End a search once its loss fell by less than 0.01 % over a tenth of the iterations.
        abort: Option<bool> = None,
        /// Whether the distance takes part in the descent; without it any success counts, however far.
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
        for (name, value) in [
            ("initial_constant", plan.initial_constant),
            ("learning_rate", plan.learning_rate),
        ] {
            if !(value.is_finite() && value > 0.) {
                bail!("{name} is {value}: it must be a finite number above 0")
            }
        }
        if !(plan.confidence.is_finite() && plan.confidence >= 0.) {
            bail!(
                "confidence is {}: it must be a finite number, 0 or more",
                plan.confidence
            )
        }
        if plan.search_steps == 0 || plan.iterations == 0 {
            bail!(
                "search_steps is {}, iterations is {}: both must be 1 or more",
                plan.search_steps,
                plan.iterations
            )
        }
        Ok(plan)
    }
}
