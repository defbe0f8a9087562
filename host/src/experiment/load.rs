//! Classifiers and purifiers, loaded once.

use crate::plugin::{Plugin, PluginSpec};
use crate::results::{ModelConfig, PluginConfig};
use crate::wire::construct::{self, Constructed, Wanted};
use crate::wire::model::Model;
use advae_abi::info::{BackwardRule, Construct, Kind, WeightSource};
use anyhow::{Context, Result, bail};

/// A model, and how it came to be.
#[derive(Clone)]
pub struct LoadedModel {
    /// Name in tables.
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

/// In the label of a purifier whose gradient goes by another backward rule than its own, before that rule's name.
pub const OTHER_RULE: &str = " backward=";

/// Loads and constructs a classifier or purifier.
///
/// # Errors
/// Where it does not load, or is of another kind.
pub fn load_model(text: &str, kind: Kind, device: &str, backward: Option<BackwardRule>) -> Result<LoadedModel> {
    load(&PluginSpec::parse(text)?, kind, device, backward)
}

/// Loads and constructs the model that a record speaks of, if the plugin of that name is the file that it was made with.
///
/// Records come from anywhere: only a name of theirs is used, never a path, and nothing of a file with another hash is executed.
/// The model has its own backward rule.
///
/// # Errors
/// Where the plugin is not found by its name or is another file, or the weights came from a file.
pub fn load_recorded(recorded: &ModelConfig, kind: Kind, device: &str) -> Result<LoadedModel> {
    let spec = recorded_spec(recorded, kind)?;
    Plugin::find_recorded(&spec.name, kind, &recorded.plugin.sha256)?;
    // The name now stands for that file.
    load(&spec, kind, device, None)
}

/// The record's model as it is named on the command line.
fn recorded_spec(recorded: &ModelConfig, kind: Kind) -> Result<PluginSpec> {
    let (name, config) = (&recorded.plugin.name, &recorded.plugin.config);
    let weights = match recorded.weights.split_once(':') {
        None => WeightSource::Default,
        Some(("set", set)) => WeightSource::Set(set.into()),
        Some(("init", seed)) => {
            WeightSource::Init(seed.parse().with_context(|| format!("the seed '{seed}' of '{name}'"))?)
        }
        Some(_) => {
            bail!("{kind} '{name}' ran with weights from a file: name it on the command line, {name}@FILE.safetensors")
        }
    };
    Ok(PluginSpec::new(name, weights, config.clone()))
}

fn load(spec: &PluginSpec, kind: Kind, device: &str, backward: Option<BackwardRule>) -> Result<LoadedModel> {
    let wanted = Wanted {
        device,
        backward,
        ..Wanted::on_cpu(kind)
    };
    let Constructed {
        plugin,
        request,
        weights,
        model,
    } = construct::construct(spec, &wanted)?;
    let config = ModelConfig {
        plugin: plugin_config(&plugin, spec),
        weights,
        device: device.into(),
        backward: backward.map(|rule| rule.name().into()),
    };
    let mut label = spec.label();
    if let Some(rule) = backward.filter(|rule| model.info().backward_rules.first() != Some(rule)) {
        label += &format!("{OTHER_RULE}{}", rule.name());
    }
    if model.info().parameters > 0 && model.info().weights.starts_with("init:") {
        eprintln!(
            "warning: '{label}' is untrained, its weights are a seeded initialisation: name some, {label}@SET or {label}@FILE.safetensors"
        );
    }
    Ok(LoadedModel {
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
