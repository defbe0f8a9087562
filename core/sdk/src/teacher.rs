//! Training by an objective of the plugin's own, such as a generator against its critic.

use advae_nn::{Adam, Param, Pass};
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, bail};
use std::collections::BTreeMap;

/// What one update learns from.
pub struct Lesson {
    /// A training pass: train mode, weight gradients, and the samples' ids for random numbers.
    pub pass: Pass,
    /// Images `[N,C,H,W]`.
    pub clean: Tensor,
    /// Adversarial images of the same samples, where the recipe names an attack.
    pub adversarial: Option<Tensor>,
    /// True labels `[N]` (`i64`).
    pub labels: Tensor,
    /// The rate that the recipe gives this epoch.
    pub learning_rate: f64,
}

impl Lesson {
    /// The adversarial images.
    ///
    /// # Errors
    /// When the recipe names no attack.
    pub fn adversarial(&self) -> Result<&Tensor> {
        match &self.adversarial {
            Some(x) => Ok(x),
            None => bail!("this purifier learns from adversarial images: name an attack in the recipe"),
        }
    }
}

/// The value of a loss `[]`, for what a [`Teacher`] measured.
///
/// # Errors
/// When it is no single number.
pub fn scalar(loss: &Tensor) -> Result<f64> {
    loss.to_dtype(candle_core::DType::F64)?.to_scalar()
}

/// Trains a purifier by an objective of its own. The host brings the images, the rate and the attack, keeps checkpoints, and validates
/// by what the classifier says behind the purifier.
pub trait Teacher: Send {
    /// One update. Answers what it measured, `loss` among them; the log has the mean of each over an epoch.
    ///
    /// # Errors
    /// When an operation fails.
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>>;

    /// Everything that learns, by name. A checkpoint holds them, so that a resumed run is the uninterrupted one.
    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)>;
}

/// Parameters and the optimiser that moves them.
pub struct Learner {
    params: Vec<Param>,
    adam: Adam,
}

impl Learner {
    /// Parameters under an optimiser.
    pub fn new(params: Vec<Param>, adam: Adam) -> Self {
        Self { params, adam }
    }

    /// Steps made so far, checkpoints included.
    pub fn steps(&self) -> u64 {
        self.adam.steps()
    }

    /// One step down a loss `[]`. Other parameters stay, even where the loss depends on them.
    ///
    /// # Errors
    /// When the loss is no number, or depends on none of the parameters.
    pub fn step(&mut self, loss: &Tensor, learning_rate: f64) -> Result<()> {
        self.step_along(&loss.backward()?, learning_rate)
    }

    /// One step along gradients, of the shapes of the parameters.
    ///
    /// # Errors
    /// When they hold none of the parameters.
    pub fn step_along(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        let of = |param: &Param| gradients.get(param.var().as_tensor()).cloned();
        let gradients: Vec<_> = self.params.iter().map(of).collect();
        if gradients.iter().all(Option::is_none) {
            bail!("the loss depends on none of the parameters that are to learn from it")
        }
        self.adam.step(&self.params, &gradients, learning_rate)
    }

    fn save(&self) -> Result<[Vec<u8>; 2]> {
        Ok([advae_nn::save_safetensors(&self.params)?, self.adam.save_state()?])
    }

    fn load(&mut self, weights: &[u8], state: &[u8]) -> Result<()> {
        crate::train::load_weights(&self.params, weights)?;
        self.adam.load_state(state)
    }
}

const PARTS: [&str; 2] = ["weights", "adam"];

/// All learners as blobs by name.
pub(crate) fn save(teacher: &mut dyn Teacher) -> Result<Vec<(String, Vec<u8>)>> {
    let mut blobs = vec![];
    for (name, learner) in teacher.learners() {
        let parts = PARTS.iter().zip(learner.save()?);
        blobs.extend(parts.map(|(part, blob)| (format!("{name}/{part}"), blob)));
    }
    Ok(blobs)
}

/// Restores what [`save`] wrote.
pub(crate) fn load(teacher: &mut dyn Teacher, blobs: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (name, learner) in teacher.learners() {
        let part = |part: &str| match blobs.get(&format!("{name}/{part}")) {
            Some(blob) => Ok(blob),
            None => bail!("the checkpoint has no {part} of '{name}'"),
        };
        learner.load(part(PARTS[0])?, part(PARTS[1])?)?;
    }
    Ok(())
}
