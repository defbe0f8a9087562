//! Descriptions that cross as JSON. Reading ignores unknown fields, so that they can grow.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a plugin brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Images to logits.
    Classifier,
    /// Images to images.
    Purifier,
    /// Looks for adversarial images.
    Attack,
    /// Says what the attacker knows.
    ThreatModel,
}

impl Kind {
    /// The kind with its article, for sentences.
    pub fn with_article(self) -> &'static str {
        match self {
            Self::Classifier => "a classifier",
            Self::Purifier => "a purifier",
            Self::Attack => "an attack",
            Self::ThreatModel => "a threat model",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Classifier => "classifier",
            Self::Purifier => "purifier",
            Self::Attack => "attack",
            Self::ThreatModel => "threat model",
        })
    }
}

/// What a plugin file says of itself, read without executing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the contract it was built against.
    pub contract: String,
    /// What it brings.
    pub kind: Kind,
    /// What else it brings: a file of a classifier may hold a purifier, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Kind>,
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// Version of advae-sdk, or `none`.
    pub sdk: String,
    /// Compiler that built it.
    pub rustc: String,
    /// `unwind`, or `abort` (which is refused: a panic would kill the host).
    pub panic: String,
    /// Whether it was built with CUDA.
    pub cuda: bool,
    /// Weight sets inside the file, the default first.
    #[serde(default)]
    pub weight_sets: Vec<String>,
}

impl Manifest {
    /// Reads the bytes of the manifest section.
    ///
    /// # Errors
    /// Where they are no JSON, or a field is missing.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut manifest: Self = serde_json::from_slice(bytes.trim_ascii_end())?;
        manifest.weight_sets.retain(|name| !name.is_empty());
        Ok(manifest)
    }

    /// Whether it brings this.
    pub fn brings(&self, kind: Kind) -> bool {
        self.kind == kind || self.also.contains(&kind)
    }
}

/// One setting of a plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Its key.
    pub name: String,
    /// Its default.
    pub default: Value,
    /// What it does.
    pub help: String,
    /// Whether its value is the path of a file that the plugin reads: the host hashes it and hands on a copy that nobody changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub file: bool,
}

/// What a loaded plugin says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// The settings its constructor reads, in the author's order.
    #[serde(default)]
    pub settings: Vec<Setting>,
    /// Those of its own objective in training, where it has one. Since 1.2.
    #[serde(default)]
    pub own: Vec<Setting>,
}

/// A request to a constructor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Construct {
    /// What is asked for, of a plugin that brings several; absent: the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Settings; what is absent has its default, an unknown key is an error.
    #[serde(default)]
    pub config: serde_json::Map<String, Value>,
    /// Where the weights come from.
    #[serde(default)]
    pub weights: WeightSource,
    /// `cpu` or `cuda:N`.
    #[serde(default = "cpu")]
    pub device: String,
    /// Backward rule the evaluator chose for a purifier; absent: the purifier's own first.
    #[serde(default)]
    pub backward: Option<BackwardRule>,
}

impl Default for Construct {
    fn default() -> Self {
        Self {
            kind: None,
            config: Default::default(),
            weights: WeightSource::Default,
            device: cpu(),
            backward: None,
        }
    }
}

fn cpu() -> String {
    "cpu".into()
}

/// Where the weights of a model come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightSource {
    /// The plugin's default set, or a seeded initialisation where it brings none.
    #[default]
    Default,
    /// A named set inside the plugin.
    Set(String),
    /// A weight file: safetensors, or a state dict of PyTorch. `FILE?map=MAP` ([`MAP`]) is read by a map of names, a JSON object of
    /// parameters and the tensors that they are in the file.
    Path(String),
    /// A seeded initialisation, to be trained.
    Init(u64),
}

/// What lies between the path of a weight file and that of a map of its names.
pub const MAP: &str = "?map=";

/// How a purifier's gradient is formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackwardRule {
    /// The true derivative.
    Exact,
    /// Backward as identity (BPDA, Athalye et al. 2018).
    Identity,
    /// The author's own surrogate.
    Custom,
    /// No gradient: what a naive evaluation of a shattered defence sees.
    None,
}

impl BackwardRule {
    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Identity => "identity",
            Self::Custom => "custom",
            Self::None => "none",
        }
    }
}

/// How a model spends the threads it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Threading {
    /// On the caller's thread: the host runs one worker a core.
    #[default]
    Caller,
    /// On a pool of its own: the host runs one worker with large batches.
    Internal,
}

/// What a classifier or purifier says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Shape of one image `[C,H,W]`; absent for a purifier that takes any.
    #[serde(default)]
    pub input: Option<[usize; 3]>,
    /// Classes (classifier), absent for a purifier.
    #[serde(default)]
    pub classes: Option<usize>,
    /// Range of the pixels.
    #[serde(default = "unit")]
    pub bounds: [f32; 2],
    /// Backward rules a purifier offers, its default first.
    #[serde(default)]
    pub backward_rules: Vec<BackwardRule>,
    /// Whether the output is random: the host then scores over several draws.
    #[serde(default)]
    pub random: bool,
    /// How it threads.
    #[serde(default)]
    pub threading: Threading,
    /// Images a call that it works best with, where it has a preference. A hint: it must take any number.
    #[serde(default)]
    pub batch: Option<usize>,
    /// Number of trainable parameters.
    #[serde(default)]
    pub parameters: usize,
    /// The weights in use: a set's name, a path, or `init:SEED`.
    #[serde(default)]
    pub weights: String,
    /// What a reader of its results must know, such as how long a generator was trained. Since 1.2.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

fn unit() -> [f32; 2] {
    [0., 1.]
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Largest absolute difference of a pixel.
    Linf,
    /// Euclidean.
    L2,
}

impl std::fmt::Display for NormKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Linf => "Linf",
            Self::L2 => "L2",
        })
    }
}

/// The label that an attack leads a sample away from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Label {
    /// `true`: the true one.
    #[default]
    True,
    /// `"predicted"`: what the attacked model says of the clean image.
    Predicted,
}

impl Serialize for Label {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::True => serializer.serialize_bool(true),
            Self::Predicted => serializer.serialize_str("predicted"),
        }
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected true or predicted")]
        enum Text {
            Flag(bool),
            Word(String),
        }
        let text = match Text::deserialize(deserializer)? {
            Text::Flag(true) => return Ok(Self::True),
            Text::Flag(false) => "false".into(),
            Text::Word(word) => word,
        };
        match text.as_str() {
            "true" => Ok(Self::True),
            "predicted" => Ok(Self::Predicted),
            other => Err(serde::de::Error::custom(format!(
                "unknown label '{other}', expected true or predicted"
            ))),
        }
    }
}

/// What an attack says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttackInfo {
    /// Norm whose ball it stays in, or that it minimises.
    pub norm: NormKind,
    /// Radius of the ball; absent for an attack that minimises the distance.
    #[serde(default)]
    pub epsilon: Option<f64>,
    /// Whether it aims at target labels.
    #[serde(default)]
    pub targeted: bool,
    /// Oracle passes a sample needs at the most, for the progress bar.
    #[serde(default)]
    pub passes: u64,
    /// The farthest that one search can move from its start, in `norm`: steps times step size. Absent: the attack does not say, or
    /// its steps have no bound. A search cannot reach the whole ball if this is less than `2 * epsilon` with a random start, or less
    /// than `epsilon` without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<f64>,
    /// Whether a search starts at a random point of the ball instead of the clean image. Absent: the attack does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start: Option<bool>,
    /// Loss whose gradient it follows: `ce` (cross-entropy), `margin`, or a name of its own. Absent: the attack does not say, or it
    /// follows no gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
    /// Whether it works on images that lie on the device of its target. False: the host gives it images on the CPU. Since 1.3.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub device: bool,
}

impl AttackInfo {
    /// An untargeted attack in `norm` that says nothing else of itself. Authors fill in what they know, by
    /// `AttackInfo { passes: 40, ..AttackInfo::new(norm) }`, so that new fields do not break their code.
    pub fn new(norm: NormKind) -> Self {
        Self {
            norm,
            epsilon: None,
            targeted: false,
            passes: 0,
            reach: None,
            random_start: None,
            loss: None,
            device: false,
        }
    }
}

/// What an oracle says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OracleInfo {
    /// Shape of one image `[C,H,W]`.
    pub input: [usize; 3],
    /// Classes.
    pub classes: usize,
    /// Range of the pixels.
    pub bounds: [f32; 2],
    /// Whether a sample that is misclassified once may be left alone: true only where the oracle is the scored,
    /// deterministic pipeline.
    #[serde(default)]
    pub early_stop: bool,
    /// Device whose tensors it takes and gives, to calls with [`flags::DEVICE`](crate::flags::DEVICE): `cuda:N`. Absent: the CPU's alone.
    /// Since 1.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// Whom an attacker attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Purifier and classifier together.
    Pipeline,
    /// The classifier alone.
    Classifier,
    /// A model the threat model prepared.
    Substitute,
}

/// What a threat model grants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    /// Whom the oracle answers for.
    pub target: Target,
    /// Whether gradients are granted.
    #[serde(default)]
    pub gradients: bool,
    /// Whether logits are granted.
    #[serde(default)]
    pub logits: bool,
    /// Whether labels are granted.
    #[serde(default)]
    pub labels: bool,
    /// Largest number of label queries, in all; absent: without limit.
    #[serde(default)]
    pub query_limit: Option<u64>,
}

/// How a model is to be trained.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TrainSettings {
    /// `adam`.
    pub optimiser: String,
    /// Further settings of the optimiser.
    #[serde(default)]
    pub options: BTreeMap<String, f64>,
    /// Settings of the plugin's own objective, where that is what trains it ([`learn`](crate::AbiTrainable::learn)). Since 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<serde_json::Map<String, Value>>,
    /// Seed of what the objective initialises for itself, such as a critic.
    #[serde(default)]
    pub seed: u64,
}

impl TrainSettings {
    /// Adam with its usual constants, for the host's objectives.
    pub fn adam() -> Self {
        Self {
            optimiser: "adam".into(),
            options: BTreeMap::new(),
            own: None,
            seed: 0,
        }
    }
}
