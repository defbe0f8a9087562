//! A training run as a file: what is trained, on what, and how.

use super::augmentation::Augmentation;
use super::fraction;
use super::schedule::{Rules, Schedule};
use crate::terminal::config::{self, Case};
use advae_abi::info::Label;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What the loss compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Logits with labels, by softmax cross-entropy (AdvAE's Eq. 7, HGD's CGD).
    #[default]
    CrossEntropy,
    /// Logits behind the purifier with those of the clean image without it, by their L1 distance (HGD's LGD).
    Logits,
    /// The same with the activations of the penultimate layer (HGD's FGD).
    Features,
    /// An objective of the purifier's own, with the settings of the table `own`; validation is by cross-entropy.
    Own,
}

/// Whom the examples are crafted on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CraftOn {
    /// Purifier and classifier together, anew at every step.
    #[default]
    Pipeline,
    /// The frozen classifier alone, once before training (HGD).
    Classifier,
}

/// The statistics that batch norm goes by while training examples are crafted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// The running ones, as in evaluation.
    #[default]
    Running,
    /// Those of the batch, as in the update.
    Batch,
}

/// Which epoch's weights come out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The one with the lowest validation loss.
    #[default]
    Best,
    /// The last: where no loss tells how good the weights are, as with two networks against each other.
    Last,
}

/// How the rate goes from `learning_rate` to `final_learning_rate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateSchedule {
    /// Linearly, an epoch at a time; where `final_learning_rate` is 0 the plateau rule has it instead.
    #[default]
    Linear,
    /// Along half a cosine, a step at a time (Loshchilov and Hutter 2017, without restarts).
    Cosine,
    /// From a 25th of `learning_rate` up to it in the first 30 % of all steps, then down, both along half a cosine (Smith 2018, with
    /// PyTorch's constants).
    OneCycle,
}

/// Epochs that craft by another attack.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// How many.
    pub epochs: usize,
    /// Their attack.
    pub attack: String,
}

/// Everything that defines a run; kept beside the weights it made.
///
/// With a purifier, the purifier is trained in front of the frozen classifiers (Eq. 7 for one, Eq. 8 for several); without
/// one the classifier is. With an attack the examples are crafted while it trains; without one training is clean.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// Classifier, `model_x.so@clean`, or a list of them for a purifier that is to serve several. Without a purifier it is what
    /// is trained, from a seeded initialisation unless weights are named.
    #[serde(
        deserialize_with = "crate::plugin::lists::one_or_many",
        serialize_with = "crate::plugin::lists::one_if_single"
    )]
    pub classifier: Vec<String>,
    /// Purifier to train, from a seeded initialisation unless weights are named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purifier: Option<String>,
    /// Attack that crafts the examples, `pgd:steps=10`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attack: Option<String>,
    /// Attack on the validation images, with an epsilon of its own if it names one; `attack` if absent. Without `attack` it is for
    /// objectives of a purifier's own that learn from clean images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_attack: Option<String>,
    /// Whom the attack attacks.
    pub craft_on: CraftOn,
    /// By which statistics batch norm goes meanwhile; validation always goes by the running ones.
    pub statistics: Statistics,
    /// Which label it is given: true, or "predicted".
    pub label: Label,
    /// Radius of the attack's ball: a number, or a fraction such as `"8/255"`; the dataset's customary Linf budget if absent.
    #[serde(deserialize_with = "fraction::deserialize", skip_serializing_if = "Option::is_none")]
    pub epsilon: Option<f64>,
    /// Steps over which the radius grows from 0 to `epsilon`.
    pub epsilon_ramp_steps: u64,
    /// Weight of the loss on adversarial images.
    pub adversarial_weight: f64,
    /// Weight of the loss on clean images (of use only with an attack: without one it is 1).
    pub clean_weight: f64,
    /// Eq. 7's lambda: weight of the reconstruction loss between purified and clean images.
    pub lambda: f64,
    /// Weight of the divergence KL(clean || adversarial) between what the model says of the two images (as in TRADES).
    pub consistency: f64,
    /// What the loss compares.
    pub objective: Objective,
    /// Settings of the purifier's own objective.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<serde_json::Map<String, serde_json::Value>>,
    /// Dataset: a name, or the path of images of one's own.
    pub dataset: String,
    /// Share of the training set held out for validation, its last images (paper: 10 %).
    pub validation: f64,
    /// Use only that many training images, 0 for all.
    pub samples: usize,
    /// Use only that many validation images, 0 for all.
    pub validation_samples: usize,
    /// Largest number of epochs.
    pub epochs: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Adam's rate at the start.
    pub learning_rate: f64,
    /// Adam's rate in the end; with `linear`, 0 leaves the rate to the plateau rule.
    pub final_learning_rate: f64,
    /// How it gets there.
    pub rate_schedule: RateSchedule,
    /// L2 regularisation of weights (not of biases and norms), as Adam's gradient sees it.
    pub weight_decay: f64,
    /// Decay of weights beside the gradient (AdamW).
    pub decoupled_weight_decay: f64,
    /// Largest L2 norm of a step's gradients together, to which longer ones are scaled; 0 for any.
    pub clip_norm: f64,
    /// Plateau and early stop.
    pub schedule: Rules,
    /// Seed of the initialisation, the order of the images and every random start.
    pub seed: u64,
    /// Steps between checkpoints within an epoch.
    pub checkpoint_steps: u64,
    /// Round the weights that come out to `f16`: half the size. Checkpoints stay as they are.
    pub half_precision: bool,
    /// Which epoch's weights come out.
    pub keep: Keep,
    /// Decay a step of a running mean of the weights, which is validated and comes out in their place; 0 for none.
    pub weight_averaging: f64,
    /// How the training images are varied, anew in every epoch.
    #[serde(skip_serializing_if = "Augmentation::is_none")]
    pub augmentation: Augmentation,
    /// What the first epochs craft by, in place of `attack`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curriculum: Vec<Stage>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            classifier: vec![],
            purifier: None,
            attack: None,
            validation_attack: None,
            craft_on: CraftOn::default(),
            statistics: Statistics::default(),
            label: Label::default(),
            epsilon: None,
            epsilon_ramp_steps: 0,
            adversarial_weight: 1.,
            clean_weight: 0.,
            lambda: 0.,
            consistency: 0.,
            objective: Objective::default(),
            own: None,
            dataset: "mnist-train".into(),
            validation: 0.1,
            samples: 0,
            validation_samples: 0,
            epochs: 100,
            batch_size: 128,
            learning_rate: 1e-3,
            final_learning_rate: 0.,
            rate_schedule: RateSchedule::default(),
            weight_decay: 0.,
            decoupled_weight_decay: 0.,
            clip_norm: 0.,
            schedule: Rules::default(),
            seed: 0,
            checkpoint_steps: 200,
            half_precision: false,
            keep: Keep::default(),
            weight_averaging: 0.,
            augmentation: Augmentation::default(),
            curriculum: vec![],
        }
    }
}

impl Recipe {
    /// Reads a TOML file. Keys may be written as `batch_size` or `batch-size`.
    ///
    /// # Errors
    /// If it is missing or not TOML, has unknown keys, or values of the wrong type; with line and key.
    pub fn read(path: &Path) -> Result<Self> {
        config::read(path, Case::Snake, &["own"]).context("bad recipe")
    }

    /// The recipe as a TOML file.
    ///
    /// # Errors
    /// If it cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Refuses to resume a run that was started with another recipe (`started`, as TOML), except with more epochs.
    ///
    /// # Errors
    /// Names the keys that differ, or says why the number of epochs cannot change.
    pub fn check_resumes(&self, started: &str) -> Result<()> {
        let started: Self = toml::from_str(started).context("the recipe in the checkpoint is not readable")?;
        let as_long = Self {
            epochs: started.epochs,
            ..self.clone()
        };
        let other = as_long.differences(&started)?;
        ensure!(
            other.is_empty(),
            "the checkpoint is of another recipe: {}: resume with the recipe it was started with, or train into another folder",
            other.join(", ")
        );
        let (asked, had) = (self.epochs, started.epochs);
        ensure!(
            asked >= had,
            "epochs is {asked}, the run was started with {had}: give {had} or more, or train into another folder"
        );
        ensure!(
            asked == had || self.final_learning_rate == 0. && self.rate_schedule == RateSchedule::Linear,
            "epochs is {asked}, the run was started with {had}, and with final_learning_rate or a rate_schedule the rate of every epoch depends on their \
             number: give {had}, or train anew into another folder"
        );
        Ok(())
    }

    /// The keys in which it differs from the one a run was started with, with both values.
    fn differences(&self, started: &Self) -> Result<Vec<String>> {
        let (ours, theirs) = (toml::Table::try_from(self)?, toml::Table::try_from(started)?);
        let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let shown = |value: Option<&toml::Value>| value.map_or("absent".into(), ToString::to_string);
        let differ = keys.into_iter().filter(|key| ours.get(*key) != theirs.get(*key));
        Ok(differ
            .map(|key| {
                format!(
                    "{key} is {}, it was started with {}",
                    shown(ours.get(key)),
                    shown(theirs.get(key))
                )
            })
            .collect())
    }

    /// Checks the values.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<()> {
        ensure!(
            !self.classifier.is_empty(),
            "no classifier: give --classifier or 'classifier' in the recipe"
        );
        ensure!(self.batch_size > 0, "batch_size is 0: expected at least 1");
        ensure!(self.epochs > 0, "epochs is 0: expected at least 1");
        ensure!(
            (0. ..1.).contains(&self.validation),
            "validation is {}: expected a share in [0, 1)",
            self.validation
        );
        ensure!(
            self.learning_rate > 0. && self.learning_rate.is_finite(),
            "learning_rate is {}: expected more than 0",
            self.learning_rate
        );
        if let Some(epsilon) = self.epsilon {
            ensure!(
                epsilon >= 0. && epsilon.is_finite(),
                "epsilon is {epsilon}: expected 0 or more"
            );
        }
        ensure!(
            self.final_learning_rate >= 0. && self.final_learning_rate.is_finite(),
            "final_learning_rate is {}: expected 0 or more",
            self.final_learning_rate
        );
        for (name, weight) in [
            ("weight_decay", self.weight_decay),
            ("decoupled_weight_decay", self.decoupled_weight_decay),
            ("clip_norm", self.clip_norm),
            ("adversarial_weight", self.adversarial_weight),
            ("clean_weight", self.clean_weight),
            ("lambda", self.lambda),
            ("consistency", self.consistency),
        ] {
            ensure!(
                weight >= 0. && weight.is_finite(),
                "{name} is {weight}: expected 0 or more"
            );
        }
        ensure!(
            (0. ..1.).contains(&self.weight_averaging),
            "weight_averaging is {}: expected a decay in [0, 1)",
            self.weight_averaging
        );
        ensure!(
            self.attack.is_none() || self.adversarial_weight + self.clean_weight + self.lambda + self.consistency > 0.,
            "every weight of the loss is 0: nothing would be learnt"
        );
        ensure!(
            self.own.is_none() || self.objective == Objective::Own,
            "the table 'own' is given, but objective is not \"own\": take it out, or set objective = \"own\""
        );
        ensure!(
            self.objective != Objective::Own || self.classifier.len() == 1,
            "{} classifiers are named, but an objective of the purifier's own is validated, and its examples crafted, on one",
            self.classifier.len()
        );
        let options = self.optimiser_options();
        ensure!(
            self.objective != Objective::Own || options.is_empty(),
            "{} is given, but an objective of the purifier's own has its own optimisers: leave it out",
            options.into_keys().next().unwrap_or_default()
        );
        self.schedule.check()?;
        self.check_purifier()?;
        self.check_attack()
    }

    /// What needs a purifier.
    fn check_purifier(&self) -> Result<()> {
        if self.purifier.is_some() {
            return Ok(());
        }
        ensure!(
            self.lambda == 0.,
            "lambda is {} but there is no purifier to reconstruct images",
            self.lambda
        );
        ensure!(
            self.classifier.len() == 1,
            "{} classifiers are named but no purifier: several are for a purifier that is to serve them all",
            self.classifier.len()
        );
        ensure!(
            self.objective == Objective::CrossEntropy && self.craft_on == CraftOn::Pipeline,
            "objective and craft_on are for purifiers: without one leave them out, or name a purifier"
        );
        Ok(())
    }

    /// What needs an attack.
    fn check_attack(&self) -> Result<()> {
        if self.attack.is_some() {
            ensure!(
                self.augmentation.is_none() || self.craft_on == CraftOn::Pipeline,
                "augmentation is for craft_on = \"pipeline\": on the classifier all examples are crafted once, from the images as they are"
            );
            ensure!(
                self.curriculum.is_empty() || self.craft_on == CraftOn::Pipeline,
                "a curriculum is for craft_on = \"pipeline\": on the classifier all examples are crafted once"
            );
            return Ok(());
        }
        for (name, given) in [
            ("curriculum", !self.curriculum.is_empty()),
            (
                "validation_attack",
                self.validation_attack.is_some() && self.objective != Objective::Own,
            ),
            ("consistency", self.consistency > 0.),
        ] {
            ensure!(
                !given,
                "{name} is given but no attack: name one, such as attack = \"pgd:steps=10\""
            );
        }
        Ok(())
    }

    /// Settings for an objective of the purifier's own; absent where one of the host's trains it.
    pub fn own_settings(&self) -> Option<serde_json::Map<String, serde_json::Value>> {
        (self.objective == Objective::Own).then(|| self.own.clone().unwrap_or_default())
    }

    /// Every attack that crafts training examples at some time.
    pub fn attacks(&self) -> impl Iterator<Item = &str> {
        let staged = self.curriculum.iter().map(|stage| stage.attack.as_str());
        staged.chain(self.attack.as_deref())
    }

    /// The attack of an epoch.
    pub fn attack_of(&self, epoch: usize) -> Option<&str> {
        let mut until = 0;
        let stage = self.curriculum.iter().find(|stage| {
            until = stage.epochs.saturating_add(until);
            epoch < until
        });
        stage.map(|stage| stage.attack.as_str()).or(self.attack.as_deref())
    }

    /// The attack on validation images.
    pub fn validation_attack(&self) -> Option<&str> {
        self.validation_attack.as_deref().or(self.attack.as_deref())
    }

    /// What the optimiser is given beside its usual constants.
    pub fn optimiser_options(&self) -> BTreeMap<String, f64> {
        let options = [
            ("weight_decay", self.weight_decay),
            ("decoupled_weight_decay", self.decoupled_weight_decay),
            ("clip_norm", self.clip_norm),
        ];
        let given = options.into_iter().filter(|(_, value)| *value > 0.);
        given.map(|(name, value)| (name.into(), value)).collect()
    }

    /// Whether training is over before its last epoch. A cosine or a cycle goes to its end: its best weights come last.
    pub fn ends_early(&self, schedule: &Schedule) -> bool {
        self.rate_schedule == RateSchedule::Linear && schedule.exhausted(&self.schedule)
    }

    /// The rate of a step, where it is not left to the plateau rule. `part`: how much of the epoch is done, in 0..1.
    pub fn learning_rate_at(&self, epoch: usize, part: f64) -> Option<f64> {
        // Share of the steps in which one cycle rises, and how far below the highest rate it begins.
        const RISE: f64 = 0.3;
        const BEGIN: f64 = 1. / 25.;
        let (top, end) = (self.learning_rate, self.final_learning_rate);
        let done = (epoch as f64 + part) / self.epochs.max(1) as f64;
        let bend =
            |from: f64, to: f64, share: f64| from + (to - from) * (1. - (std::f64::consts::PI * share).cos()) / 2.;
        match self.rate_schedule {
            RateSchedule::Linear => {}
            RateSchedule::Cosine => return Some(bend(top, end, done)),
            RateSchedule::OneCycle if done < RISE => return Some(bend(top * BEGIN, top, done / RISE)),
            RateSchedule::OneCycle => return Some(bend(top, end, (done - RISE) / (1. - RISE))),
        }
        let share = epoch as f64 / self.epochs.saturating_sub(1).max(1) as f64;
        (self.final_learning_rate > 0.)
            .then_some(self.learning_rate + share * (self.final_learning_rate - self.learning_rate))
    }

    /// Share of the attack's radius at a step: a linear ramp from the start of training.
    pub fn ramp(&self, step: u64) -> f64 {
        match self.epsilon_ramp_steps {
            0 => 1.,
            ramp => (step as f64 / ramp as f64).min(1.),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_radius_grows_linearly_and_stays() {
        let recipe = Recipe {
            epsilon_ramp_steps: 100,
            ..Recipe::default()
        };
        assert_eq!([recipe.ramp(0), recipe.ramp(50), recipe.ramp(500)], [0., 0.5, 1.]);
        assert_eq!(Recipe::default().ramp(0), 1.);
    }

    #[test]
    fn the_rate_falls_linearly_to_the_last_epoch() {
        let recipe = Recipe {
            epochs: 3,
            learning_rate: 3.,
            final_learning_rate: 1.,
            ..Recipe::default()
        };
        assert_eq!(
            [0, 1, 2].map(|epoch| recipe.learning_rate_at(epoch, 0.5)),
            [Some(3.), Some(2.), Some(1.)]
        );
        assert_eq!(Recipe::default().learning_rate_at(1, 0.), None);
    }

    #[test]
    fn cosine_and_one_cycle_bend_from_step_to_step() {
        let rates = |rate_schedule, places: [(usize, f64); 4]| {
            let recipe = Recipe {
                epochs: 10,
                learning_rate: 1.,
                final_learning_rate: 0.1,
                rate_schedule,
                ..Recipe::default()
            };
            places.map(|(epoch, part)| recipe.learning_rate_at(epoch, part).unwrap())
        };
        let near = |a: [f64; 4], b: [f64; 4]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        let cosine = rates(RateSchedule::Cosine, [(0, 0.), (2, 0.5), (5, 0.), (10, 0.)]);
        assert!(
            near(cosine, [1., 0.1 + 0.9 * (1. + 0.5f64.sqrt()) / 2., 0.55, 0.1]),
            "{cosine:?}"
        );
        let cycle = rates(RateSchedule::OneCycle, [(0, 0.), (1, 0.5), (3, 0.), (6, 0.5)]);
        assert!(near(cycle, [0.04, 0.52, 1., 0.55]), "{cycle:?}");
    }

    #[test]
    fn a_cycle_goes_to_its_end_where_the_plateau_rule_would_stop() {
        let mut schedule = Schedule::new(1.);
        let rules = Rules::default();
        for epoch in 0..12 {
            schedule.observe(epoch, 1., &rules);
        }
        let recipe = |rate_schedule| Recipe {
            rate_schedule,
            ..Recipe::default()
        };
        assert!(recipe(RateSchedule::Linear).ends_early(&schedule));
        assert!(!recipe(RateSchedule::OneCycle).ends_early(&schedule));
    }

    #[test]
    fn the_optimiser_is_told_what_is_not_zero() {
        assert!(Recipe::default().optimiser_options().is_empty());
        let recipe: Recipe = toml::from_str("weight_decay = 1e-4\nclip_norm = 5").unwrap();
        let options = recipe.optimiser_options();
        assert_eq!(
            options.into_iter().collect::<Vec<_>>(),
            [("clip_norm".into(), 5.), ("weight_decay".into(), 1e-4)]
        );
    }

    #[test]
    fn unknown_keys_and_values_without_sense_are_refused() {
        let error = toml::from_str::<Recipe>("batchsize = 3").unwrap_err().to_string();
        assert!(error.contains("batchsize") && error.contains("batch_size"), "{error}");
        let recipe = Recipe {
            classifier: vec!["x".into()],
            lambda: 1.,
            ..Recipe::default()
        };
        assert!(recipe.check().unwrap_err().to_string().contains("lambda"));
        assert!(
            Recipe::default()
                .check()
                .unwrap_err()
                .to_string()
                .contains("--classifier")
        );
    }

    #[test]
    fn the_first_epochs_have_attacks_of_their_own() {
        let stage = |epochs, attack: &str| Stage {
            epochs,
            attack: attack.into(),
        };
        let recipe = Recipe {
            attack: Some("last".into()),
            curriculum: vec![stage(2, "first"), stage(1, "second")],
            ..Recipe::default()
        };
        let attacks: Vec<_> = (0..5).map(|epoch| recipe.attack_of(epoch).unwrap()).collect();
        assert_eq!(attacks, ["first", "first", "second", "last", "last"]);
        assert_eq!(recipe.validation_attack(), Some("last"));
    }

    #[test]
    fn what_lacks_its_counterpart_is_refused() {
        let several = "classifier = ['x', 'a']\nattack = 'pgd'";
        let refused = |text: &str| toml::from_str::<Recipe>(text).unwrap().check().unwrap_err().to_string();
        assert!(refused(several).contains("2 classifiers"));
        assert!(refused("classifier = 'x'\nobjective = 'logits'").contains("objective"));
        assert!(refused("classifier = 'x'\nconsistency = 1.0").contains("no attack"));
        assert!(
            toml::from_str::<Recipe>(&format!("{several}\npurifier = 'p'"))
                .unwrap()
                .check()
                .is_ok()
        );
    }

    #[test]
    fn only_more_epochs_resume_a_run() {
        let started = Recipe {
            classifier: vec!["x".into()],
            epochs: 10,
            ..Recipe::default()
        };
        let text = started.to_toml().unwrap();
        let resumes = |change: fn(&mut Recipe)| {
            let mut recipe = started.clone();
            change(&mut recipe);
            recipe.check_resumes(&text).map_err(|error| error.to_string())
        };
        assert_eq!((resumes(|_| {}), resumes(|r| r.epochs = 20)), (Ok(()), Ok(())));
        let error = resumes(|r| r.epochs = 5).unwrap_err();
        assert!(error.contains("epochs is 5, the run was started with 10"), "{error}");
        let error = resumes(|r| (r.learning_rate, r.attack) = (0.5, Some("pgd".into()))).unwrap_err();
        assert!(error.contains("another recipe"), "{error}");
        assert!(
            error.contains("learning_rate is 0.5, it was started with 0.001"),
            "{error}"
        );
        assert!(
            error.contains("attack is \"pgd\", it was started with absent"),
            "{error}"
        );
        let falling = Recipe {
            final_learning_rate: 1e-5,
            ..started.clone()
        };
        let longer = Recipe {
            epochs: 20,
            ..falling.clone()
        };
        let error = longer
            .check_resumes(&falling.to_toml().unwrap())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("final_learning_rate") && error.contains("give 10"),
            "{error}"
        );
    }

    #[test]
    fn epsilon_may_be_a_fraction_and_keys_may_be_kebab_case() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.toml");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Recipe::read(&path).map_err(|error| format!("{error:#}"))
        };
        let recipe = read("epsilon = \"8/255\"\nbatch-size = 3\n[schedule]\nearly-stop = 7").unwrap();
        assert_eq!(recipe.epsilon, Some(8. / 255.));
        assert_eq!((recipe.batch_size, recipe.schedule.early_stop), (3, 7));
        assert_eq!(read("epsilon = 1").unwrap().epsilon, Some(1.));
        let error = read("seed = 1\nepsilon = \"8/x\"").unwrap_err();
        assert!(
            error.contains("line 2, key 'epsilon'") && error.contains("8/255"),
            "{error}"
        );
        let error = read("epsilon = true").unwrap_err();
        assert!(error.contains("line 1, key 'epsilon': expected a number"), "{error}");
    }

    #[test]
    fn values_that_would_end_in_nothing_are_refused() {
        let refused = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe {
                classifier: vec!["x".into()],
                ..Recipe::default()
            };
            change(&mut recipe);
            recipe.check().unwrap_err().to_string()
        };
        assert!(refused(|r| r.schedule.early_stop = 0).contains("early_stop is 0"));
        assert!(refused(|r| r.schedule.patience = 0).contains("patience is 0"));
        assert!(refused(|r| r.schedule.factor = f64::NAN).contains("factor is NaN"));
        assert!(refused(|r| r.schedule.floor = -1.).contains("floor is -1"));
        assert!(refused(|r| r.final_learning_rate = -1.).contains("final_learning_rate is -1"));
    }

    #[test]
    fn a_recipe_survives_being_written() {
        let recipe = Recipe {
            classifier: vec!["x".into()],
            attack: Some("pgd".into()),
            ..Recipe::default()
        };
        let again: Recipe = toml::from_str(&toml::to_string(&recipe).unwrap()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{recipe:?}"));
    }
}
