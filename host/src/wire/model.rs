//! Classifiers and purifiers of plugins. Nothing they return is believed: shapes and values are checked here.

use crate::plugin::fenv::Foreign;
use crate::plugin::{Plugin, sealed};
use crate::wire::boundary::{LentCall, LentTensor, Origin};
use crate::wire::info;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::abi_stable::std_types::{RString, RVec};
use advae_abi::info::{Construct, Kind, ModelInfo, TrainSettings};
use advae_abi::{
    AbiError, AbiResult, AbiTensor, AbiTensorRef, CtxRef, DLDevice, DeviceBox, ErrorCode, Lesson, ModelBox, TapeBox,
    Taped, TrainableBox,
};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most features a sample.
const MOST_FEATURES: usize = 1 << 20;

/// A classifier (`x [N,C,H,W]` to logits `[N,K]`) or a purifier (`x` to `x`); clones share it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    kind: Kind,
    name: String,
    origin: Origin,
    info: ModelInfo,
    device: Option<ModelDevice>,
    model: Foreign<ModelBox>,
}

/// The device of a model that hands tensors over where they lie.
pub(super) struct ModelDevice {
    pub(super) id: DLDevice,
    pub(super) device: Foreign<DeviceBox>,
}

/// What a forward pass left behind for its way back.
pub struct Tape {
    origin: Origin,
    tape: Foreign<TapeBox>,
    input: Vec<usize>,
    output: Vec<usize>,
}

/// The parameters of a model under training.
pub struct Trainable {
    origin: Origin,
    trainable: Foreign<TrainableBox>,
}

/// Whether every row of `y [N,K]` is a probability distribution: nothing negative, and a sum of 1 within 1e-4. Logits hardly ever are; a
/// classifier that returns such rows has its softmax inside, through which gradients vanish where it is sure.
pub fn looks_like_probabilities(y: &Tensor) -> bool {
    let one = |row: &[f32]| row.iter().all(|v| *v >= 0.) && (row.iter().sum::<f32>() - 1.).abs() < 1e-4;
    y.rows() > 0 && (0..y.rows()).all(|i| one(y.row(i)))
}

impl Model {
    /// Constructs a classifier or a purifier and tries it on two black images.
    ///
    /// # Errors
    /// Where the plugin refuses the request or the trial gives other shapes than promised.
    pub fn construct(plugin: &Plugin, request: &Construct) -> Result<Self> {
        let kind = request.kind.unwrap_or(plugin.manifest.kind);
        if !matches!(kind, Kind::Classifier | Kind::Purifier) {
            bail!(
                "plugin '{}' is {}: a classifier or a purifier is needed here",
                plugin.file_name(),
                kind.with_article()
            );
        }
        let name = &plugin.manifest.name;
        let new = || ask(plugin, request).map(Foreign::new).into();
        let model = Origin::new(kind, name).enter("constructor", new)?;
        Self::wrap(kind, name, model)
    }

    /// Wraps a model that came from elsewhere, such as a threat model's substitute, and tries it likewise.
    ///
    /// # Errors
    /// As for [`construct`](Self::construct).
    pub fn from_box(kind: Kind, name: &str, model: ModelBox) -> Result<Self> {
        Self::wrap(kind, name, Foreign::new(model))
    }

    pub(super) fn wrap(kind: Kind, name: &str, model: Foreign<ModelBox>) -> Result<Self> {
        let origin = Origin::new(kind, name);
        let json = origin.enter("info", || model.info().map(String::from))?;
        let mut info = info::model(&origin, kind, &json)?;
        info.weights = sealed::original_names(&info.weights);
        let device = origin
            .enter("device", || model.device())?
            .into_option()
            .map(Foreign::new);
        let device = device.map(|device| ModelDevice::of(&origin, device)).transpose()?;
        let name = name.to_string();
        let model = Self(Arc::new(Inner {
            kind,
            name,
            origin,
            info,
            // Tensors on the CPU cross as they always have.
            device: device.filter(|device| device.id != DLDevice::CPU),
            model,
        }));
        model.try_out()?;
        Ok(model)
    }

    fn try_out(&self) -> Result<()> {
        let Some([c, h, w]) = self.info().input else {
            return Ok(());
        };
        let trial = self.forward(&Call::score(0, &[0, 1]), &Tensor::zeros(&[2, c, h, w]));
        trial.context("its trial on two black images failed").map(|_| ())
    }

    /// The plugin's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Classifier or purifier.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// What it says of itself.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Whether it hands tensors over on a device of its own: calls for one attack are then made on one thread.
    pub fn on_device(&self) -> bool {
        self.0.device.is_some()
    }

    /// Its device, where it hands tensors over there.
    pub(super) fn device(&self) -> Option<&ModelDevice> {
        self.0.device.as_ref()
    }

    /// What messages name it, and the plugin's own.
    pub(super) fn parts(&self) -> (&Origin, &ModelBox) {
        (&self.0.origin, &self.0.model)
    }

    /// Output for a batch.
    ///
    /// # Errors
    /// Where the plugin fails, writes into `x`, or answers with another shape, NaN or infinity.
    pub fn forward(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        self.plain(
            "forward",
            call,
            x,
            |ctx, x| self.0.model.forward(ctx, x),
            |y| self.output(call, x, y),
        )
    }

    /// Output for a batch, and the way back.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn forward_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, Tape)> {
        self.taped(
            "forward",
            call,
            x,
            |ctx, x| self.0.model.forward_tape(ctx, x),
            |y| self.output(call, x, y),
        )
    }

    /// Activations of the penultimate layer `[N,F]`.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward), or where the model exposes none.
    pub fn features(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        self.plain(
            "features",
            call,
            x,
            |ctx, x| self.0.model.features(ctx, x),
            |y| self.features_of(call, x, y),
        )
    }

    /// The same, and the way back.
    ///
    /// # Errors
    /// As for [`features`](Self::features).
    pub fn features_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, Tape)> {
        self.taped(
            "features",
            call,
            x,
            |ctx, x| self.0.model.features_tape(ctx, x),
            |y| self.features_of(call, x, y),
        )
    }

    fn plain(
        &self,
        function: &'static str,
        call: &Call,
        x: &Tensor,
        pass: impl FnOnce(CtxRef<'_>, AbiTensorRef<'_>) -> AbiResult<AbiTensor>,
        receive: impl FnOnce(&AbiTensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.check_call(call, x)?;
        let origin = &self.0.origin;
        // They live until the output is copied: a plugin may return memory that it was lent.
        let (mut ids, mut images) = (LentCall::new(call), LentTensor::new("images", call, x));
        let y = origin.enter(function, || pass(ids.lend(), images.lend()).map(Foreign::new))?;
        origin.check_unwritten(&[&ids, &images])?;
        receive(&y)
    }

    fn taped(
        &self,
        function: &'static str,
        call: &Call,
        x: &Tensor,
        pass: impl FnOnce(CtxRef<'_>, AbiTensorRef<'_>) -> AbiResult<Taped>,
        receive: impl FnOnce(&AbiTensor) -> Result<Tensor>,
    ) -> Result<(Tensor, Tape)> {
        self.check_call(call, x)?;
        let origin = &self.0.origin;
        let (mut ids, mut images) = (LentCall::new(call), LentTensor::new("images", call, x));
        let apart = |Taped { y, tape }| (Foreign::new(y), Foreign::new(tape));
        let (y, tape) = origin.enter(function, || pass(ids.lend(), images.lend()).map(apart))?;
        origin.check_unwritten(&[&ids, &images])?;
        let y = receive(&y)?;
        let tape = Tape {
            origin: origin.clone(),
            tape,
            input: x.shape.clone(),
            output: y.shape.clone(),
        };
        Ok((y, tape))
    }

    fn output(&self, call: &Call, x: &Tensor, y: &AbiTensor) -> Result<Tensor> {
        let expected = match self.0.info.classes.filter(|_| self.0.kind == Kind::Classifier) {
            Some(classes) => vec![x.rows(), classes],
            None => x.shape.clone(),
        };
        let origin = &self.0.origin;
        let y = origin.copy(y, &expected, "an output")?;
        origin.check_finite(call, &y, "output", ("image", x))?;
        Ok(y)
    }

    fn features_of(&self, call: &Call, x: &Tensor, y: &AbiTensor) -> Result<Tensor> {
        let origin = &self.0.origin;
        let shape = y.view().shape().map_err(|e| origin.blame(&e))?;
        let [n, features] = shape[..] else {
            let text = format!("its features have shape {shape:?}, expected [{}, F]", x.rows());
            return Err(origin.fault(ErrorCode::Shape, text));
        };
        if n != x.rows() || features > MOST_FEATURES {
            let text = format!(
                "its features have shape {shape:?}, expected [{}, F] with {MOST_FEATURES} features at most",
                x.rows()
            );
            return Err(origin.fault(ErrorCode::Shape, text));
        }
        let y = origin.copy(y, &shape, "features")?;
        origin.check_finite(call, &y, "features", ("image", x))?;
        Ok(y)
    }

    /// The parameters, to be trained.
    ///
    /// # Errors
    /// Where the plugin cannot be trained.
    pub fn trainable(&self, settings: &TrainSettings) -> Result<Trainable> {
        let json = serde_json::to_string(settings)?;
        let origin = self.0.origin.clone();
        let trainable = origin.enter("trainable", || {
            self.0.model.trainable(json.as_str().into()).map(Foreign::new)
        })?;
        Ok(Trainable { origin, trainable })
    }

    fn check_call(&self, call: &Call, x: &Tensor) -> Result<()> {
        let origin = &self.0.origin;
        ensure!(
            call.ids.len() == x.rows(),
            "{origin} was given {} ids for {} images",
            call.ids.len(),
            x.rows()
        );
        if let Some(input) = self.0.info.input {
            ensure!(
                x.shape.get(1..) == Some(&input[..]),
                "{origin} takes images {input:?}, not {:?}",
                &x.shape[1..]
            );
        }
        Ok(())
    }
}

impl ModelDevice {
    fn of(origin: &Origin, device: Foreign<DeviceBox>) -> Result<Self> {
        let id = origin.enter("device", || device.device())?;
        Ok(Self { id, device })
    }
}

/// Asks the plugin for a model, which is not looked at. What it says of its weights in an error names the user's file.
///
/// # Errors
/// The plugin's own.
pub fn ask(plugin: &Plugin, request: &Construct) -> Result<ModelBox, AbiError> {
    let json = serde_json::to_string(request).map_err(|e| AbiError::from_error(ErrorCode::Config, &e))?;
    let model = (plugin.root().new_model())(json.as_str().into()).into_result();
    model.map_err(|mut error| {
        error.message = sealed::original_names(&error.message).into();
        for cause in error.chain.iter_mut() {
            *cause = sealed::original_names(cause).into();
        }
        error
    })
}

impl Tape {
    /// Pulls a cotangent `[like the output]` back to the input. Absent where only parameter gradients were summed.
    ///
    /// # Errors
    /// Where the plugin fails or answers with another shape.
    pub fn backward(&self, call: &Call, cotangent: &Tensor) -> Result<Option<Tensor>> {
        let origin = &self.origin;
        ensure!(
            cotangent.shape == self.output,
            "{origin}'s tape was given a cotangent of shape {:?}, expected {:?}",
            cotangent.shape,
            self.output
        );
        let (mut ids, mut lent) = (LentCall::new(call), LentTensor::new("cotangents", call, cotangent));
        let back = || {
            self.tape
                .backward(ids.lend(), lent.lend())
                .map(|gradient| gradient.into_option().map(Foreign::new))
        };
        let gradient = origin.enter("backward", back)?;
        origin.check_unwritten(&[&ids, &lent])?;
        let Some(gradient) = gradient else {
            return Ok(None);
        };
        let gradient = origin.copy(&gradient, &self.input, "a gradient")?;
        origin.check_finite(call, &gradient, "gradient", ("cotangent", cotangent))?;
        Ok(Some(gradient))
    }
}

impl Trainable {
    /// One step of the optimiser along the summed gradients, which are then zero again.
    ///
    /// # Errors
    /// Where the plugin fails, or a tape of the model still lives.
    pub fn step(&self, learning_rate: f64) -> Result<()> {
        self.origin.enter("step", || self.trainable.step(learning_rate))
    }

    /// One update by the plugin's own objective, on images `[N,C,H,W]`, adversarial ones of the same samples if there are, and labels:
    /// what it measured, by name, `loss` among it.
    ///
    /// # Errors
    /// Where the plugin fails, has no objective of its own, or answers with anything else.
    pub fn learn(
        &self,
        call: &Call,
        clean: &Tensor,
        adversarial: Option<&Tensor>,
        labels: &[u32],
        learning_rate: f64,
    ) -> Result<BTreeMap<String, f64>> {
        let labels: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
        let (mut ids, mut images) = (LentCall::new(call), LentTensor::new("images", call, clean));
        let mut adversarial = adversarial.map(|x| LentTensor::new("adversarial images", call, x));
        let mut labels = LentTensor::labels(call, &labels);
        let learn = || {
            let lesson = Lesson {
                clean: images.lend(),
                adversarial: adversarial.as_mut().map(LentTensor::lend).into(),
                labels: labels.lend(),
                learning_rate,
            };
            self.trainable.learn(ids.lend(), lesson).map(RString::into_string)
        };
        let measured = self.origin.enter("learn", learn)?;
        self.origin.check_unwritten(&[&ids, &images, &labels])?;
        adversarial
            .iter()
            .try_for_each(|lent| self.origin.check_unwritten(&[lent]))?;
        let measured: BTreeMap<String, f64> = serde_json::from_str(&measured)
            .with_context(|| format!("{} says badly what it measured: {measured}", self.origin))?;
        ensure!(
            measured.contains_key("loss"),
            "{} measured no 'loss': its objective must name one",
            self.origin
        );
        Ok(measured)
    }

    /// Forgets the summed gradients.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn zero_gradients(&self) -> Result<()> {
        self.origin.enter("zero_gradients", || self.trainable.zero_gradients())
    }

    /// The weights, as a safetensors blob.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn save_weights(&self) -> Result<Vec<u8>> {
        self.origin
            .enter("save_weights", || self.trainable.save_weights().map(RVec::into_vec))
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// Where the blob does not fit the model.
    pub fn load_weights(&self, blob: &[u8]) -> Result<()> {
        self.origin
            .enter("load_weights", || self.trainable.load_weights(blob.into()))
    }

    /// The optimiser's moments and step count.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn save_state(&self) -> Result<Vec<u8>> {
        self.origin
            .enter("save_state", || self.trainable.save_state().map(RVec::into_vec))
    }

    /// Restores the optimiser.
    ///
    /// # Errors
    /// Where the blob does not fit the optimiser.
    pub fn load_state(&self, blob: &[u8]) -> Result<()> {
        self.origin
            .enter("load_state", || self.trainable.load_state(blob.into()))
    }
}

impl Origin {
    fn copy(&self, tensor: &AbiTensor, expected: &[usize], what: &str) -> Result<Tensor> {
        Tensor::copy_from(tensor.view(), expected, what).map_err(|e| self.blame(&e))
    }

    /// Refuses NaN and infinity in `y`, a row a sample, which came of `from` (what that is, and its rows).
    fn check_finite(&self, call: &Call, y: &Tensor, what: &str, from: (&str, &Tensor)) -> Result<()> {
        let Some((row, value)) = y.not_finite() else {
            return Ok(());
        };
        let (name, from) = from;
        let largest = from.row(row).iter().fold(0f32, |largest, v| largest.max(v.abs()));
        // Whoever gave such numbers may be at fault as much as the model.
        let given = if largest > 1e4 {
            format!(", of {name}s up to {largest:e}")
        } else {
            String::new()
        };
        let text = format!("its {what} for sample {} contains {value}{given}", call.ids[row]);
        Err(self.fault(ErrorCode::Compute, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nan_names_the_sample_and_numbers_that_overflow_are_named_too() {
        let origin = Origin::new(Kind::Classifier, "m");
        let y = Tensor::new(vec![2, 2], vec![0., 1., f32::NAN, 2.]).unwrap();
        let said = |x: f32| {
            let x = Tensor::new(vec![2, 1], vec![0., x]).unwrap();
            let error = origin.check_finite(&Call::score(0, &[4, 9]), &y, "output", ("image", &x));
            format!("{:#}", error.unwrap_err())
        };
        assert_eq!(said(0.5), "classifier 'm': its output for sample 9 contains NaN");
        assert_eq!(
            said(-1e38),
            "classifier 'm': its output for sample 9 contains NaN, of images up to 1e38"
        );
    }

    #[test]
    fn probabilities_are_told_from_logits() {
        let rows = |data: Vec<f32>| Tensor::new(vec![data.len() / 2, 2], data).unwrap();
        assert!(looks_like_probabilities(&rows(vec![0.25, 0.75, 1., 0.])));
        assert!(!looks_like_probabilities(&rows(vec![0.25, 0.75, 1.5, -0.5])));
        assert!(!looks_like_probabilities(&rows(vec![0.25, 0.75, 0.9, 0.2])));
        assert!(!looks_like_probabilities(&rows(vec![])));
    }
}
