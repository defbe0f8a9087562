//! Softmax regression on MNIST against the contract alone, without candle: clean accuracy 90.7 % on mnist-1k.
//!
//! cargo build --release && advae-host eval --classifier target/release/libmy_classifier.so

use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RStr, RString};
use advae_abi::info::{BackwardRule, Construct, Description, ModelInfo, Threading};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, AttackBox, CtxRef,
    ErrorCode, ModelBox, Root, Taped, ThreatModelBox, TrainableBox, guard, not_trainable, serde_json,
};

const INPUT: [usize; 3] = [1, 28, 28];
const PIXELS: usize = 784;
const CLASSES: usize = 10;
/// `[10, 784]` weights and ten biases, little-endian f32.
static WEIGHTS: &[u8] = include_bytes!("mnist.f32");

struct Linear {
    weight: Vec<f32>, // [10, 784]
    bias: Vec<f32>,   // [10]
}

impl Linear {
    fn new() -> Self {
        let numbers = WEIGHTS
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut weight: Vec<f32> = numbers.collect();
        let bias = weight.split_off(CLASSES * PIXELS);
        Self { weight, bias }
    }

    /// Logits `[N, 10]` of images `[N, 1, 28, 28]`.
    fn logits(&self, x: AbiTensorRef<'_>) -> Result<AbiTensor, AbiError> {
        let shape = x.shape()?;
        if shape.get(1..) != Some(&INPUT[..]) {
            let text = format!("this model takes images [N,1,28,28], not {shape:?}");
            return Err(AbiError::new(ErrorCode::Shape, text));
        }
        let of_image = |image: &[f32]| {
            let rows = self.weight.chunks_exact(PIXELS).zip(&self.bias);
            let dot = |row: &[f32]| row.iter().zip(image).map(|(w, x)| w * x).sum::<f32>();
            rows.map(|(row, bias)| dot(row) + bias).collect::<Vec<f32>>()
        };
        let logits = x.as_slice::<f32>()?.chunks_exact(PIXELS).flat_map(of_image);
        AbiTensor::from_vec(logits.collect(), &[shape[0], CLASSES])
    }
}

impl AbiModel for Linear {
    fn info(&self) -> AbiResult<RString> {
        json(serde_json::to_string(&ModelInfo {
            input: Some(INPUT),
            classes: Some(CLASSES),
            bounds: [0., 1.],
            backward_rules: vec![BackwardRule::Exact],
            random: false,
            threading: Threading::Caller,
            batch: None,
            parameters: self.weight.len() + self.bias.len(),
            weights: "mnist".into(),
            note: String::new(),
        }))
    }

    fn forward(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        guard(|| self.logits(x))
    }

    fn forward_tape(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        guard(|| {
            Ok(Taped {
                y: self.logits(x)?,
                // A tape outlives the call that made it: it brings what it needs.
                tape: AbiTape_TO::from_value(LinearTape(self.weight.clone()), TD_Opaque),
            })
        })
    }

    fn trainable(&self, _: RStr<'_>) -> AbiResult<TrainableBox> {
        not_trainable()
    }
}

struct LinearTape(Vec<f32>);

impl AbiTape for LinearTape {
    /// Pulls a cotangent `[N, 10]` back to the images: the weights' rows, each as often as its cotangent says.
    fn backward(&self, _: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        guard(|| {
            let n = cotangent.shape()?[0];
            let mut gradient = vec![0.; n * PIXELS];
            let rows = gradient.chunks_exact_mut(PIXELS);
            for (gradient, cotangent) in rows.zip(cotangent.as_slice::<f32>()?.chunks_exact(CLASSES)) {
                for (row, c) in self.0.chunks_exact(PIXELS).zip(cotangent) {
                    gradient.iter_mut().zip(row).for_each(|(g, w)| *g += c * w);
                }
            }
            AbiTensor::from_vec(gradient, &[n, 1, 28, 28]).map(ROption::RSome)
        })
    }
}

/// What crosses as JSON.
fn json(written: serde_json::Result<String>) -> AbiResult<RString> {
    guard(|| {
        written
            .map(RString::from)
            .map_err(|e| AbiError::from_error(ErrorCode::Compute, &e))
    })
}

extern "C" fn describe() -> AbiResult<RString> {
    json(serde_json::to_string(&Description {
        settings: vec![],
        own: vec![],
    }))
}

extern "C" fn new_model(request: RStr<'_>) -> AbiResult<ModelBox> {
    guard(|| {
        let request: Construct =
            serde_json::from_str(&request).map_err(|e| AbiError::from_error(ErrorCode::Config, &e))?;
        if let Some(key) = request.config.keys().next() {
            let text = format!("unknown setting '{key}': it has no settings");
            return Err(AbiError::new(ErrorCode::Config, text));
        }
        if request.device != "cpu" {
            let text = format!(
                "device '{}' asked of a build for the cpu: use --device cpu",
                request.device
            );
            return Err(AbiError::new(ErrorCode::Device, text));
        }
        Ok(AbiModel_TO::from_value(Linear::new(), TD_Opaque))
    })
}

extern "C" fn new_attack(_: RStr<'_>) -> AbiResult<AttackBox> {
    guard(|| Err(AbiError::new(ErrorCode::Unsupported, "this plugin brings a classifier")))
}

extern "C" fn new_threat_model(_: RStr<'_>) -> AbiResult<ThreatModelBox> {
    guard(|| Err(AbiError::new(ErrorCode::Unsupported, "this plugin brings a classifier")))
}

advae_abi::export_root! {
    advae_abi::manifest!(
        kind: "classifier", name: "my_classifier", version: "0.1.0", sdk: "none", cuda: false, weight_sets: []
    ),
    || Root { describe, new_model, new_attack, new_threat_model }
}

#[cfg(test)]
mod tests;
