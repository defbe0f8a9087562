//! Classifiers and purifiers, loaded once.

use crate::plugin::{Plugin, PluginSpec, hex};
use crate::results::{ModelConfig, Named, PluginConfig, Rule};
use crate::wire::model::Model;
use advae_abi::info::{BackwardRule, Construct, Kind, WeightSource};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// A model, and how it came to be.
#[derive(Clone)]
pub struct LoadedModel {
    /// As it was named.
    pub named: Named,
    /// Short name for messages.
    pub label: String,
    /// Its file.
    pub plugin: Plugin,
    /// How it was constructed.
    pub request: Construct,
    /// The same, for the results file.
    pub config: ModelConfig,
    /// The model.
    pub model: Model,
}

impl LoadedModel {
    /// The backward rule that its gradients go by, where it is a purifier.
    pub fn rule(&self) -> Rule {
        let name = |rule: &BackwardRule| rule.name().to_string();
        let offered: Vec<String> = self.model.info().backward_rules.iter().map(name).collect();
        Rule {
            used: (self.config.backward.clone())
                .or_else(|| offered.first().cloned())
                .unwrap_or_default(),
            offered,
        }
    }
}

/// Loads and constructs a classifier or purifier.
///
/// # Errors
/// Where it does not load, or is of another kind.
pub fn load_model(text: &str, kind: Kind, device: &str, backward: Option<BackwardRule>) -> Result<LoadedModel> {
    let spec = PluginSpec::parse(text)?;
    let plugin = Plugin::find(&spec.name)?;
    plugin.expect_kind(kind)?;
    let weights = match &spec.weights {
        WeightSource::Default => "default".into(),
        WeightSource::Set(set) => format!("set:{set}"),
        WeightSource::Init(seed) => format!("init:{seed}"),
        WeightSource::Path(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read the weights '{path}'"))?;
            format!("file:{}", hex(&Sha256::digest(bytes)))
        }
    };
    let config = ModelConfig {
        plugin: plugin_config(&plugin, &spec),
        weights,
        device: device.into(),
        backward: backward.map(|rule| rule.name().into()),
    };
    let (label, named) = (spec.label(), Named::from(&spec));
    let request = Construct {
        config: spec.config,
        weights: spec.weights,
        device: device.into(),
        backward,
    };
    let model = Model::construct(&plugin, &request).with_context(|| format!("'{text}'"))?;
    if model.info().parameters > 0 && model.info().weights.starts_with("init:") {
        eprintln!(
            "warning: '{label}' is untrained, its weights are a seeded initialisation: name some, {label}@SET or {label}@FILE.safetensors"
        );
    }
    Ok(LoadedModel {
        named,
        label,
        plugin,
        request,
        config,
        model,
    })
}

/// A plugin and the settings it was given, for the results file.
pub fn plugin_config(plugin: &Plugin, spec: &PluginSpec) -> PluginConfig {
    PluginConfig {
        name: plugin.manifest.name.clone(),
        version: plugin.manifest.version.clone(),
        sha256: plugin.sha256.clone(),
        config: spec.config.clone(),
    }
}
