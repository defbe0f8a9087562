//! The one place where classifiers and purifiers are constructed: for eval, score, purify, train, threat models and the doctor.
//!
//! Weights out of a file are read here, once: the plugin is given the bytes that were hashed, not the user's file.

use crate::plugin::{Plugin, PluginSpec, files, hex, sealed};
use crate::wire::model::{Model, ask};
use advae_abi::info::{BackwardRule, Construct, Kind, MAP, WeightSource};
use advae_abi::{AbiError, ErrorCode, ModelBox};
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

/// What is asked of a model beside its spec.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Classifier or purifier.
    pub kind: Kind,
    /// `cpu` or `cuda:N`.
    pub device: &'a str,
    /// Backward rule of a purifier; absent: its own first.
    pub backward: Option<BackwardRule>,
    /// Seed of an initialisation where the spec names no weights; absent: the plugin's default weights.
    pub initialise: Option<u64>,
}

impl Wanted<'static> {
    /// A model of this kind on the CPU, with what is default.
    pub fn on_cpu(kind: Kind) -> Self {
        Self {
            kind,
            device: "cpu",
            backward: None,
            initialise: None,
        }
    }
}

/// A model, and how it came to be.
#[derive(Clone)]
pub struct Constructed {
    /// Its file.
    pub plugin: Plugin,
    /// The request that the plugin was given.
    pub request: Construct,
    /// Its weights, for records: `default`, `set:NAME`, `init:SEED` or `file:SHA256`.
    pub weights: String,
    /// The model.
    pub model: Model,
}

/// Finds, loads and constructs a model.
///
/// # Errors
/// Where the plugin is not found, is of another kind, does not load or refuses the request, or its weights cannot be read.
pub fn construct(spec: &PluginSpec, wanted: &Wanted) -> Result<Constructed> {
    let plugin = Plugin::find(&spec.name, wanted.kind)?;
    let (request, weights) = request(&plugin, spec, wanted)?;
    let model = Model::construct(&plugin, &request).with_context(|| format!("'{spec}'"))?;
    Ok(Constructed {
        plugin,
        request,
        weights,
        model,
    })
}

/// The request for a model, and its weights as records name them. May be used again: its weights do not change.
///
/// # Errors
/// Where the weights, or a file that a setting names, cannot be read.
pub fn request(plugin: &Plugin, spec: &PluginSpec, wanted: &Wanted) -> Result<(Construct, String)> {
    let (weights, recorded) = match (&spec.weights, wanted.initialise) {
        (WeightSource::Init(seed), _) => (WeightSource::Init(*seed), format!("init:{seed}")),
        (WeightSource::Default, Some(seed)) => (WeightSource::Init(seed), format!("init:{seed}")),
        (WeightSource::Default, None) => (WeightSource::Default, "default".into()),
        (WeightSource::Set(set), _) => (WeightSource::Set(set.clone()), format!("set:{set}")),
        (WeightSource::Path(path), _) => read_weights(path)?,
    };
    let request = Construct {
        kind: Some(wanted.kind),
        config: files::given(plugin, &spec.config)?.config,
        weights,
        device: wanted.device.into(),
        backward: wanted.backward,
    };
    Ok((request, recorded))
}

/// A classifier on a seeded initialisation as a threat model gets it: the plugin's own, not looked at by the host.
///
/// # Errors
/// Where the plugin is no classifier or refuses the request.
pub fn fresh(plugin: &Plugin, config: Map<String, Value>, device: &str, seed: u64) -> Result<ModelBox, AbiError> {
    let config = files::given(plugin, &config).map_err(|e| AbiError::new(ErrorCode::Config, format!("{e:#}")))?;
    let request = Construct {
        kind: Some(Kind::Classifier),
        config: config.config,
        weights: WeightSource::Init(seed),
        device: device.into(),
        backward: None,
    };
    ask(plugin, &request)
}

/// The sealed file, with its map where there is one, and their hashes.
fn read_weights(path: &str) -> Result<(WeightSource, String)> {
    let read = |path: &str| std::fs::read(path).with_context(|| format!("cannot read the weights '{path}'"));
    let seal = |path: &str, bytes: &[u8]| {
        let sha256 = hex(&Sha256::digest(bytes));
        (sealed::or_itself(path, &sha256, bytes), sha256)
    };
    let Some((file, map)) = path.split_once(MAP) else {
        let (copy, sha256) = seal(path, &read(path)?);
        return Ok((WeightSource::Path(copy), format!("file:{sha256}")));
    };
    let text = std::fs::read_to_string(map).with_context(|| format!("cannot read the map '{map}'"))?;
    let rules: Map<String, Value> = toml::from_str(&text).with_context(|| {
        format!("the map '{map}' is no TOML: expected lines \"parameter\" = \"name in the weight file\"")
    })?;
    let (copy, sha256) = seal(file, &read(file)?);
    // Plugins read it as JSON.
    let (map, map_sha256) = seal(map, Value::from(rules).to_string().as_bytes());
    let source = WeightSource::Path(format!("{copy}{MAP}{map}"));
    Ok((source, format!("file:{sha256}{MAP}{map_sha256}")))
}
