//! What is kept of an experiment: everything that a figure or a warning of the report needs, and how to repeat it.

use crate::plugin::{PluginSpec, hex, quoted_path};
use crate::terminal::version;
use advae_abi::info::{Access, AttackInfo, NormKind, Target, WeightSource};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Format of results files that this host writes.
pub const FORMAT: u32 = 4;
/// The oldest that it reads: each later one only adds to it.
pub const OLDEST: u32 = 3;

/// A plugin file and its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginConfig {
    /// The plugin's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Hash of its file.
    pub sha256: String,
    /// Settings that were given; the others have their defaults.
    pub config: Map<String, Value>,
    /// Hash of each file that a setting names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

/// A classifier or a purifier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// File and settings.
    #[serde(flatten)]
    pub plugin: PluginConfig,
    /// `default`, `set:NAME` or `file:SHA256`.
    pub weights: String,
    /// Where it runs.
    pub device: String,
    /// Backward rule the evaluator chose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward: Option<String>,
}

impl ModelConfig {
    /// The same model whatever its gradient goes by: the backward rule is the attacker's choice, not the defence's.
    pub fn without_rule(&self) -> Self {
        Self {
            backward: None,
            ..self.clone()
        }
    }
}

/// Everything a cell's figures depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellConfig {
    /// Version of the contract.
    pub contract: String,
    /// Under attack.
    pub classifier: ModelConfig,
    /// In front of it.
    pub purifier: Option<ModelConfig>,
    /// What the attacker knows.
    pub threat_model: PluginConfig,
    /// Attack.
    pub attack: PluginConfig,
    /// Norm of the budget.
    pub norm: NormKind,
    /// Budget; absent: none.
    pub epsilon: Option<f64>,
    /// Whether decided samples were left alone.
    pub early_stop: bool,
    /// Name of the dataset.
    pub dataset: String,
    /// Hash of the dataset.
    pub dataset_sha256: String,
    /// Seed of everything.
    pub seed: u64,
    /// Draws gradients are averaged over.
    pub eot: u64,
    /// Scoring draws.
    pub draws: u64,
    /// Hash of the images that were scored, where they come from a file (`score`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_sha256: Option<String>,
    /// Whether the attacker knew the one draw of a random defence that scored.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub known_draw: bool,
    /// Bits a pixel that images were rounded to before they were scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<u32>,
    /// How a GPU rounded the factors of products while images were crafted, where that was not `f32`.
    #[serde(default, skip_serializing_if = "Precision::is_single")]
    pub precision: Precision,
    /// Its place in a suite of attacks, where it was run as a part of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
}

/// How a GPU computes while images are crafted. What is measured is always computed in `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision throughout.
    #[default]
    F32,
    /// Factors of products rounded to TF32, 10 bits after the point: several times as fast on tensor cores.
    Tf32,
}

impl Precision {
    /// Whether it is single precision.
    pub fn is_single(&self) -> bool {
        *self == Self::F32
    }

    /// Bits of [`flags`](advae_abi::flags) that calls have.
    pub fn flags(self) -> u64 {
        match self {
            Self::F32 => 0,
            Self::Tf32 => advae_abi::flags::TF32,
        }
    }
}

/// The place of an attack in a suite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The suite, as it was named.
    pub suite: String,
    /// From 1 on.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// Key of the stage before, where only what that one left standing is attacked: the rows of the others are its rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

impl CellConfig {
    /// Short hash of the whole configuration: what identifies the cell.
    pub fn key(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        hex(&Sha256::digest(json))[..16].to_string()
    }

    /// Whether two cells measure one defence on one dataset: their rows may be compared sample by sample. The backward rule is
    /// the attacker's.
    pub fn same_defence(&self, other: &Self) -> bool {
        let purifier = |config: &Self| config.purifier.as_ref().map(ModelConfig::without_rule);
        self.classifier == other.classifier && purifier(self) == purifier(other) && self.same_samples(other)
    }

    /// Whether equal ids are equal samples, scored over as many draws.
    pub fn same_samples(&self, other: &Self) -> bool {
        let scoring = |config: &Self| (config.draws, config.known_draw);
        (&self.dataset, &self.dataset_sha256, scoring(self)) == (&other.dataset, &other.dataset_sha256, scoring(other))
    }

    /// Whether two attacks have one norm and one budget, or both none.
    pub fn same_budget(&self, other: &Self) -> bool {
        self.norm == other.norm && self.epsilon.map(f64::to_bits) == other.epsilon.map(f64::to_bits)
    }
}

/// A plugin as it was named: how the report shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Named {
    /// Name or path of the file.
    pub plugin: String,
    /// Set or file of weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// Settings as they were written, `key=value`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
}

impl Named {
    /// A name without weights and settings.
    pub fn plain(plugin: &str) -> Self {
        Self {
            plugin: plugin.into(),
            ..Self::default()
        }
    }
}

impl std::fmt::Display for Named {
    /// As on the command line, where it can be pasted.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&quoted_path(&self.plugin))?;
        match &self.weights {
            Some(seed) if seed.starts_with("init:") => write!(f, "@{seed}")?,
            Some(weights) => write!(f, "@{}", quoted_path(weights))?,
            None => {}
        }
        match &self.settings[..] {
            [] => Ok(()),
            settings => write!(f, ":{}", settings.join(",")),
        }
    }
}

impl From<&PluginSpec> for Named {
    fn from(spec: &PluginSpec) -> Self {
        let weights = match &spec.weights {
            WeightSource::Default => None,
            WeightSource::Set(name) => Some(name.clone()),
            WeightSource::Path(path) => Some(path.clone()),
            WeightSource::Init(seed) => Some(format!("init:{seed}")),
        };
        Self {
            plugin: spec.name.clone(),
            weights,
            settings: spec.written().to_vec(),
        }
    }
}

/// How the attack searches, as far as it says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Oracle passes a sample may need.
    pub passes: u64,
    /// Whether it aims at target labels.
    #[serde(default)]
    pub targeted: bool,
    /// How far a search can move from its start; absent: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reach: Option<f64>,
    /// Whether it starts at a random point of the ball; absent: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random_start: Option<bool>,
    /// The loss it goes by; absent: not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<String>,
}

impl From<&AttackInfo> for Search {
    fn from(info: &AttackInfo) -> Self {
        Self {
            passes: info.passes,
            targeted: info.targeted,
            reach: info.reach,
            random_start: info.random_start,
            loss: info.loss.clone(),
        }
    }
}

impl Search {
    /// How far one search would have to move to come to every point of a ball of radius `epsilon`, if it says that it moves less: from
    /// edge to edge with a random start, from the centre without one.
    pub fn falls_short_of(&self, epsilon: f64) -> Option<f64> {
        /// Steps times step size, as f64 makes it of decimal fractions.
        const ROUNDING: f64 = 1e-9;
        let needed = if self.random_start == Some(true) {
            2. * epsilon
        } else {
            epsilon
        };
        self.reach
            .filter(|reach| reach * (1. + ROUNDING) < needed)
            .map(|_| needed)
    }
}

/// What a threat model grants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Gradients.
    pub gradients: bool,
    /// Logits.
    pub logits: bool,
    /// Labels.
    pub labels: bool,
    /// Label queries at the most; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_limit: Option<u64>,
}

impl From<&Access> for Granted {
    fn from(access: &Access) -> Self {
        Self {
            gradients: access.gradients,
            logits: access.logits,
            labels: access.labels,
            query_limit: access.query_limit,
        }
    }
}

/// The backward rule that gradients of the purifier went by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// In use.
    pub used: String,
    /// What the purifier offers, its own first.
    pub offered: Vec<String>,
}

/// First line of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellHeader {
    /// [`CellConfig::key`].
    pub key: String,
    /// As it was named.
    pub classifier: Named,
    /// As it was named; absent: the classifier alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purifier: Option<Named>,
    /// As it was named.
    pub threat_model: Named,
    /// As it was named.
    pub attack: Named,
    /// Whom the oracle answered for; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// What the threat model granted the attacker; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted: Option<Granted>,
    /// How the attack searches.
    #[serde(default)]
    pub search: Search,
    /// By which rule the purifier's gradients went; absent without a purifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    /// Defence that the images were crafted on, where that is another one than the one that scores them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crafted_on: Option<String>,
    /// How many samples were asked for.
    pub samples: usize,
    /// L2 caps at which an attack without a budget is read on this dataset.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub l2_caps: Vec<f64>,
    /// Samples that the budget allows to be made plain grey.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub plain: usize,
    /// What a reader must know of the dataset.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub dataset_note: String,
    /// What the purifier says a reader must know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What the classifier says a reader must know of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub classifier_note: String,
    /// What is needed to repeat the cell.
    pub config: CellConfig,
}

impl CellHeader {
    /// The defence as it was named: `model_x + advae`, or the classifier alone.
    pub fn defence(&self) -> String {
        match &self.purifier {
            Some(purifier) => format!("{} + {purifier}", self.classifier),
            None => self.classifier.to_string(),
        }
    }

    /// The cell as messages call it: defence, threat model, attack.
    pub fn name(&self) -> String {
        format!("{}, {}, {}", self.defence(), self.threat_model, self.attack)
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes it so
fn is_zero<T: Default + PartialEq>(n: &T) -> bool {
    *n == T::default()
}

/// Shares over the scoring draws of a random pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawShares {
    /// Share of draws that are correct on the clean image.
    pub clean: f64,
    /// Share of draws that are correct on the scored image.
    pub robust: f64,
}

/// One sample of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Key of the cell.
    pub cell: String,
    /// Sample id.
    pub id: u64,
    /// True label.
    pub label: u32,
    /// Label given to the clean image.
    pub clean_prediction: u32,
    /// Label given to the scored image.
    pub adversarial_prediction: u32,
    /// Whether the clean image is classified correctly (by most draws).
    pub clean_correct: bool,
    /// Whether the scored image is classified correctly (by most draws).
    pub robust: bool,
    /// For a random pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draws: Option<DrawShares>,
    /// L2 distance from the clean image.
    pub l2: Option<f64>,
    /// Linf distance from the clean image.
    pub linf: Option<f64>,
    /// Why the image was refused; it is then scored as the clean one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What the attack says it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<bool>,
    /// Label a targeted attack aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<u32>,
    /// Input gradients the attack asked for.
    #[serde(default)]
    pub gradients: u64,
    /// Those of them that were zero.
    #[serde(default)]
    pub zero_gradients: u64,
    /// Labels the attack asked for.
    #[serde(default)]
    pub queries: u64,
    /// Images that the attack asked anything about, logits, gradients or labels: what it cost an attacker who pays for every answer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub asked: u64,
    /// Wall-clock seconds from the cell's beginning to this row, interruptions left out.
    pub at: f64,
    /// Whether the row is that of the [stage](Stage) before: the sample had fallen and was not attacked again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carried: bool,
}

impl Row {
    /// The row of a sample that has fallen, in the cell of the next stage.
    pub fn carry(&self, cell: &str) -> Self {
        Self {
            cell: cell.into(),
            gradients: 0,
            zero_gradients: 0,
            queries: 0,
            asked: 0,
            at: 0.,
            carried: true,
            ..self.clone()
        }
    }

    /// Correctness on the clean image: 0 or 1, or a mean over draws.
    pub fn clean_share(&self) -> f64 {
        self.draws.map_or(f64::from(u8::from(self.clean_correct)), |d| d.clean)
    }

    /// Correctness on the scored image: 0 or 1, or a mean over draws.
    pub fn robust_share(&self) -> f64 {
        self.draws.map_or(f64::from(u8::from(self.robust)), |d| d.robust)
    }

    /// Whether the attack succeeded on a sample that was classified correctly. A target that is the true label is no success.
    pub fn broken(&self) -> bool {
        let success = match self.target {
            Some(target) => target != self.label && self.adversarial_prediction == target,
            None => !self.robust,
        };
        self.clean_correct && self.refused.is_none() && success
    }

    /// Distance in that norm.
    pub fn distance(&self, norm: NormKind) -> Option<f64> {
        match norm {
            NormKind::Linf => self.linf,
            NormKind::L2 => self.l2,
        }
    }
}

/// The model that a black-box attacker trained and attacked in place of the whole one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Substitute {
    /// Labels of the whole model that it cost.
    pub queries: u64,
    /// Clean images of the run on which both models say the same.
    pub agreeing: usize,
    /// Clean images on which they were compared.
    pub of: usize,
}

impl Substitute {
    /// Share of the clean images on which both models say the same.
    pub fn agreement(&self) -> f64 {
        self.agreeing as f64 / self.of.max(1) as f64
    }
}

/// What the host found when it repeated its own scoring of a few samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Samples whose images were classified a second time.
    pub repeated: usize,
    /// Those of them that came out otherwise among fewer others, although the defence says it is not random.
    pub differing: usize,
    /// Whether the classifier's output looks like probabilities instead of logits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub probabilities: bool,
}

impl Check {
    /// Over the samples of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            repeated: self.repeated + other.repeated,
            differing: self.differing + other.differing,
            probabilities: self.probabilities && other.probabilities,
        }
    }
}

/// An image as PNG in base64, and what the whole model says of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// The image, rounded to 8 bits.
    pub png: String,
    /// The class.
    pub prediction: u32,
    /// Its softmax.
    pub confidence: f64,
}

/// A sample as it looks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// Sample id.
    pub id: u64,
    /// True label.
    pub label: u32,
    /// Of the images, `[C,H,W]`.
    pub shape: [usize; 3],
    /// The clean image.
    pub clean: Look,
    /// The image that was scored.
    pub adversarial: Look,
    /// Ten times what the attack added, around grey.
    pub difference: String,
    /// What the purifier makes of the adversarial image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purified: Option<String>,
    /// Whether it counts as robust.
    pub robust: bool,
}

/// A run of the host that wrote to the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Format of the file.
    pub format: u32,
    /// Version of the host.
    pub host: String,
    /// Command line, without the program's folder.
    pub command: String,
    /// Its machine; absent in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Hash of the lock that it was held to, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

impl Run {
    /// This process.
    pub fn here() -> Self {
        Self {
            format: FORMAT,
            host: version::LINE.into(),
            command: version::command(),
            machine: Some(version::machine()),
            lock: version::held_to(),
        }
    }
}

/// A cell as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// What was measured.
    pub header: CellHeader,
    /// Its rows by sample id.
    pub rows: BTreeMap<u64, Row>,
    /// What was attacked in place of the whole model.
    pub substitute: Option<Substitute>,
    /// What repeating the scoring found.
    pub check: Option<Check>,
    /// Hashes of what was written, or was about to be, to its file of adversarial images.
    pub images: BTreeSet<String>,
    /// Samples as they look, by id: a few, where they were asked for.
    pub pictures: BTreeMap<u64, Picture>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

impl Cell {
    /// A cell without rows.
    pub fn new(header: CellHeader) -> Self {
        Self {
            header,
            rows: BTreeMap::new(),
            substitute: None,
            check: None,
            images: BTreeSet::new(),
            pictures: BTreeMap::new(),
            failed: None,
        }
    }

    /// Whether it failed or has all its rows.
    pub fn is_whole(&self) -> bool {
        self.failed.is_some() || self.rows.len() >= self.header.samples
    }

    /// Wall-clock seconds it took.
    pub fn seconds(&self) -> f64 {
        self.rows.values().map(|row| row.at).fold(0., f64::max)
    }
}
