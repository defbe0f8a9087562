//! What is audited: a defence, its samples, and the attack that the claim rests on.

use crate::experiment::{
    Backward, Batch, Ids, Layout, Limits, LoadedModel, Purpose, Scorer, Settings, for_each_batch, load_model, samples,
};
use crate::plugin::{Plugin, PluginSpec};
use crate::terminal::cancel::Cancel;
use crate::terminal::progress::Ticker;
use crate::wire::attack::Attack;
use crate::wire::oracle::{Meter, Rules, Watch, everything};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::Call;
use crate::wire::threat::ThreatModel;
use advae_abi::info::{Kind, NormKind, Target, WeightSource};
use advae_data::Dataset;
use anyhow::{Result, anyhow, ensure};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The attack that a claim rests on where it names none: steps that adapt, and nothing to choose.
pub const DEFAULT_ATTACK: &str = "apgd";

/// A stated robust accuracy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// Share of the samples that are said to be classified correctly under attack.
    pub robust: f64,
    /// Norm of the budget.
    pub norm: NormKind,
    /// Budget.
    pub epsilon: f64,
    /// The attack it rests on, as `--attack` takes it.
    pub attack: String,
    /// The threat model it rests on.
    pub threat_model: String,
    /// By how much the strongest attack may lower it.
    pub tolerance: f64,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Whether it is less than a full audit.
    pub quick: bool,
    /// Samples that single questions are asked about.
    pub few: usize,
    /// Random directions a sample.
    pub directions: usize,
    /// Points inside the ball, in the binarisation test.
    pub inner: usize,
    /// Samples of the binarisation test.
    pub binarised: usize,
    /// Draws that gradients are averaged over at the most, where they are random.
    pub draws: u64,
}

impl Extent {
    /// Of a full audit.
    pub const FULL: Self = Self {
        quick: false,
        few: 128,
        directions: 100,
        inner: 999,
        binarised: 64,
        draws: 128,
    };
    /// Of a quick one.
    pub const QUICK: Self = Self {
        quick: true,
        few: 32,
        directions: 16,
        inner: 99,
        binarised: 12,
        draws: 16,
    };
}

/// What is audited.
pub struct Subject<'a> {
    /// What is claimed.
    pub claim: &'a Claim,
    /// One classifier, one purifier or `none`, samples and seed.
    pub settings: Settings,
    /// Whom the claimed threat model lets an attacker attack.
    pub target: Target,
    /// How much is measured.
    pub extent: Extent,
    /// Classifier.
    pub classifier: LoadedModel,
    /// Purifier.
    pub purifier: Option<LoadedModel>,
    /// Both.
    pub pipeline: Pipeline,
    /// Samples.
    pub dataset: Dataset,
    /// Their ids as plugins see them.
    pub ids: Ids,
    /// The claimed attack, without a budget.
    pub attack: PluginSpec,
    /// The name that its plugin gives itself, however its file was named.
    pub attack_name: String,
    /// Passes that it may need.
    pub passes: u64,
    /// The name that the claimed threat model's plugin gives itself.
    pub threat_name: String,
    /// Stops the audit.
    pub cancel: &'a Cancel,
}

/// What became of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Searched {
    /// Whether its clean image is classified correctly.
    pub clean: bool,
    /// Whether what the attack returned is.
    pub robust: bool,
    /// Whether what it returned fools the model that was attacked.
    pub fools: bool,
}

/// An attack to be tried.
pub struct Search<'a> {
    /// Attack.
    pub attack: &'a Attack,
    /// Budget.
    pub limits: Limits,
    /// Whom the oracle answers for.
    pub attacked: &'a Pipeline,
    /// Who scores.
    pub scored: &'a Pipeline,
    /// Positions of the samples.
    pub samples: &'a [usize],
    /// Their labels, by position, where they are not the dataset's.
    pub labels: Option<&'a BTreeMap<usize, u32>>,
    /// Whether the attack may leave a sample alone once it is fooled: sound where the attacked model is the scored one, and not random.
    pub early_stop: bool,
    /// Who looks on.
    pub watch: Option<Arc<dyn Watch>>,
}

impl<'a> Subject<'a> {
    /// Loads everything.
    ///
    /// # Errors
    /// The first thing that does not load or fit.
    pub fn load(claim: &'a Claim, settings: &Settings, extent: Extent, cancel: &'a Cancel) -> Result<Self> {
        let threat = PluginSpec::parse(&claim.threat_model)?;
        let plugin = Plugin::find(&threat.name, Kind::ThreatModel)?;
        let target = ThreatModel::construct(&plugin, threat.config)?.access().target;
        let settings = Settings {
            // One set of samples, whichever threat model a cell has.
            keep_seeds_out: target == Target::Substitute,
            ..settings.clone()
        };
        let [classifier] = &settings.classifiers[..] else {
            return Err(anyhow!("an audit is of one classifier: give --classifier once"));
        };
        let [purifier] = &settings.purifiers[..] else {
            return Err(anyhow!("an audit is of one purifier: give --purifier once, or none"));
        };
        let classifier = load_model(classifier, Kind::Classifier, &settings.device, None)?;
        let purifier = match purifier.as_str() {
            "none" => None,
            purifier => {
                let rule = match settings.backward {
                    Some(Backward::One(rule)) => Some(rule),
                    _ => None,
                };
                Some(load_model(purifier, Kind::Purifier, &settings.device, rule)?)
            }
        };
        let pipeline = Pipeline::new(purifier.as_ref().map(|p| p.model.clone()), classifier.model.clone());
        pipeline.check()?;
        let (dataset, sha256) = samples(&settings, &classifier)?;
        ensure!(
            !dataset.is_empty(),
            "'{}' holds no images: give another --dataset",
            dataset.name
        );
        let attack = with_norm(PluginSpec::parse(&claim.attack)?, claim.norm)?;
        ensure!(
            !attack.config.contains_key("epsilon"),
            "--attack {attack} names a budget of its own: the claim's is --epsilon {}",
            claim.epsilon
        );
        let mut subject = Self {
            attack_name: Plugin::find(&attack.name, Kind::Attack)?.manifest.name,
            passes: 0,
            threat_name: plugin.manifest.name,
            ids: Ids::new(&sha256, settings.seed),
            claim,
            settings,
            target,
            extent,
            classifier,
            purifier,
            pipeline,
            dataset,
            attack,
            cancel,
        };
        // Told before anything is measured.
        subject.passes = subject.claimed(subject.claim.epsilon)?.0.info().passes;
        Ok(subject)
    }

    /// The claimed attack within another budget.
    ///
    /// # Errors
    /// Where it does not load, refuses its settings, or has no budget.
    pub fn claimed(&self, epsilon: f64) -> Result<(Attack, Limits)> {
        self.construct(&self.attack, epsilon)
    }

    /// An attack within a budget.
    ///
    /// # Errors
    /// As for [`claimed`](Self::claimed).
    pub fn construct(&self, spec: &PluginSpec, epsilon: f64) -> Result<(Attack, Limits)> {
        let plugin = Plugin::find(&spec.name, Kind::Attack)?;
        let mut config = spec.config.clone();
        ensure!(
            plugin
                .description
                .settings
                .iter()
                .any(|setting| setting.name == "epsilon"),
            "attack '{}' takes no budget, and the claim is about one: name an attack within a ball, such as {DEFAULT_ATTACK} or pgd",
            spec.name
        );
        config.insert("epsilon".into(), epsilon.into());
        let attack = Attack::construct(&plugin, config)?;
        ensure!(
            attack.info().norm == self.claim.norm,
            "attack '{spec}' is of the norm {}, the claim of {}",
            attack.info().norm,
            self.claim.norm
        );
        let limits = Limits {
            bounds: [0., 1.],
            norm: self.claim.norm,
            epsilon: Some(epsilon),
        };
        Ok((attack, limits))
    }

    /// An attack's setting as it was given, else the plugin's default; none where it has no such setting.
    pub fn setting(&self, spec: &PluginSpec, name: &str) -> Option<Value> {
        let plugin = Plugin::find(&spec.name, Kind::Attack).ok()?;
        let known = plugin
            .description
            .settings
            .iter()
            .find(|setting| setting.name == name)?;
        Some(spec.config.get(name).unwrap_or(&known.default).clone())
    }

    /// Whether an attack has a setting of that name.
    pub fn has_setting(&self, spec: &PluginSpec, name: &str) -> bool {
        self.setting(spec, name).is_some()
    }

    /// The claimed attack with another value of a setting; none where it has no such setting.
    pub fn varied(&self, settings: &[(&str, Value)]) -> Option<PluginSpec> {
        if settings.iter().any(|(name, _)| !self.has_setting(&self.attack, name)) {
            return None;
        }
        let mut config = self.attack.config.clone();
        config.extend(settings.iter().map(|(name, value)| ((*name).into(), value.clone())));
        Some(PluginSpec::new(&self.attack.name, WeightSource::Default, config))
    }

    /// The claimed attack for models of two classes, of which losses with a third largest logit know nothing.
    pub fn for_two_classes(&self) -> PluginSpec {
        let loss = self.setting(&self.attack, "loss");
        let loss = loss.as_ref().and_then(Value::as_str).unwrap_or("ce");
        let needs_more = loss.starts_with("dlr");
        let ce = needs_more.then(|| self.varied(&[("loss", "ce".into())])).flatten();
        ce.unwrap_or_else(|| self.attack.clone())
    }

    /// Positions of the first samples, `n` at the most.
    pub fn first(&self, n: usize) -> Vec<usize> {
        (0..self.dataset.len().min(n)).collect()
    }

    /// Samples as plugins see them.
    pub fn batch(&self, samples: &[usize]) -> Batch {
        Batch::of(&self.dataset, &self.ids, samples)
    }

    /// Ids under which an attacker sees samples.
    pub fn crafting_ids(&self, batch: &Batch) -> Vec<u64> {
        self.ids.all(Purpose::Craft, &batch.ids)
    }

    /// How work is spread.
    pub fn layout(&self) -> Layout {
        Layout::of(self.pipeline.models(), self.settings.threads, self.settings.batch)
    }

    /// Amplitude a pixel of uniform noise of that share of the budget: within the Linf ball, about as long as the L2 one.
    pub fn amplitude(&self, share: f64) -> f32 {
        let epsilon = share * self.claim.epsilon;
        match self.claim.norm {
            NormKind::Linf => epsilon as f32,
            NormKind::L2 => (epsilon * (3. / self.dataset.image_len() as f64).sqrt()) as f32,
        }
    }

    /// A budget with which every image reaches every other.
    pub fn farthest(&self) -> f64 {
        match self.claim.norm {
            NormKind::Linf => 1.,
            NormKind::L2 => (self.dataset.image_len() as f64).sqrt(),
        }
    }

    /// Seed of everything.
    pub fn seed(&self) -> u64 {
        self.settings.seed
    }

    /// Who scores, as an evaluation does.
    pub fn scorer(&self, pipeline: &Pipeline, layout: Layout) -> Scorer {
        Scorer {
            pipeline: pipeline.clone(),
            seed: self.seed(),
            draws: if pipeline.random() { self.settings.draws } else { 1 },
            call_threads: layout.call_threads,
        }
    }

    /// Runs an attack and scores what it returns, in the order of the samples.
    ///
    /// # Errors
    /// Where a plugin fails, or the audit is cancelled.
    pub fn search(&self, search: &Search) -> Result<Vec<Searched>> {
        let layout = self.layout();
        let found = Mutex::new(BTreeMap::new());
        for_each_batch(layout, search.samples, |samples| {
            self.cancel.check()?;
            let searched = self.search_batch(search, samples, layout)?;
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.extend(samples.iter().copied().zip(searched));
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(search.samples.iter().filter_map(|i| found.get(i).copied()).collect())
    }

    fn search_batch(&self, search: &Search, samples: &[usize], layout: Layout) -> Result<Vec<Searched>> {
        let mut batch = self.batch(samples);
        if let Some(labels) = search.labels {
            batch.y = samples.iter().map(|i| labels[i]).collect();
        }
        let ids = self.crafting_ids(&batch);
        let rules = Rules {
            target: search.attacked.clone(),
            labelled: search.attacked.clone(),
            access: everything(Target::Pipeline),
            seed: self.seed(),
            eot: self.settings.eot,
            early_stop: search.early_stop,
            known_ids: None,
            call_threads: layout.call_threads,
            flags: 0,
            meter: Arc::new(Meter::default()),
            watch: search.watch.clone(),
            cancel: self.cancel.clone(),
        };
        let call = Call::craft(self.seed(), &ids).with_threads(layout.call_threads);
        let (perturbed, state) = search.attack.search(&call, rules, &batch.x, &batch.y, Ticker::silent());
        if let Some(error) = state.first_error() {
            return Err(anyhow!(error).context(format!("attack '{}'", search.attack.name())));
        }
        let perturbed = perturbed?;
        let scorer = self.scorer(search.scored, layout);
        let clean = scorer.classify(&batch)?;
        let rows = scorer.score("", &search.limits, &batch, &clean, &perturbed)?;
        // Images that are refused may be NaN: the clean ones stand for them.
        let mut accepted = batch.x.clone();
        let taken = |i: &usize| rows[*i].refused.is_none() && rows[*i].found != Some(false);
        for i in (0..rows.len()).filter(taken) {
            accepted.set_row(i, perturbed.x_adv.row(i));
        }
        let said = search.attacked.forward(&call, &accepted)?.argmax();
        let searched = rows
            .iter()
            .zip(said)
            .zip(&batch.y)
            .map(|((row, said), label)| Searched {
                clean: row.clean_correct,
                robust: row.robust,
                fools: said != *label,
            });
        Ok(searched.collect())
    }

    /// A command that goes on from here.
    pub fn command(&self, name: &str, more: &str) -> String {
        let mut command = format!("advae-host {name} --classifier {}", self.classifier.named);
        if let Some(purifier) = &self.purifier {
            command += &format!(" --purifier {}", purifier.named);
        }
        if let Some(dataset) = &self.settings.dataset {
            command += &format!(" --dataset {dataset}");
        }
        command += &format!(" --samples {}", self.settings.samples);
        if self.seed() != 0 {
            command += &format!(" --seed {}", self.seed());
        }
        format!("{command} {more}")
    }

    /// `eval` of the defence in the white box, within the claim's budget.
    pub fn eval(&self, more: &str) -> String {
        let budget = format!("--epsilon {}={}", norm_name(self.claim.norm), self.claim.epsilon);
        self.command("eval", &format!("--threat-model white_box {budget} {more}"))
    }
}

/// As `--epsilon` takes it.
pub fn norm_name(norm: NormKind) -> &'static str {
    match norm {
        NormKind::Linf => "linf",
        NormKind::L2 => "l2",
    }
}

/// The attack in that norm, where it has one to choose.
///
/// # Errors
/// Where the plugin is not found.
pub fn with_norm(spec: PluginSpec, norm: NormKind) -> Result<PluginSpec> {
    let plugin = Plugin::find(&spec.name, Kind::Attack)?;
    let chooses = plugin.description.settings.iter().any(|setting| setting.name == "norm");
    if norm == NormKind::Linf || !chooses || spec.config.contains_key("norm") {
        return Ok(spec);
    }
    let mut config = spec.config.clone();
    config.insert("norm".into(), norm_name(norm).into());
    Ok(PluginSpec::new(&spec.name, spec.weights, config))
}
