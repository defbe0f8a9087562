//! Experiment files: matrices of evaluations, and what they come to.

use super::slurm::Slurm;
use crate::commands::eval::EvalArgs;
use crate::experiment::Settings;
use crate::plugin::lists::one_or_many;
use crate::terminal::config::{self, Case};
use anyhow::{Context, Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An experiment: matrices of evaluations whose results are kept in one file.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Experiment {
    /// Results file; without one, NAME.jsonl beside NAME.toml
    pub out: Option<PathBuf>,
    /// What the matrices share; a key that a matrix has wins
    pub defaults: Matrix,
    /// One or more matrices; each runs every combination of its lists
    pub matrix: Vec<Matrix>,
    /// The job array of `--launcher slurm`
    pub slurm: Slurm,
}

/// One value, or a list of them.
#[derive(JsonSchema)]
#[schemars(untagged)]
#[allow(dead_code)] // It is there for the schema.
enum OneOrMany {
    Text(String),
    Number(f64),
    Many(Vec<OneOrMany>),
}

/// Every combination of the lists is evaluated. Keys are the options of `eval`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Matrix {
    /// What messages call it
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Classifiers to attack
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub classifier: Vec<String>,
    /// Weights of the classifiers: sets, files or init:SEED; each classifier runs with each
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub classifier_weights: Vec<String>,
    /// Purifiers in front of them, or none
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub purifier: Vec<String>,
    /// Weights of the purifiers; none stays none
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub purifier_weights: Vec<String>,
    /// Threat models
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub threat_model: Vec<String>,
    /// Attacks, or the suite autoattack
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub attack: Vec<String>,
    /// Budgets: 0.3, "8/255", "l2=0.5", "0:0.4:0.1"
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub epsilon: Vec<String>,
    /// Seeds
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub seed: Vec<String>,
    /// Datasets, or paths of images
    #[serde(deserialize_with = "one_or_many", skip_serializing)]
    #[schemars(with = "OneOrMany")]
    pub dataset: Vec<String>,
    /// Combinations that are left out; each names values of some of the lists
    #[serde(skip_serializing)]
    pub exclude: Vec<Exclude>,
    /// Number of samples
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<usize>,
    /// Folder of the datasets that are not embedded
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// Where models run: cpu or cuda:N
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How a GPU rounds the factors of products while images are crafted: f32 or tf32
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Threads
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Samples per batch
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<usize>,
    /// Draws that gradients through a random defence are averaged over
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eot: Option<u64>,
    /// Scoring draws of a random defence
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draws: Option<u64>,
    /// Also attack random defences with the attacker knowing the draw
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_draw: Option<bool>,
    /// Also attack every classifier without a purifier, and adversarially trained
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<bool>,
    /// Bits per pixel that images are rounded to before they are scored
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantize: Option<u32>,
    /// Backward rule of the purifiers: exact, identity, custom, none or all
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backward: Option<String>,
    /// Leave the images that a black-box attacker may begin with out of the scoring, whatever the threat model
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_attacker_images_out: Option<bool>,
    /// Go on attacking samples that are decided already
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_early_stop: Option<bool>,
}

/// Values by list: a combination is left out if it has one of each.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Exclude(#[schemars(with = "BTreeMap<Axis, OneOrMany>")] BTreeMap<Axis, Values>);

#[derive(Clone, Debug, Deserialize)]
struct Values(#[serde(deserialize_with = "one_or_many")] Vec<String>);

/// A list of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Axis {
    Dataset,
    Seed,
    Classifier,
    Purifier,
    ThreatModel,
    Attack,
    Epsilon,
}

/// The order in which combinations are run: what is loaded once comes first.
const AXES: [Axis; 7] = [
    Axis::Dataset,
    Axis::Seed,
    Axis::Classifier,
    Axis::Purifier,
    Axis::ThreatModel,
    Axis::Attack,
    Axis::Epsilon,
];

impl Axis {
    fn name(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Seed => "seed",
            Self::Classifier => "classifier",
            Self::Purifier => "purifier",
            Self::ThreatModel => "threat-model",
            Self::Attack => "attack",
            Self::Epsilon => "epsilon",
        }
    }

    /// Whether one evaluation takes a single value of it.
    fn is_single(self) -> bool {
        matches!(self, Self::Dataset | Self::Seed | Self::Epsilon)
    }
}

/// Values of each axis, all combinations of which are run; an empty list stands for the default.
type Block = [Vec<String>; AXES.len()];
/// Those of the later axes.
type Tail = Vec<Vec<String>>;

impl Experiment {
    /// Reads an experiment file.
    ///
    /// # Errors
    /// Where it cannot be read, is no TOML, or has a key or a value that does not fit: names file, line and key.
    pub fn read(path: &Path) -> Result<Self> {
        let experiment: Self = config::read(path, Case::Kebab, &[])?;
        let shown = path.display();
        ensure!(
            !experiment.matrix.is_empty(),
            "'{shown}' has no matrix: add [[matrix]] with classifier = [...] and attack = [...]"
        );
        Ok(experiment)
    }

    /// The results file.
    pub fn results(&self, path: &Path) -> PathBuf {
        self.out.clone().unwrap_or_else(|| path.with_extension("jsonl"))
    }

    /// Takes an experiment that is part of the host.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn parse(text: &str, name: &str) -> Result<Self> {
        config::parse(text, name, Case::Kebab, &[])
    }

    /// What is run, one evaluation after the other.
    ///
    /// # Errors
    /// Where a matrix lacks something, or holds what `eval` refuses.
    pub fn evaluations(&self) -> Result<Vec<Settings>> {
        Ok(self.by_matrix()?.into_iter().flatten().collect())
    }

    /// The same, matrix by matrix.
    ///
    /// # Errors
    /// As for [`evaluations`](Self::evaluations).
    pub fn by_matrix(&self) -> Result<Vec<Vec<Settings>>> {
        let mut all = vec![];
        for (number, matrix) in self.matrix.iter().enumerate() {
            let matrix = matrix.clone().or(&self.defaults)?;
            let of = || match &matrix.title {
                Some(title) => format!("matrix '{title}'"),
                None => format!("matrix {}", number + 1),
            };
            let blocks = matrix.blocks().with_context(of)?.into_iter();
            let settings = blocks.map(|block| matrix.settings(block));
            all.push(settings.collect::<Result<_>>().with_context(of)?);
        }
        Ok(all)
    }
}

impl Matrix {
    /// The same, with those keys of `defaults` that it does not have itself.
    fn or(self, defaults: &Matrix) -> Result<Self> {
        let many = |own: Vec<String>, other: &Vec<String>| if own.is_empty() { other.clone() } else { own };
        let scalars = |matrix: &Matrix| -> Result<serde_json::Map<String, serde_json::Value>> {
            Ok(serde_json::from_value(serde_json::to_value(matrix)?)?)
        };
        let mut both = scalars(defaults)?;
        both.extend(scalars(&self)?);
        let scalars: Matrix = serde_json::from_value(both.into())?;
        Ok(Self {
            classifier: many(self.classifier, &defaults.classifier),
            classifier_weights: many(self.classifier_weights, &defaults.classifier_weights),
            purifier: many(self.purifier, &defaults.purifier),
            purifier_weights: many(self.purifier_weights, &defaults.purifier_weights),
            threat_model: many(self.threat_model, &defaults.threat_model),
            attack: many(self.attack, &defaults.attack),
            epsilon: many(self.epsilon, &defaults.epsilon),
            seed: many(self.seed, &defaults.seed),
            dataset: many(self.dataset, &defaults.dataset),
            exclude: self.exclude.into_iter().chain(defaults.exclude.clone()).collect(),
            ..scalars
        })
    }

    /// All combinations, without those that are left out, as few blocks.
    fn blocks(&self) -> Result<Vec<Block>> {
        ensure!(
            !self.classifier.is_empty(),
            "no classifier: add classifier = [\"model_x\"]"
        );
        let whole: Block = [
            self.dataset.clone(),
            self.seed.clone(),
            with_weights(&self.classifier, &self.classifier_weights)?,
            with_weights(&self.purifier, &self.purifier_weights)?,
            self.threat_model.clone(),
            self.attack.clone(),
            self.epsilon.clone(),
        ];
        for Exclude(rule) in &self.exclude {
            ensure!(
                !rule.is_empty(),
                "an exclude names nothing: give it values, {{ purifier = \"advae\" }}"
            );
            for (axis, Values(values)) in rule {
                let known = &whole[*axis as usize];
                if let Some(stranger) = values.iter().find(|value| !known.contains(value)) {
                    bail!(
                        "exclude names {} '{stranger}', which the matrix does not have: expected one of {}",
                        axis.name(),
                        known.join(", ")
                    )
                }
            }
        }
        let mut blocks = vec![];
        self.split(&mut vec![], &whole, &mut blocks);
        ensure!(!blocks.is_empty(), "exclude leaves nothing of the matrix");
        Ok(blocks)
    }

    /// Cuts `rest` axis by axis, `chosen` being the values of the earlier ones. Values whose later axes come to the same stay together.
    fn split(&self, chosen: &mut Vec<Vec<String>>, whole: &Block, blocks: &mut Vec<Block>) {
        let Some(axis) = AXES.get(chosen.len()) else {
            if let Ok(block) = Block::try_from(chosen.clone()) {
                blocks.push(block);
            }
            return;
        };
        let values = &whole[*axis as usize];
        if values.is_empty() {
            chosen.push(vec![]);
            self.split(chosen, whole, blocks);
            chosen.pop();
            return;
        }
        let mut before: Option<(Vec<String>, Vec<Tail>)> = None;
        let mut finish = |group: Option<(Vec<String>, Vec<Tail>)>| {
            let Some((values, tails)) = group else { return };
            for tail in tails {
                let block = [chosen.clone(), vec![values.clone()], tail].concat();
                if let Ok(block) = Block::try_from(block) {
                    blocks.push(block);
                }
            }
        };
        for value in values {
            let mut with = chosen.clone();
            with.push(vec![value.clone()]);
            let mut own = vec![];
            if !self.excluded(&with) {
                self.split(&mut with, whole, &mut own);
            }
            let tails: Vec<Tail> = own.iter().map(|block| block[chosen.len() + 1..].to_vec()).collect();
            match &mut before {
                Some((values, same)) if *same == tails && !axis.is_single() => values.push(value.clone()),
                _ => finish(before.replace((vec![value.clone()], tails))),
            }
        }
        finish(before);
    }

    /// Whether what is chosen so far, one value an axis, is left out whatever comes after.
    fn excluded(&self, chosen: &[Vec<String>]) -> bool {
        self.exclude.iter().any(|Exclude(rule)| {
            rule.iter().all(|(axis, Values(values))| {
                let value = chosen.get(*axis as usize).and_then(|value| value.first());
                value.is_some_and(|value| values.contains(value))
            })
        })
    }

    /// One evaluation.
    fn settings(&self, block: Block) -> Result<Settings> {
        let [dataset, seed, classifier, purifier, threat_model, attack, epsilon] = block;
        let mut keys = match serde_json::to_value(self)? {
            serde_json::Value::Object(keys) => keys,
            _ => serde_json::Map::new(),
        };
        let lists = [
            ("classifier", classifier),
            ("purifier", purifier),
            ("threat-model", threat_model),
            ("attack", attack),
            ("epsilon", epsilon),
        ];
        for (key, values) in lists {
            keys.insert(key.into(), values.into());
        }
        if let Some(dataset) = dataset.first() {
            keys.insert("dataset".into(), dataset.as_str().into());
        }
        if let Some(seed) = seed.first() {
            let seed: u64 = seed
                .parse()
                .with_context(|| format!("seed '{seed}': expected a whole number, 0 or more"))?;
            keys.insert("seed".into(), seed.into());
        }
        // Those are not flags of `eval`.
        for key in ["title", "keep-attacker-images-out"] {
            keys.remove(key);
        }
        let args: EvalArgs = serde_json::from_value(keys.into()).map_err(anyhow::Error::msg)?;
        Ok(Settings {
            keep_seeds_out: self.keep_attacker_images_out.unwrap_or(false),
            ..args.fill()?
        })
    }
}

/// Each spec with each set of weights.
fn with_weights(specs: &[String], weights: &[String]) -> Result<Vec<String>> {
    if weights.is_empty() {
        return Ok(specs.to_vec());
    }
    let mut all = vec![];
    for spec in specs {
        if spec == "none" {
            all.push(spec.clone());
            continue;
        }
        ensure!(
            !spec.contains('@'),
            "'{spec}' names weights, and a list of weights is given beside it: keep one of them"
        );
        let (name, settings) = spec
            .split_once(':')
            .map_or((spec.as_str(), None), |(name, rest)| (name, Some(rest)));
        for weights in weights {
            let settings = settings.map(|settings| format!(":{settings}")).unwrap_or_default();
            all.push(format!("{name}@{weights}{settings}"));
        }
    }
    Ok(all)
}

/// The JSON schema of experiment files.
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Experiment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiment(text: &str) -> Experiment {
        config::parse(text, "e.toml", Case::Kebab, &[]).unwrap()
    }

    fn evaluations(text: &str) -> Vec<Settings> {
        experiment(text).evaluations().unwrap()
    }

    fn refused(text: &str) -> String {
        format!("{:#}", experiment(text).evaluations().unwrap_err())
    }

    #[test]
    fn a_matrix_without_exclusions_is_one_evaluation_per_dataset_seed_and_budget() {
        let all = evaluations(
            "[defaults]\nsamples = 5\n[[matrix]]\nclassifier = [\"a\", \"b\"]\npurifier = [\"none\", \"p\"]\nattack = \"fgsm\"\nepsilon = [0.1, 0.2]\nseed = [3, 4]",
        );
        assert_eq!(all.len(), 4);
        for settings in &all {
            assert_eq!(settings.classifiers, ["a", "b"]);
            assert_eq!(settings.purifiers, ["none", "p"]);
            assert_eq!(settings.samples, 5);
        }
        assert_eq!(
            all.iter().map(|settings| settings.seed).collect::<Vec<_>>(),
            [3, 3, 4, 4]
        );
    }

    #[test]
    fn what_is_excluded_is_left_out_and_nothing_else_is() {
        let text = "[[matrix]]\nclassifier = [\"a\", \"b\", \"c\"]\npurifier = [\"none\", \"p\"]\nattack = [\"f\", \"g\"]\n\
                    exclude = [{ classifier = \"b\", purifier = \"p\", attack = \"g\" }, { classifier = \"c\", purifier = \"none\" }]";
        let mut found = vec![];
        for settings in evaluations(text) {
            for classifier in &settings.classifiers {
                for purifier in &settings.purifiers {
                    found.extend(
                        settings
                            .attacks
                            .iter()
                            .map(|attack| format!("{classifier}{purifier}{attack}")),
                    );
                }
            }
        }
        found.sort();
        assert_eq!(
            found,
            [
                "anonef", "anoneg", "apf", "apg", "bnonef", "bnoneg", "bpf", "cpf", "cpg"
            ]
        );
    }

    #[test]
    fn weights_are_a_list_of_their_own() {
        let all = evaluations(
            "[[matrix]]\nclassifier = \"a\"\nattack = \"f\"\npurifier = [\"none\", \"p:bits=2\"]\npurifier-weights = [\"x\", \"y\"]",
        );
        assert_eq!(all[0].purifiers, ["none", "p@x:bits=2", "p@y:bits=2"]);
    }

    #[test]
    fn a_matrix_wins_over_the_defaults() {
        let all = evaluations(
            "[defaults]\nclassifier = \"a\"\nattack = \"f\"\nsamples = 5\neot = 3\n[[matrix]]\nsamples = 7\n[[matrix]]\nclassifier = \"b\"",
        );
        assert_eq!(
            (all[0].classifiers[0].as_str(), all[0].samples, all[0].eot),
            ("a", 7, 3)
        );
        assert_eq!((all[1].classifiers[0].as_str(), all[1].samples), ("b", 5));
    }

    #[test]
    fn faults_are_named() {
        assert_eq!(
            refused("[[matrix]]\nattack = \"f\""),
            "matrix 1: no classifier: add classifier = [\"model_x\"]"
        );
        let exclude = |rule: &str| {
            refused(&format!(
                "[[matrix]]\nclassifier = \"a\"\nattack = [\"f\", \"g\"]\nexclude = [{rule}]"
            ))
        };
        assert_eq!(
            exclude("{ attack = \"h\" }"),
            "matrix 1: exclude names attack 'h', which the matrix does not have: expected one of f, g"
        );
        assert_eq!(
            exclude("{ attack = [\"f\", \"g\"] }"),
            "matrix 1: exclude leaves nothing of the matrix"
        );
        assert!(exclude("{}").contains("an exclude names nothing"));
        assert!(refused("[[matrix]]\nclassifier = \"a\"\nseed = 1.5").contains("seed '1.5': expected a whole number"));
        let unknown =
            config::parse::<Experiment>("[[matrix]]\nclasifier = \"a\"", "e.toml", Case::Kebab, &[]).unwrap_err();
        assert!(unknown.to_string().contains("'e.toml' line 2"), "{unknown}");
    }

    #[test]
    fn the_schema_has_every_key_of_a_matrix() {
        let schema = serde_json::to_value(schema()).unwrap();
        let text = schema.to_string();
        for key in [
            "classifier-weights",
            "threat-model",
            "no-early-stop",
            "exclude",
            "defaults",
            "matrix",
        ] {
            assert!(text.contains(&format!("\"{key}\"")), "{key}: {text}");
        }
        assert!(!text.contains("classifier_weights"), "{text}");
    }
}
