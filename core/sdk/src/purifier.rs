//! Purifiers.

use crate::model::Network;
use crate::settings::Settings;
use crate::teacher::Teacher;
use advae_abi::info::{BackwardRule, ModelInfo, Setting, Threading};
use advae_nn::{Pass, Weights};
use candle_core::{Result, Tensor};
use serde_json::{Map, Value};

/// Images to images: what stands in front of a frozen classifier.
pub trait Purifier: Sized + Send + Sync + 'static {
    /// What can be set.
    type Settings: Settings;
    /// Shape of one image `[C,H,W]`, pixels in `[0,1]`; `None` where any shape goes.
    const INPUT: Option<[usize; 3]> = None;
    /// Whether the output is random. All randomness comes from [`Pass::rng`].
    const RANDOM: bool = false;
    /// The backward rules the author offers, the default first. `Identity` is BPDA (Athalye et al. 2018), `None` is
    /// what a naive evaluation of a non-differentiable purifier sees; the evaluator may choose any of them, and
    /// `Identity` or `None` always.
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Exact];
    /// See [`Classifier::THREADING`](crate::Classifier::THREADING).
    const THREADING: Threading = Threading::Internal;
    /// See [`Classifier::BATCH`](crate::Classifier::BATCH).
    const BATCH: Option<usize> = None;

    /// Builds the purifier; asks `weights` for every parameter by name, shape and initialisation.
    ///
    /// # Errors
    /// Where a setting is out of its range, and those of [`Weights::param`].
    fn new(settings: Self::Settings, weights: &Weights) -> Result<Self>;

    /// Images `[N,C,H,W]` to purified images of the same shape, sample by sample.
    ///
    /// # Errors
    /// Where an operation fails. Images of another shape than [`input`](Self::input) do not come here: the sdk refuses them.
    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor>;

    /// The rule `Custom`: the cotangent of the output pulled back to the input, both `[N,C,H,W]`.
    ///
    /// # Errors
    /// Where an operation fails, and always unless it is implemented.
    fn custom_backward(&self, _pass: &Pass, _x: &Tensor, _cotangent: &Tensor) -> Result<Tensor> {
        candle_core::bail!("this purifier lists the backward rule custom but does not implement custom_backward")
    }

    /// [`BACKWARD`](Self::BACKWARD) where it depends on settings.
    fn backward(&self) -> Vec<BackwardRule> {
        Self::BACKWARD.to_vec()
    }

    /// [`RANDOM`](Self::RANDOM) where it depends on settings.
    fn random(&self) -> bool {
        Self::RANDOM
    }

    /// [`INPUT`](Self::INPUT) where it depends on settings or weights.
    fn input(&self) -> Option<[usize; 3]> {
        Self::INPUT
    }

    /// [`THREADING`](Self::THREADING) where it depends on settings.
    fn threading(&self) -> Threading {
        Self::THREADING
    }

    /// [`BATCH`](Self::BATCH) where it depends on settings.
    fn batch(&self) -> Option<usize> {
        Self::BATCH
    }

    /// What a reader of its results must know, such as how long it was trained; printed under them.
    fn note(&self) -> String {
        String::new()
    }

    /// Settings of its own objective, for listing: [`describe`](crate::describe) of what [`teacher`](Self::teacher) reads.
    fn own_settings() -> Vec<Setting> {
        vec![]
    }

    /// What trains it where a recipe says `objective = "own"`, with the recipe's table `own` ([`read`](crate::read) reads it), and
    /// seeded initialisations for parameters that are of use in training alone. Without one, the host's objectives train it.
    ///
    /// # Errors
    /// Where `own` does not fit, and always unless it is implemented.
    fn teacher(&self, _own: &Map<String, Value>, _weights: &Weights) -> Result<Box<dyn Teacher>> {
        candle_core::bail!("this purifier has no objective of its own: leave objective = \"own\" out of the recipe")
    }
}

/// A purifier as the network behind the contract.
pub(crate) struct PurifierNetwork<P>(pub P);

impl<P: Purifier> Network for PurifierNetwork<P> {
    fn run(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.0.purify(pass, x)
    }

    fn features(&self, _pass: &Pass, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    fn custom_backward(&self, pass: &Pass, x: &Tensor, cotangent: &Tensor) -> Result<Tensor> {
        self.0.custom_backward(pass, x, cotangent)
    }

    fn teacher(&self, own: &Map<String, Value>, weights: &Weights) -> Result<Box<dyn Teacher>> {
        self.0.teacher(own, weights)
    }

    fn info(&self) -> ModelInfo {
        ModelInfo {
            input: self.0.input(),
            classes: None,
            bounds: [0., 1.],
            backward_rules: self.0.backward(),
            random: self.0.random(),
            threading: self.0.threading(),
            batch: self.0.batch(),
            parameters: 0,
            weights: String::new(),
            note: self.0.note(),
        }
    }
}
