//! Classifiers.

use crate::model::Network;
use crate::settings::Settings;
use crate::teacher::Teacher;
use advae_abi::info::{BackwardRule, ModelInfo, Threading};
use advae_nn::{Pass, Weights};
use candle_core::{Result, Tensor};
use serde_json::{Map, Value};

/// Images to logits.
pub trait Classifier: Sized + Send + Sync + 'static {
    /// What can be set.
    type Settings: Settings;
    /// `Internal` for stock candle ops; `Caller` for networks made of [`advae_nn`]'s layers, whose kernels stay on the
    /// thread that calls them, so that the host can run one worker a core.
    const THREADING: Threading = Threading::Internal;
    /// Images a call that it works best with, where it matters: results do not depend on it.
    const BATCH: Option<usize> = None;

    /// Builds the network; asks `weights` for every parameter by name, shape and initialisation.
    ///
    /// # Errors
    /// Where a setting is out of its range, and those of [`Weights::param`].
    fn new(settings: Self::Settings, weights: &Weights) -> Result<Self>;

    /// Shape of one image `[C,H,W]`, pixels in `[0,1]`. May come out of the weights or the settings.
    fn input(&self) -> [usize; 3];

    /// Number of classes. May come out of the weights or the settings.
    fn classes(&self) -> usize;

    /// Images `[N,C,H,W]` to **logits** `[N,K]` (never probabilities), sample by sample.
    ///
    /// # Errors
    /// Where an operation fails. Images of another shape than [`input`](Self::input) do not come here: the sdk refuses them.
    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor>;

    /// Whether the output is random. All randomness comes from [`Pass::rng`].
    fn random(&self) -> bool {
        false
    }

    /// [`THREADING`](Self::THREADING) where it depends on settings.
    fn threading(&self) -> Threading {
        Self::THREADING
    }

    /// [`BATCH`](Self::BATCH) where it depends on settings.
    fn batch(&self) -> Option<usize> {
        Self::BATCH
    }

    /// What a reader of its results must know; printed under them.
    fn note(&self) -> String {
        String::new()
    }

    /// Activations of the penultimate layer `[N,F]`, where the author exposes them.
    ///
    /// # Errors
    /// Where an operation fails.
    fn features(&self, _pass: &Pass, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// A classifier as the network behind the contract.
pub(crate) struct ClassifierNetwork<C>(pub C);

impl<C: Classifier> Network for ClassifierNetwork<C> {
    fn run(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.0.forward(pass, x)
    }

    fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        self.0.features(pass, x)
    }

    fn custom_backward(&self, _pass: &Pass, _x: &Tensor, _cotangent: &Tensor) -> Result<Tensor> {
        candle_core::bail!("a classifier has no custom backward rule")
    }

    fn teacher(&self, _own: &Map<String, Value>, _weights: &Weights) -> Result<Box<dyn Teacher>> {
        candle_core::bail!("a classifier is trained by the host's objectives")
    }

    fn info(&self) -> ModelInfo {
        ModelInfo {
            input: Some(self.0.input()),
            classes: Some(self.0.classes()),
            bounds: [0., 1.],
            backward_rules: vec![BackwardRule::Exact],
            random: self.0.random(),
            threading: self.0.threading(),
            batch: self.0.batch(),
            parameters: 0,
            weights: String::new(),
            note: self.0.note(),
        }
    }
}
