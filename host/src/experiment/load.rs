//! Classifiers and purifiers, loaded once.

use crate::plugin::{Plugin, PluginSpec, files};
use crate::results::{ModelConfig, Named, PluginConfig, Rule};
use crate::terminal::console;
use crate::wire::construct::{self, Constructed, Wanted};
use crate::wire::model::Model;
use advae_abi::info::{BackwardRule, Construct, Kind, WeightSource};
use anyhow::{Context, Result, bail, ensure};

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
    /// What it says a reader must know of it.
    pub fn note(&self) -> String {
        self.model.info().note.clone()
    }

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
    let loaded = load(&spec, kind, device, None)?;
    let (now, then) = (&loaded.config.plugin.files, &recorded.plugin.files);
    for (setting, sha256) in then {
        ensure!(
            now.get(setting) == Some(sha256),
            "{kind} '{}' ran with another file as its setting '{setting}', of sha256 {}: bring that one back",
            recorded.plugin.name,
            sha256.escape_debug()
        );
    }
    Ok(loaded)
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
        plugin: plugin_config(&plugin, spec)?,
        weights,
        device: device.into(),
        backward: backward.map(|rule| rule.name().into()),
    };
    let (label, named) = (spec.label(), Named::from(spec));
    if model.info().parameters > 0 && model.info().weights.starts_with("init:") {
        console::say(&format!(
            "warning: '{label}' is untrained, its weights are a seeded initialisation: name some, {name}@SET or {name}@FILE.safetensors",
            name = spec.name
        ));
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
///
/// # Errors
/// Where a file that a setting names cannot be read.
pub fn plugin_config(plugin: &Plugin, spec: &PluginSpec) -> Result<PluginConfig> {
    Ok(PluginConfig {
        name: plugin.manifest.name.clone(),
        version: plugin.manifest.version.clone(),
        sha256: plugin.sha256.clone(),
        config: spec.config.clone(),
        files: files::given(plugin, &spec.config)?.hashes,
    })
}
