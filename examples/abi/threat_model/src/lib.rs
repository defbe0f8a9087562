//! Logits and labels, no gradients, against the contract alone: my_attack is refused, and noise leaves my_classifier 70.6 % on mnist-1k.
//!
//! cargo build --release
//! advae-host eval --threat-model target/release/libmy_threat_model.so --attack noise --classifier model_d.so

use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RStr, RString};
use advae_abi::info::{Access, Construct, Description, Target};
use advae_abi::{
    AbiError, AbiResult, AbiThreatModel, AbiThreatModel_TO, AttackBox, CtxRef, ErrorCode, ModelBox, Root, ServicesBox,
    ThreatModelBox, guard, serde_json,
};

struct ScoreBased;

impl AbiThreatModel for ScoreBased {
    fn access(&self) -> AbiResult<RString> {
        json(serde_json::to_string(&Access {
            target: Target::Pipeline,
            gradients: false,
            logits: true,
            labels: true,
            query_limit: None,
        }))
    }

    /// Nothing is to be prepared: the attacker has the pipeline itself.
    fn prepare(&self, _: CtxRef<'_>, _: &ServicesBox) -> AbiResult<ROption<ModelBox>> {
        guard(|| Ok(ROption::RNone))
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

extern "C" fn new_threat_model(request: RStr<'_>) -> AbiResult<ThreatModelBox> {
    guard(|| {
        let request: Construct =
            serde_json::from_str(&request).map_err(|e| AbiError::from_error(ErrorCode::Config, &e))?;
        if let Some(key) = request.config.keys().next() {
            let text = format!("unknown setting '{key}': it has no settings");
            return Err(AbiError::new(ErrorCode::Config, text));
        }
        Ok(AbiThreatModel_TO::from_value(ScoreBased, TD_Opaque))
    })
}

extern "C" fn new_model(_: RStr<'_>) -> AbiResult<ModelBox> {
    guard(|| {
        Err(AbiError::new(
            ErrorCode::Unsupported,
            "this plugin brings a threat model",
        ))
    })
}

extern "C" fn new_attack(_: RStr<'_>) -> AbiResult<AttackBox> {
    guard(|| {
        Err(AbiError::new(
            ErrorCode::Unsupported,
            "this plugin brings a threat model",
        ))
    })
}

advae_abi::export_root! {
    advae_abi::manifest!(
        kind: "threat_model", name: "my_threat_model", version: "0.1.0", sdk: "none", cuda: false, weight_sets: []
    ),
    || Root { describe, new_model, new_attack, new_threat_model }
}

#[cfg(test)]
mod tests;
