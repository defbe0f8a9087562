//! One step along the sign of the gradient, against the contract alone: my_classifier has robust accuracy 0.0 % on mnist-1k at Linf 0.3.
//!
//! cargo build --release && advae-host eval --attack target/release/libmy_attack.so --classifier model_d.so

use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RStr, RString, RVec};
use advae_abi::info::{AttackInfo, Construct, Description, NormKind, Setting};
use advae_abi::{
    AbiAttack, AbiAttack_TO, AbiError, AbiResult, AbiTensor, AbiTensorRef, AttackBox, CtxRef, Dims, ErrorCode,
    ModelBox, OracleBox, Perturbed, Root, ThreatModelBox, guard, serde_json,
};

struct Step {
    epsilon: f64,
}

/// Derivative of `log sum e^z_i (i != y) - z_y` at logits `[N, K]`: softmax over the other classes, and -1 at the label.
fn cotangent(logits: &[f32], labels: &[i64]) -> Vec<f32> {
    let classes = logits.len() / labels.len().max(1);
    let of_row = |(row, label): (&[f32], &i64)| {
        let label = *label as usize;
        let others = || row.iter().enumerate().filter(move |(i, _)| *i != label);
        let largest = others().map(|(_, z)| *z).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = others().map(|(_, z)| (z - largest).exp()).sum();
        let slope = |(i, z): (usize, &f32)| {
            if i == label { -1. } else { (z - largest).exp() / sum }
        };
        row.iter().enumerate().map(slope).collect::<Vec<f32>>()
    };
    logits.chunks_exact(classes).zip(labels).flat_map(of_row).collect()
}

impl AbiAttack for Step {
    fn info(&self) -> AbiResult<RString> {
        json(serde_json::to_string(&AttackInfo {
            epsilon: Some(self.epsilon),
            passes: 1,
            ..AttackInfo::new(NormKind::Linf)
        }))
    }

    fn perturb(
        &self,
        ctx: CtxRef<'_>,
        oracle: &OracleBox,
        x: AbiTensorRef<'_>,
        y: AbiTensorRef<'_>,
    ) -> AbiResult<Perturbed> {
        guard(|| {
            let taped = oracle.forward_tape(ctx, x).into_result()?;
            let logits = taped.y.view();
            let (cotangent, dims) = (
                cotangent(logits.as_slice()?, y.as_slice()?),
                Dims::new(&logits.shape()?),
            );
            let back = taped
                .tape
                .backward(ctx, AbiTensorRef::from_slice(&cotangent, &dims))
                .into_result()?;
            let ROption::RSome(gradient) = back else {
                return Err(AbiError::new(ErrorCode::Compute, "the tape gave no gradient"));
            };
            let step = |(x, g): (&f32, &f32)| {
                // f32::signum gives 1 for 0.
                let sign = if *g == 0. { 0. } else { g.signum() };
                (x + self.epsilon as f32 * sign).clamp(0., 1.)
            };
            let images = x
                .as_slice::<f32>()?
                .iter()
                .zip(gradient.view().as_slice::<f32>()?)
                .map(step);
            Ok(Perturbed {
                x_adv: AbiTensor::from_vec(images.collect(), &x.shape()?)?,
                found: RVec::new(),
                targets: RVec::new(),
            })
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
    let epsilon = Setting {
        name: "epsilon".into(),
        default: 0.3.into(),
        help: "radius of the Linf ball".into(),
        file: false,
    };
    json(serde_json::to_string(&Description {
        settings: vec![epsilon],
        own: vec![],
    }))
}

extern "C" fn new_attack(request: RStr<'_>) -> AbiResult<AttackBox> {
    let bad = |text: String| AbiError::new(ErrorCode::Config, text);
    guard(|| {
        let request: Construct =
            serde_json::from_str(&request).map_err(|e| AbiError::from_error(ErrorCode::Config, &e))?;
        if let Some(key) = request.config.keys().find(|key| *key != "epsilon") {
            return Err(bad(format!("unknown setting '{key}': its settings are epsilon")));
        }
        let epsilon = match request.config.get("epsilon") {
            None => 0.3,
            Some(value) => match value.as_f64() {
                Some(epsilon) if (0. ..=1.).contains(&epsilon) => epsilon,
                _ => {
                    return Err(bad(format!(
                        "setting 'epsilon' is {value}: expected a number from 0 to 1"
                    )));
                }
            },
        };
        Ok(AbiAttack_TO::from_value(Step { epsilon }, TD_Opaque))
    })
}

extern "C" fn new_model(_: RStr<'_>) -> AbiResult<ModelBox> {
    guard(|| Err(AbiError::new(ErrorCode::Unsupported, "this plugin brings an attack")))
}

extern "C" fn new_threat_model(_: RStr<'_>) -> AbiResult<ThreatModelBox> {
    guard(|| Err(AbiError::new(ErrorCode::Unsupported, "this plugin brings an attack")))
}

advae_abi::export_root! {
    advae_abi::manifest!(
        kind: "attack", name: "my_attack", version: "0.1.0", sdk: "none", cuda: false, weight_sets: []
    ),
    || Root { describe, new_model, new_attack, new_threat_model }
}

#[cfg(test)]
mod tests;
