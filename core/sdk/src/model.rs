//! The shim between a network of candle tensors and the contract's models and tapes.

use crate::convert::{export_to, import_to, json, run, to_abi, to_candle};
use crate::teacher::Teacher;
use crate::train::Training;
use advae_abi::abi_stable::sabi_trait::TD_Opaque;
use advae_abi::abi_stable::std_types::{RNone, ROption, RSome, RStr, RString};
use advae_abi::info::{BackwardRule, Construct, MAP, ModelInfo, Threading, TrainSettings, WeightSource};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, AbiTrainable_TO, CtxRef,
    DLDataType, DeviceBox, ErrorCode, Guarded, ModelBox, Taped, TrainableBox, flags, guard,
};
use advae_nn::{KeyMap, Param, Pass, Rule, Weights};
use candle_core::{Device, Result, Tensor};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// What a classifier and a purifier have in common.
pub(crate) trait Network: Send + Sync + 'static {
    fn run(&self, pass: &Pass, x: &Tensor) -> Result<Tensor>;
    fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>>;
    fn custom_backward(&self, pass: &Pass, x: &Tensor, cotangent: &Tensor) -> Result<Tensor>;
    fn teacher(&self, own: &Map<String, Value>, weights: &Weights) -> Result<Box<dyn Teacher>>;
    fn info(&self) -> ModelInfo;
}

/// Weights of a network that neither brings any nor was given some.
const UNTRAINED: &str = "init:0";

/// Images a call on a GPU.
const GPU_BATCH: usize = 2500;

/// Named weight sets inside a plugin, the default first.
pub type WeightSets = &'static [(&'static str, &'static [u8])];

/// Builds a model for the host.
pub(crate) fn boxed<N: Network>(
    request: &Construct,
    sets: WeightSets,
    build: impl Fn(&Weights) -> Result<N>,
) -> std::result::Result<ModelBox, AbiError> {
    let device = crate::convert::device(&request.device)?;
    let (weights, source) = find_weights(&request.weights, sets)?;
    let weights = weights.with_device(&device);
    let config = |error| {
        let error = to_abi(error);
        let with = match request.weights {
            WeightSource::Default if sets.is_empty() => "cannot be built".into(),
            _ => format!("cannot build with weights '{source}'"),
        };
        let guess = match request.weights {
            WeightSource::Path(_) => guess(&weights, &build),
            _ => String::new(),
        };
        AbiError::new(ErrorCode::Config, format!("{with}: {error}{guess}"))
    };
    let built = build(&weights).and_then(|network| weights.finish().map(|()| network));
    let network = Guarded::new(built.map_err(config)?);
    let mut info = network.info();
    let rule = backward_rule(request.backward, &info.backward_rules)?;
    info.parameters = weights.parameter_count();
    info.note = noted(info.note, &weights);
    // A network's own values are no initialisation.
    info.weights = match weights.all_given() {
        true => "its own".into(),
        false => source,
    };
    if !device.is_cpu() {
        // A GPU works through one large batch at a time.
        (info.threading, info.batch) = (Threading::Internal, Some(GPU_BATCH));
    }
    let shared = Shared {
        network,
        info,
        rule,
        device,
        params: weights.params(),
        training: Training::default(),
    };
    Ok(AbiModel_TO::from_value(Model(Arc::new(shared)), TD_Opaque))
}

/// A map that would let a weight file fit, for a file that does not.
fn guess<N>(weights: &Weights, build: impl Fn(&Weights) -> Result<N>) -> String {
    let anew = Weights::init(0);
    let Ok(_) = build(&anew) else { return String::new() };
    match weights.guess(&anew.params()) {
        Some(map) => {
            let lines = map.lines().map(|line| format!("\n  {line}"));
            format!(
                "; by shapes this map could be right, a file for @FILE?map=MAP.toml (check it):{}",
                lines.collect::<String>()
            )
        }
        None => String::new(),
    }
}

/// A model's note, and how its weight file was read.
fn noted(note: String, weights: &Weights) -> String {
    let listed = |what: &str, names: &[String]| (!names.is_empty()).then(|| format!("{what}: {}", names.join(", ")));
    let counters = "ignored in the weight file, where PyTorch's batch norm counts its batches";
    let all = [
        Some(note).filter(|note| !note.is_empty()),
        listed(counters, weights.counters()),
        listed("transposed, as their shapes ask", &weights.transposed()),
    ];
    all.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

/// Weights and a name for them.
fn find_weights(source: &WeightSource, sets: WeightSets) -> std::result::Result<(Weights, String), AbiError> {
    let bad = |text: String| AbiError::new(ErrorCode::Config, text);
    let parse = |name: &str, bytes: &[u8]| {
        Weights::from_safetensors(bytes).map_err(|e| bad(format!("weights '{name}': {}", to_abi(e))))
    };
    match source {
        WeightSource::Default => match sets.first() {
            Some((name, bytes)) => Ok((parse(name, bytes)?, name.to_string())),
            None => Ok((Weights::own(), UNTRAINED.into())),
        },
        WeightSource::Set(name) => match sets.iter().find(|(known, _)| known == name) {
            Some((name, bytes)) => Ok((parse(name, bytes)?, name.to_string())),
            None => {
                let known: Vec<&str> = sets.iter().map(|(known, _)| *known).collect();
                let known = if known.is_empty() {
                    "it brings none".into()
                } else {
                    format!("it brings {}", known.join(", "))
                };
                Err(bad(format!(
                    "no weight set '{name}' in this plugin: {known}; a file is given as PLUGIN@PATH.safetensors"
                )))
            }
        },
        WeightSource::Path(path) => Ok((weight_file(path)?, path.clone())),
        WeightSource::Init(seed) => Ok((Weights::init(*seed), format!("init:{seed}"))),
    }
}

/// Weights of `FILE`, or of `FILE?map=MAP`.
fn weight_file(path: &str) -> std::result::Result<Weights, AbiError> {
    let bad = |text: String| AbiError::new(ErrorCode::Config, text);
    let read = |path: &str| std::fs::read(path).map_err(|e| bad(format!("cannot read the weights '{path}': {e}")));
    let (file, map) = match path.split_once(MAP) {
        Some((file, map)) => (file, Some(map)),
        None => (path, None),
    };
    let bytes = read(file)?;
    // What torch.save writes is a zip archive.
    let weights = match bytes.starts_with(b"PK") {
        true => Weights::from_pth(Path::new(file)),
        false => Weights::from_safetensors(&bytes),
    };
    let weights = weights.map_err(|e| bad(format!("weights '{file}': {}", to_abi(e))))?;
    let Some(map) = map else { return Ok(weights) };
    let refused = |e: &dyn std::fmt::Display| bad(format!("the map '{map}': {e}"));
    let rules: Map<String, Value> = serde_json::from_slice(&read(map)?).map_err(|e| refused(&e))?;
    let rules = rules.into_iter().map(rule).collect::<std::result::Result<_, _>>();
    let map = rules
        .and_then(|rules| KeyMap::new(rules).map_err(|e| e.to_string()))
        .map_err(|e| refused(&e))?;
    weights
        .renamed(&map)
        .map_err(|e| bad(format!("weights '{path}': {}", to_abi(e))))
}

/// `"parameter" = "tensor"`, or `{ tensor = "...", axes = [1, 0] }`.
fn rule((parameter, value): (String, Value)) -> std::result::Result<Rule, String> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Long {
        tensor: String,
        axes: Option<Vec<usize>>,
    }
    let (tensor, axes) = match value {
        Value::String(tensor) => (tensor, None),
        other => match serde_json::from_value::<Long>(other.clone()) {
            Ok(Long { tensor, axes }) => (tensor, axes),
            Err(_) => {
                return Err(format!(
                    "'{parameter}' is {other}: expected the name of a tensor, or {{ tensor = \"NAME\", axes = [1, 0] }}"
                ));
            }
        },
    };
    Ok(Rule {
        parameter,
        tensor,
        axes,
    })
}

/// The evaluator may always replace a gradient by the identity or by nothing: an adaptive attacker may.
fn backward_rule(asked: Option<BackwardRule>, offered: &[BackwardRule]) -> std::result::Result<BackwardRule, AbiError> {
    let rule = asked.or(offered.first().copied()).unwrap_or(BackwardRule::Exact);
    if offered.contains(&rule) || matches!(rule, BackwardRule::Identity | BackwardRule::None) {
        return Ok(rule);
    }
    let own = offered.first().map_or("exact", |rule| rule.name());
    let always = [BackwardRule::Identity, BackwardRule::None];
    let all = offered
        .iter()
        .chain(always.iter().filter(|rule| !offered.contains(rule)));
    let all: Vec<&str> = all.map(|rule| rule.name()).collect();
    Err(AbiError::new(
        ErrorCode::Config,
        format!(
            "backward rule '{}' is not offered: this plugin offers {}; without --backward every purifier goes by its own, this one by {own}",
            rule.name(),
            all.join(", ")
        ),
    ))
}

/// What model, tapes and trainable share.
pub(crate) struct Shared<N> {
    info: ModelInfo,
    rule: BackwardRule,
    pub(crate) device: Device,
    pub(crate) params: Vec<Param>,
    pub(crate) training: Training,
    pub(crate) network: Guarded<N>,
}

impl<N> Shared<N> {
    /// Takes images in. What is not of the declared shape is refused here: layers such as pooling take many shapes silently.
    ///
    /// # Errors
    /// [`ErrorCode::Shape`] for another shape or element type.
    pub(crate) fn images(&self, x: AbiTensorRef<'_>, leaf: bool) -> Result<Tensor> {
        let shape = x.shape().map_err(to_candle)?;
        let declared = |input: [usize; 3]| shape[1..] == input;
        if shape.len() == 4 && self.info.input.is_none_or(declared) && x.raw().dtype == DLDataType::F32 {
            return import_to(&self.device, x, leaf);
        }
        let [c, h, w] = (self.info.input).map_or(["C", "H", "W"].map(String::from), |i| i.map(|d| d.to_string()));
        let text = format!(
            "this model takes f32 images [N,{c},{h},{w}], not {shape:?} of {}: bring images of that shape",
            x.raw().dtype
        );
        Err(to_candle(AbiError::new(ErrorCode::Shape, text)))
    }
}

struct Model<N>(Arc<Shared<N>>);

impl<N: Network> AbiModel for Model<N> {
    fn info(&self) -> AbiResult<RString> {
        json(|| &self.0.info)
    }

    fn forward(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        run(ctx, |pass| {
            let x = self.0.images(x, false)?;
            export_to(ctx, &self.0.network.run(&Pass { track: false, ..pass }, &x)?)
        })
    }

    fn forward_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.taped(ctx, x, |network, pass, x| network.run(pass, x))
    }

    fn trainable(&self, settings: RStr<'_>) -> AbiResult<TrainableBox> {
        guard(|| {
            if !self.0.params.iter().any(|p| p.trainable()) {
                return advae_abi::not_trainable().into_result();
            }
            let bad = |e: serde_json::Error| AbiError::new(ErrorCode::Config, format!("bad training settings: {e}"));
            let settings: TrainSettings = serde_json::from_str(settings.as_str()).map_err(bad)?;
            let trainable = crate::train::Trainable::new(self.0.clone(), &settings)?;
            Ok(AbiTrainable_TO::from_value(trainable, TD_Opaque))
        })
    }

    fn features(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        run(ctx, |pass| {
            let x = self.0.images(x, false)?;
            export_to(ctx, &features(&*self.0.network, &Pass { track: false, ..pass }, &x)?)
        })
    }

    fn features_tape(&self, ctx: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        self.taped(ctx, x, features)
    }

    fn device(&self) -> AbiResult<ROption<DeviceBox>> {
        guard(|| {
            let device = &self.0.device;
            Ok(if device.is_cuda() {
                RSome(crate::device::boxed(device))
            } else {
                RNone
            })
        })
    }
}

fn features<N: Network>(network: &N, pass: &Pass, x: &Tensor) -> Result<Tensor> {
    match network.features(pass, x)? {
        Some(features) => Ok(features),
        None => Err(to_candle(AbiError::new(
            ErrorCode::Unsupported,
            "this model exposes no features",
        ))),
    }
}

impl<N: Network> Model<N> {
    /// What `f` makes of the images, and the way back.
    fn taped(
        &self,
        ctx: CtxRef<'_>,
        x: AbiTensorRef<'_>,
        f: impl FnOnce(&N, &Pass, &Tensor) -> Result<Tensor>,
    ) -> AbiResult<Taped> {
        run(ctx, |pass| {
            // Only one of the two gradients is of use: the parameters' in training, the input's in an attack.
            let differentiable = self.0.rule == BackwardRule::Exact && !pass.track;
            let x = self.0.images(x, differentiable)?;
            let y = f(&self.0.network, &pass, &x)?;
            let out = export_to(ctx, &y)?;
            let keep = if differentiable || pass.track { y } else { y.detach() };
            let tape = Tape(Guarded::new(Recorded {
                model: self.0.clone(),
                _alive: self.0.training.tape(),
                x,
                y: keep,
                pass,
            }));
            Ok(Taped {
                y: out,
                tape: AbiTape_TO::from_value(tape, TD_Opaque),
            })
        })
    }
}

/// The graph holds operators of the author's, whose destructors run with the tape's.
struct Tape<N: Network>(Guarded<Recorded<N>>);

struct Recorded<N: Network> {
    model: Arc<Shared<N>>,
    _alive: crate::train::Alive,
    x: Tensor,
    y: Tensor,
    pass: Pass,
}

impl<N: Network> AbiTape for Tape<N> {
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        run(ctx, |_| self.0.backward(ctx, cotangent))
    }
}

impl<N: Network> Recorded<N> {
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> Result<ROption<AbiTensor>> {
        let shape = cotangent.shape().map_err(to_candle)?;
        if shape != self.y.dims() {
            let y = self.y.dims();
            let text = format!("a cotangent of shape {shape:?} for an output of shape {y:?}");
            return Err(to_candle(AbiError::new(ErrorCode::Shape, text)));
        }
        let cotangent = import_to(&self.model.device, cotangent, false)?;
        if self.pass.track {
            self.accumulate(&cotangent, ctx.get().flags)?;
            return Ok(RNone);
        }
        let gradient = match self.model.rule {
            BackwardRule::Exact => advae_nn::vjp(&self.x, &self.y, &cotangent)?.0,
            BackwardRule::Identity => Some(cotangent),
            BackwardRule::None => Some(self.x.zeros_like()?),
            BackwardRule::Custom => Some(self.model.network.custom_backward(&self.pass, &self.x, &cotangent)?),
        };
        let Some(gradient) = gradient else {
            candle_core::bail!("no gradient reached the input: the graph was detached inside forward")
        };
        Ok(RSome(export_to(ctx, &gradient)?))
    }

    fn accumulate(&self, cotangent: &Tensor, asked: u64) -> Result<()> {
        if asked & flags::ACCUMULATE_PARAMS == 0 {
            candle_core::bail!(
                "a tape made with ACCUMULATE_PARAMS was run backward without it: it keeps no input gradient"
            )
        }
        let (_, gradients) = advae_nn::vjp(&self.x, &self.y, cotangent)?;
        self.model.training.add(&self.model.params, &gradients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_file_may_be_a_state_dict_of_pytorch() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../nn/tests/data/small.pth");
        let (weights, name) = find_weights(&WeightSource::Path(file.into()), &[]).unwrap();
        assert_eq!((weights.shape("fc.weight"), name.as_str()), (Some(&[3, 4][..]), file));
        let other = concat!(env!("CARGO_MANIFEST_DIR"), "/../nn/tests/data/legacy.pth");
        let error = find_weights(&WeightSource::Path(other.into()), &[]).err().unwrap();
        assert!(error.to_string().contains("not a safetensors file"), "{error}");
    }
}
