//! Classifiers and purifiers of plugins. Nothing they return is believed: shapes and values are checked here.

use crate::plugin::{Plugin, sealed};
use crate::wire::tensor::{Call, Tensor};
use advae_abi::info::{Construct, Kind, ModelInfo, TrainSettings};
use advae_abi::{AbiError, AbiTensor, AbiTensorRef, Dims, ErrorCode, Lesson, ModelBox, TapeBox, Taped, TrainableBox};
use anyhow::{Context, Result, anyhow, bail, ensure};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A classifier (`x [N,C,H,W]` to logits `[N,K]`) or a purifier (`x` to `x`); clones share it.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    origin: Origin,
    info: ModelInfo,
    model: ModelBox,
}

/// Where an object comes from, as messages name it.
#[derive(Clone, Debug)]
struct Origin {
    kind: Kind,
    name: String,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} '{}'", self.kind, self.name)
    }
}

/// What a forward pass left behind for its way back.
pub struct Tape {
    origin: Origin,
    tape: TapeBox,
    input: Vec<usize>,
    output: Vec<usize>,
}

/// The parameters of a model under training.
pub struct Trainable {
    origin: Origin,
    trainable: TrainableBox,
}

impl Model {
    /// Constructs a classifier or a purifier and tries it on two black images.
    ///
    /// # Errors
    /// Where the plugin refuses the request or the trial gives other shapes than promised.
    pub fn construct(plugin: &Plugin, request: &Construct) -> Result<Self> {
        let kind = plugin.manifest.kind;
        if !matches!(kind, Kind::Classifier | Kind::Purifier) {
            bail!(
                "plugin '{}' is {}: a classifier or a purifier is needed here",
                plugin.file_name(),
                kind.with_article()
            );
        }
        let origin = Origin {
            kind,
            name: plugin.manifest.name.clone(),
        };
        Self::from_box(
            kind,
            &plugin.manifest.name,
            ask(plugin, request).map_err(|e| origin.blame(e))?,
        )
    }

    /// Wraps a model that came from elsewhere, such as a threat model's substitute, and tries it likewise.
    ///
    /// # Errors
    /// As for [`construct`](Self::construct).
    pub fn from_box(kind: Kind, name: &str, model: ModelBox) -> Result<Self> {
        let origin = Origin {
            kind,
            name: name.into(),
        };
        let json = model
            .info()
            .into_result()
            .map_err(|e| anyhow!(e).context(origin.to_string()))?;
        let mut info: ModelInfo =
            serde_json::from_str(&json).with_context(|| format!("{origin} describes itself badly"))?;
        info.weights = sealed::original_names(&info.weights);
        if kind == Kind::Classifier {
            ensure!(
                info.classes.is_some_and(|k| k >= 2),
                "{origin} names no number of classes in its info"
            );
            ensure!(info.input.is_some(), "{origin} names no input shape in its info");
        }
        let model = Self(Arc::new(Inner { origin, info, model }));
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
        &self.0.origin.name
    }

    /// Classifier or purifier.
    pub fn kind(&self) -> Kind {
        self.0.origin.kind
    }

    /// What it says of itself.
    pub fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    /// Output for a batch.
    ///
    /// # Errors
    /// Where the plugin fails, or answers with another shape, NaN or infinity.
    pub fn forward(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        self.check_call(call, x)?;
        let (ctx, dims) = (call.context(), x.dims());
        let y = self.0.model.forward(ctx.lend(call.ids), x.lend(&dims)).into_result();
        self.receive(call, x, &y.map_err(|e| self.0.origin.blame(e))?)
    }

    /// Output for a batch, and the way back.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub fn forward_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, Tape)> {
        self.check_call(call, x)?;
        let (ctx, dims) = (call.context(), x.dims());
        let taped = self
            .0
            .model
            .forward_tape(ctx.lend(call.ids), x.lend(&dims))
            .into_result();
        let Taped { y, tape } = taped.map_err(|e| self.0.origin.blame(e))?;
        let y = self.receive(call, x, &y)?;
        let tape = self.tape(tape, x, &y);
        Ok((y, tape))
    }

    fn tape(&self, tape: TapeBox, x: &Tensor, y: &Tensor) -> Tape {
        Tape {
            origin: self.0.origin.clone(),
            tape,
            input: x.shape.clone(),
            output: y.shape.clone(),
        }
    }

    /// Activations of the penultimate layer `[N,F]`.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward), or where the model exposes none.
    pub fn features(&self, call: &Call, x: &Tensor) -> Result<Tensor> {
        self.check_call(call, x)?;
        let (ctx, dims) = (call.context(), x.dims());
        let y = self.0.model.features(ctx.lend(call.ids), x.lend(&dims)).into_result();
        self.receive_features(call, x, &y.map_err(|e| self.0.origin.blame(e))?)
    }

    /// The same, and the way back.
    ///
    /// # Errors
    /// As for [`features`](Self::features).
    pub fn features_tape(&self, call: &Call, x: &Tensor) -> Result<(Tensor, Tape)> {
        self.check_call(call, x)?;
        let (ctx, dims) = (call.context(), x.dims());
        let taped = (self.0.model)
            .features_tape(ctx.lend(call.ids), x.lend(&dims))
            .into_result();
        let Taped { y, tape } = taped.map_err(|e| self.0.origin.blame(e))?;
        let y = self.receive_features(call, x, &y)?;
        let tape = self.tape(tape, x, &y);
        Ok((y, tape))
    }

    fn receive_features(&self, call: &Call, x: &Tensor, y: &AbiTensor) -> Result<Tensor> {
        let y = self.0.origin.copy(y)?;
        ensure!(
            y.shape.len() == 2 && y.rows() == x.rows(),
            "{} gave features of shape {:?}",
            self.0.origin,
            y.shape
        );
        self.0.origin.check_finite(call, &y, "features")?;
        Ok(y)
    }

    /// The parameters, to be trained.
    ///
    /// # Errors
    /// Where the plugin cannot be trained.
    pub fn trainable(&self, settings: &TrainSettings) -> Result<Trainable> {
        let json = serde_json::to_string(settings)?;
        let trainable = self.0.model.trainable(json.as_str().into()).into_result();
        let origin = self.0.origin.clone();
        Ok(Trainable {
            trainable: trainable.map_err(|e| origin.blame(e))?,
            origin,
        })
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

    fn receive(&self, call: &Call, x: &Tensor, y: &AbiTensor) -> Result<Tensor> {
        let origin = &self.0.origin;
        let y = origin.copy(y)?;
        let expected = match self.0.info.classes.filter(|_| origin.kind == Kind::Classifier) {
            Some(classes) => vec![x.rows(), classes],
            None => x.shape.clone(),
        };
        origin.check_shape(&y.shape, &expected, "an output")?;
        origin.check_finite(call, &y, "output")?;
        Ok(y)
    }
}

/// Asks the plugin for a model. What it says of its weights in an error names the user's file.
pub(super) fn ask(plugin: &Plugin, request: &Construct) -> Result<ModelBox, AbiError> {
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
        origin.check_shape(&cotangent.shape, &self.output, "a cotangent (from the caller)")?;
        let (ctx, dims) = (call.context(), cotangent.dims());
        let gradient = self
            .tape
            .backward(ctx.lend(call.ids), cotangent.lend(&dims))
            .into_result();
        let Some(gradient) = gradient.map_err(|e| origin.blame(e))?.into_option() else {
            return Ok(None);
        };
        let gradient = origin.copy(&gradient)?;
        origin.check_shape(&gradient.shape, &self.input, "a gradient")?;
        origin.check_finite(call, &gradient, "gradient")?;
        Ok(Some(gradient))
    }
}

impl Trainable {
    /// One step of the optimiser along the summed gradients, which are then zero again.
    ///
    /// # Errors
    /// Where the plugin fails, or a tape of the model still lives.
    pub fn step(&self, learning_rate: f64) -> Result<()> {
        self.trainable
            .step(learning_rate)
            .into_result()
            .map_err(|e| self.origin.blame(e))
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
        let (ctx, dims, label_dims) = (call.context(), clean.dims(), Dims::new(&[labels.len()]));
        let adversarial = adversarial.map(|x| (x, x.dims()));
        let lesson = Lesson {
            clean: clean.lend(&dims),
            adversarial: adversarial.as_ref().map(|(x, dims)| x.lend(dims)).into(),
            labels: AbiTensorRef::from_slice(&labels, &label_dims),
            learning_rate,
        };
        let measured = self.trainable.learn(ctx.lend(call.ids), lesson).into_result();
        let measured = measured.map_err(|e| self.origin.blame(e))?;
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
        self.trainable
            .zero_gradients()
            .into_result()
            .map_err(|e| self.origin.blame(e))
    }

    /// The weights, as a safetensors blob.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn save_weights(&self) -> Result<Vec<u8>> {
        self.trainable
            .save_weights()
            .into_result()
            .map(|b| b.into_vec())
            .map_err(|e| self.origin.blame(e))
    }

    /// Replaces the weights.
    ///
    /// # Errors
    /// Where the blob does not fit the model.
    pub fn load_weights(&self, blob: &[u8]) -> Result<()> {
        self.trainable
            .load_weights(blob.into())
            .into_result()
            .map_err(|e| self.origin.blame(e))
    }

    /// The optimiser's moments and step count.
    ///
    /// # Errors
    /// Where the plugin fails.
    pub fn save_state(&self) -> Result<Vec<u8>> {
        self.trainable
            .save_state()
            .into_result()
            .map(|b| b.into_vec())
            .map_err(|e| self.origin.blame(e))
    }

    /// Restores the optimiser.
    ///
    /// # Errors
    /// Where the blob does not fit the optimiser.
    pub fn load_state(&self, blob: &[u8]) -> Result<()> {
        self.trainable
            .load_state(blob.into())
            .into_result()
            .map_err(|e| self.origin.blame(e))
    }
}

impl Origin {
    fn blame(&self, error: AbiError) -> anyhow::Error {
        anyhow!(error).context(self.to_string())
    }

    fn copy(&self, tensor: &AbiTensor) -> Result<Tensor> {
        Tensor::copy_from(tensor.view()).map_err(|e| self.blame(e))
    }

    fn check_shape(&self, shape: &[usize], expected: &[usize], what: &str) -> Result<()> {
        if shape != expected {
            let text = format!("{what} has shape {shape:?}, expected {expected:?}");
            return Err(self.blame(AbiError::new(ErrorCode::Shape, text)));
        }
        Ok(())
    }

    fn check_finite(&self, call: &Call, y: &Tensor, what: &str) -> Result<()> {
        let Some(at) = y.data.iter().position(|v| !v.is_finite()) else {
            return Ok(());
        };
        let row = at / y.row_len();
        let text = format!("its {what} for sample {} contains {}", call.ids[row], y.data[at]);
        Err(self.blame(AbiError::new(ErrorCode::Compute, text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            kind: Kind::Classifier,
            name: "m".into(),
        }
    }

    #[test]
    fn a_wrong_shape_names_both() {
        let error = origin().check_shape(&[2, 3], &[2, 10], "an output").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "classifier 'm': an output has shape [2, 3], expected [2, 10]"
        );
    }

    #[test]
    fn a_nan_names_the_sample() {
        let y = Tensor::new(vec![2, 2], vec![0., 1., f32::NAN, 2.]).unwrap();
        let error = origin()
            .check_finite(&Call::score(0, &[4, 9]), &y, "output")
            .unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "classifier 'm': its output for sample 9 contains NaN"
        );
    }
}
