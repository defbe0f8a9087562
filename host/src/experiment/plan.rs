//! From settings to cells: finds, loads and constructs everything before anything runs.

use super::budgets::{made_plain, within_range};
use super::cells::{Crafting, Group};
use super::load::{LoadedModel, load_model, plugin_config};
use super::score::Limits;
use super::settings::{Backward, Settings};
use super::suite::{StageSpec, preset, stages};
use crate::plugin::{Plugin, PluginSpec, find, path_dirs, scan_dirs};
use crate::results::{CellConfig, CellHeader, Named, PluginConfig, Stage};
use crate::terminal::console;
use crate::wire::attack::Attack;
use crate::wire::pipeline::Pipeline;
use crate::wire::threat::ThreatModel;
use advae_abi::info::{BackwardRule, Kind, Target, WeightSource};
use advae_abi::{CONTRACT_MAJOR, CONTRACT_MINOR};
use advae_data::Dataset;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashSet;
use std::sync::Arc;

/// Weights of an adversarially trained classifier, by the name that sets of them have.
pub const STATIC: &str = "it_adv";

/// Attacks that run where none is named.
const DEFAULT_ATTACKS: [&str; 3] = ["fgsm", "pgd", "cw"];

/// Attacks that ship with the host and run only where they are named: some of them take hours.
const NAMED_ONLY: [&str; 10] = [
    "apgd", "square", "fab", "deepfool", "ddn", "fmn", "mi_fgsm", "spsa", "noise", "transfer",
];

/// Everything a run needs.
pub struct Plan {
    /// The samples that are attacked.
    pub dataset: Dataset,
    /// Hash of the dataset that they are taken from.
    pub dataset_sha256: String,
    /// Images for a black-box attacker, where the dataset has some set aside.
    pub attacker_images: Option<Arc<Dataset>>,
    /// What is crafted once each.
    pub groups: Vec<Group>,
}

impl Plan {
    /// Its cells.
    pub fn headers(&self) -> impl Iterator<Item = &CellHeader> + Clone {
        let cells = self.groups.iter().flat_map(|group| &group.cells);
        cells.map(|(header, _)| header)
    }
}

struct LoadedAttack {
    named: Named,
    config: PluginConfig,
    attack: Attack,
    limits: Limits,
    /// Images that its budget allows to be made plain grey.
    plain: usize,
    /// Where it is a part of a suite.
    part: Option<Part>,
}

/// How an attack runs in a suite.
#[derive(Clone)]
struct Part {
    stage: Stage,
    on_survivors: bool,
    eot: u64,
}

impl From<StageSpec> for Part {
    fn from(of: StageSpec) -> Self {
        Self {
            stage: of.stage,
            on_survivors: of.on_survivors,
            eot: of.eot,
        }
    }
}

struct LoadedThreat {
    named: Named,
    config: PluginConfig,
    threat_model: ThreatModel,
}

/// Loads everything and lays out the cells.
///
/// # Errors
/// The first thing that does not load or fit.
pub fn plan(settings: &Settings) -> Result<Plan> {
    let classifiers = models(settings, &settings.classifiers, Kind::Classifier, None)?;
    let purifiers = purifiers(settings)?;
    let threats = threats(settings, purifiers.iter().any(Option::is_some))?;
    let all = advae_data::load(&dataset_name(settings, &classifiers), settings.data_dir.as_deref())?;
    let attacker_images = all.attacker_images()?.map(Arc::new);
    let black_box = |threat: &LoadedThreat| threat.threat_model.access().target == Target::Substitute;
    let all = match settings.keep_seeds_out || threats.iter().any(black_box) {
        true => without_attacker_images(all)?,
        false => all,
    };
    let (dataset, dataset_sha256) = subset(settings, &all);
    let attacks = attacks(settings, &dataset)?;
    let mut groups = vec![];
    let layout = Layout {
        settings,
        dataset: &dataset,
        dataset_sha256: &dataset_sha256,
        before: None,
        known_draw: false,
    };
    for classifier in &classifiers {
        check_fit(classifier, &dataset)?;
        for threat in &threats {
            for purifiers in shared_crafting(settings, threat, &purifiers) {
                groups.extend(layout.groups(classifier, &purifiers, threat, &attacks)?);
            }
        }
        if settings.baseline {
            for (classifier, threat) in baselines(settings, classifier, &threats)? {
                groups.extend(layout.groups(&classifier, &[None], threat, &attacks)?);
            }
        }
    }
    if settings.known_draw && groups.iter().all(|group| !group.crafting.known_draw) {
        console::say(
            "note: no defence here is random under a threat model that attacks it whole: --known-draw adds nothing",
        );
    }
    let groups = once_each(groups);
    let (groups, dataset) = match settings.shard {
        Some(shard) => shard.cut(groups, dataset),
        None => (groups, dataset),
    };
    Ok(Plan {
        groups,
        attacker_images,
        dataset,
        dataset_sha256,
    })
}

/// The samples that are attacked, and the hash of the dataset that they are taken from, where no threat model keeps images for itself.
///
/// # Errors
/// Where the dataset is not found, or does not fit the classifier.
pub fn samples(settings: &Settings, classifier: &LoadedModel) -> Result<(Dataset, String)> {
    let name = dataset_name(settings, std::slice::from_ref(classifier));
    let mut all = advae_data::load(&name, settings.data_dir.as_deref())?;
    if settings.keep_seeds_out {
        all = all.without_attacker_images()?;
    }
    check_fit(classifier, &all)?;
    Ok(subset(settings, &all))
}

/// As many samples as are asked for, and the hash of them all. Fewer are told.
fn subset(settings: &Settings, all: &Dataset) -> (Dataset, String) {
    if settings.samples > all.len() {
        console::say(&format!(
            "warning: '{}' holds {} images: all of them are taken, not {}",
            all.name,
            all.len(),
            settings.samples
        ));
    }
    (all.random_subset(settings.samples, settings.seed), all.sha256())
}

/// The dataset that was named, else the embedded sample that the first classifier takes.
fn dataset_name(settings: &Settings, classifiers: &[LoadedModel]) -> String {
    let input = classifiers.first().and_then(|classifier| classifier.model.info().input);
    let sample = input.and_then(advae_data::sample_for);
    let default = || sample.map_or(advae_data::DEFAULT, |set| set.name).into();
    settings.dataset.clone().unwrap_or_else(default)
}

/// Without the images that a black-box attacker may begin with.
fn without_attacker_images(all: Dataset) -> Result<Dataset> {
    let kept = all.without_attacker_images()?;
    if kept.len() < all.len() {
        console::say(&format!(
            "note: {} images are the black-box attacker's seeds and are not scored: {} remain",
            all.len() - kept.len(),
            kept.len()
        ));
    }
    Ok(kept)
}

fn models(settings: &Settings, specs: &[String], kind: Kind, rule: Option<BackwardRule>) -> Result<Vec<LoadedModel>> {
    specs
        .iter()
        .map(|spec| load_model(spec, kind, &settings.device, rule))
        .collect()
}

fn purifiers(settings: &Settings) -> Result<Vec<Option<LoadedModel>>> {
    let mut all = vec![];
    for spec in &settings.purifiers {
        let load = |rule| load_model(spec, Kind::Purifier, &settings.device, rule);
        match (spec.as_str(), settings.backward) {
            ("none", _) => all.push(None),
            (_, Some(Backward::One(rule))) => all.push(Some(load(Some(rule))?)),
            (_, None) => all.push(Some(load(None)?)),
            (_, Some(Backward::All)) => {
                let own = load(None)?;
                let mut rules = own.model.info().backward_rules.clone();
                rules.push(BackwardRule::Identity);
                let own_rule = rules[0];
                let mut seen = vec![own_rule, BackwardRule::None];
                rules.retain(|rule| {
                    let new = !seen.contains(rule);
                    seen.push(*rule);
                    new
                });
                if rules.is_empty() {
                    let (label, rule) = (&own.label, own_rule.name());
                    console::say(&format!(
                        "note: '{label}' has the backward rule {rule} and no other: --backward all adds nothing"
                    ));
                }
                all.push(Some(own));
                for rule in rules {
                    all.push(Some(load(Some(rule))?));
                }
            }
        }
    }
    Ok(all)
}

fn threats(settings: &Settings, defended: bool) -> Result<Vec<LoadedThreat>> {
    let default: &[&str] = if defended {
        &["white_box", "oblivious"]
    } else {
        &["white_box"]
    };
    let default = default.iter().map(|name| name.to_string()).collect();
    let specs = if settings.threat_models.is_empty() {
        default
    } else {
        settings.threat_models.clone()
    };
    let load = |text: &String| {
        let spec = PluginSpec::parse(text)?;
        let plugin = Plugin::find(&spec.name, Kind::ThreatModel)?;
        let threat_model = ThreatModel::construct(&plugin, spec.config.clone())?;
        Ok(LoadedThreat {
            named: Named::from(&spec),
            config: plugin_config(&plugin, &spec)?,
            threat_model,
        })
    };
    specs.iter().map(load).collect()
}

fn attacks(settings: &Settings, dataset: &Dataset) -> Result<Vec<LoadedAttack>> {
    if !settings.attacks.is_empty() {
        let named = settings
            .attacks
            .iter()
            .map(|text| named_attacks(settings, dataset, &preset(PluginSpec::parse(text)?)));
        return Ok(named.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect());
    }
    let present = DEFAULT_ATTACKS
        .iter()
        .filter(|name| find(name).is_ok_and(|path| path.is_file()));
    let mut attacks = vec![];
    for name in present {
        attacks.extend(named_attacks(settings, dataset, &PluginSpec::named(name))?);
    }
    for found in scan_dirs(&path_dirs()) {
        let Ok(inspected) = found.inspected else { continue };
        let known = attacks.iter().any(|a| a.config.name == inspected.manifest.name);
        let name = inspected.manifest.name.as_str();
        if inspected.manifest.kind != Kind::Attack || known || NAMED_ONLY.contains(&name) {
            continue;
        }
        let spec = PluginSpec::named(&found.path.to_string_lossy());
        match named_attacks(settings, dataset, &spec) {
            Ok(of_spec) => attacks.extend(of_spec),
            // Nobody asked for this one: it must not keep the others from running.
            Err(error) => console::say(&format!("left out '{}': {error:#}", found.path.display())),
        }
    }
    ensure!(
        !attacks.is_empty(),
        "no attack was found: give --attack, or set ADVAE_PLUGIN_PATH to a folder with some"
    );
    Ok(attacks)
}

/// An attack, or the stages of a suite: once for each budget that is asked for.
fn named_attacks(settings: &Settings, dataset: &Dataset, spec: &PluginSpec) -> Result<Vec<LoadedAttack>> {
    let parts: Vec<(PluginSpec, Option<Part>)> = match stages(spec, dataset.classes)? {
        None => vec![(spec.clone(), None)],
        Some(stages) => stages
            .into_iter()
            .map(|of| (of.spec.clone(), Some(Part::from(of))))
            .collect(),
    };
    let mut by_part = vec![];
    for (part_spec, part) in parts {
        let loaded = load_attacks(settings, dataset, &part_spec);
        let loaded = match &part {
            Some(part) => loaded.with_context(|| format!("a stage of '{}'", part.stage.suite)),
            None => loaded,
        };
        by_part.push(loaded?.into_iter().map(move |attack| LoadedAttack {
            part: part.clone(),
            ..attack
        }));
    }
    // Budget after budget: the stages of a suite follow one another.
    let mut attacks = vec![];
    while let Some(of_budget) = by_part.iter_mut().map(Iterator::next).collect::<Option<Vec<_>>>() {
        attacks.extend(of_budget);
    }
    Ok(attacks)
}

/// An attack, once for each budget.
fn load_attacks(settings: &Settings, dataset: &Dataset, spec: &PluginSpec) -> Result<Vec<LoadedAttack>> {
    let plugin = Plugin::find(&spec.name, Kind::Attack)?;
    let attack = Attack::construct_for(&plugin, spec.config.clone(), &settings.device)?;
    let takes_epsilon = plugin.description.settings.iter().any(|s| s.name == "epsilon");
    if !takes_epsilon || spec.config.contains_key("epsilon") {
        let given = spec.config.get("epsilon").and_then(|v| v.as_f64());
        return Ok(vec![loaded(&plugin, spec, spec, attack, given, dataset)?]);
    }
    let budgets = settings.budgets.resolve(attack.info().norm, dataset.conventions())?;
    let within = |epsilon: f64| {
        let mut filled = spec.clone();
        filled.config.insert("epsilon".into(), epsilon.into());
        let attack = Attack::construct_for(&plugin, filled.config.clone(), &settings.device)?;
        loaded(&plugin, spec, &filled, attack, Some(epsilon), dataset)
    };
    budgets.into_iter().map(within).collect()
}

/// An attack as it is named, and as it is constructed: `filled`, within `epsilon`.
fn loaded(
    plugin: &Plugin,
    spec: &PluginSpec,
    filled: &PluginSpec,
    attack: Attack,
    epsilon: Option<f64>,
    dataset: &Dataset,
) -> Result<LoadedAttack> {
    let norm = attack.info().norm;
    let epsilon = epsilon
        .or(attack.info().epsilon)
        .map(|e| within_range(norm, e).with_context(|| format!("attack '{}'", spec.label())))
        .transpose()?;
    let limits = Limits {
        bounds: [0., 1.],
        norm,
        epsilon,
    };
    let images = (0..dataset.len()).map(|i| dataset.image(i));
    Ok(LoadedAttack {
        named: Named::from(spec),
        config: plugin_config(plugin, filled)?,
        attack,
        limits,
        plain: epsilon.map_or(0, |epsilon| made_plain(images, norm, epsilon)),
        part: None,
    })
}

fn check_fit(classifier: &LoadedModel, dataset: &Dataset) -> Result<()> {
    let info = classifier.model.info();
    ensure!(
        dataset.fits(info.input, info.classes),
        "classifier '{}' takes images {:?} of {} classes, dataset '{}' has {:?} of {}: choose two that fit",
        classifier.label,
        info.input.unwrap_or_default(),
        info.classes.unwrap_or_default(),
        dataset.name,
        dataset.shape,
        dataset.classes
    );
    Ok(())
}

/// Purifiers whose cells share their crafting: all of them where only the classifier is attacked.
fn shared_crafting<'a>(
    settings: &Settings,
    threat: &LoadedThreat,
    purifiers: &'a [Option<LoadedModel>],
) -> Vec<Vec<Option<&'a LoadedModel>>> {
    let target = threat.threat_model.access().target;
    // Where the purifier's gradient is not asked for, its backward rule changes nothing.
    let own = |purifier: &Option<&LoadedModel>| {
        settings.backward != Some(Backward::All)
            || target == Target::Pipeline
            || purifier.is_none_or(|purifier| purifier.config.backward.is_none())
    };
    let all = purifiers.iter().map(Option::as_ref).filter(own);
    if target != Target::Classifier {
        return all.map(|purifier| vec![purifier]).collect();
    }
    // Without a purifier the attack on the classifier alone is the white-box one: it runs only where it is asked for.
    let asked = !settings.threat_models.is_empty();
    vec![all.filter(|purifier| asked || purifier.is_some()).collect()]
}

struct Layout<'a> {
    settings: &'a Settings,
    dataset: &'a Dataset,
    dataset_sha256: &'a str,
    /// Key of the group's cell before.
    before: Option<String>,
    /// Whether the attacker knows the draw that scores.
    known_draw: bool,
}

/// The classifier with its weights of adversarial training; none where it has no such set, or is that one.
pub fn adversarially_trained(classifier: &LoadedModel) -> Option<PluginSpec> {
    let sets = &classifier.plugin.manifest.weight_sets;
    let another = sets.iter().any(|set| set == STATIC) && classifier.named.weights.as_deref() != Some(STATIC);
    another.then(|| {
        PluginSpec::new(
            &classifier.named.plugin,
            WeightSource::Set(STATIC.into()),
            classifier.config.plugin.config.clone(),
        )
    })
}

/// What a defence of the classifier has to beat: the classifier as it is, and adversarially trained where it has such weights, each under
/// the first threat model that attacks it whole.
fn baselines<'t>(
    settings: &Settings,
    classifier: &LoadedModel,
    threats: &'t [LoadedThreat],
) -> Result<Vec<(LoadedModel, &'t LoadedThreat)>> {
    let whole = |threat: &&LoadedThreat| threat.threat_model.access().target == Target::Pipeline;
    let Some(threat) = threats.iter().find(whole) else {
        console::say("note: no threat model of this run attacks a classifier whole: --baseline adds nothing");
        return Ok(vec![]);
    };
    let mut all = vec![(classifier.clone(), threat)];
    if let Some(trained) = adversarially_trained(classifier) {
        let model = load_model(&trained.to_string(), Kind::Classifier, &settings.device, None)?;
        all.push((model, threat));
    }
    Ok(all)
}

impl Layout<'_> {
    /// The groups of all attacks on one defence, or on several that share their crafting.
    fn groups(
        &self,
        classifier: &LoadedModel,
        purifiers: &[Option<&LoadedModel>],
        threat: &LoadedThreat,
        attacks: &[LoadedAttack],
    ) -> Result<Vec<Group>> {
        let mut groups = vec![];
        // The cell before, for a stage that goes on with what it leaves standing.
        let mut before = None;
        for attack in attacks {
            let mut layout = Layout {
                before: before.take(),
                ..*self
            };
            let group = layout.group(classifier, purifiers, threat, attack)?;
            before = group.cells.first().map(|(header, _)| header.key.clone());
            let random = group.cells.iter().any(|(_, pipeline)| pipeline.random());
            groups.push(group);
            if self.settings.known_draw && random && threat.threat_model.access().target == Target::Pipeline {
                layout.known_draw = true;
                groups.push(layout.group(classifier, purifiers, threat, attack)?);
            }
        }
        Ok(groups)
    }

    /// The attack's place in its suite. Survivors are those of the scored defence: where another model is attacked, all samples are.
    fn stage(&self, attack: &LoadedAttack, target: Target) -> Option<Stage> {
        let part = attack.part.as_ref()?;
        let staged = part.on_survivors && target == Target::Pipeline && part.stage.number > 1;
        Some(Stage {
            after: self.before.clone().filter(|_| staged),
            ..part.stage.clone()
        })
    }

    fn group(
        &self,
        classifier: &LoadedModel,
        purifiers: &[Option<&LoadedModel>],
        threat: &LoadedThreat,
        attack: &LoadedAttack,
    ) -> Result<Group> {
        let access = threat.threat_model.access().clone();
        let mut cells = vec![];
        for purifier in purifiers {
            let purifier_model = purifier.map(|p| p.model.clone());
            let pipeline = Pipeline::new(purifier_model, classifier.model.clone());
            pipeline.check()?;
            refuse_staging(attack, access.target, &pipeline)?;
            cells.push((self.header(classifier, *purifier, threat, attack, &pipeline), pipeline));
        }
        Ok(Group {
            crafting: Crafting {
                classifier: classifier.clone(),
                threat_model: threat.threat_model.clone(),
                access,
                attack: attack.attack.clone(),
                limits: attack.limits,
                early_stop: cells.first().is_some_and(|(header, _)| header.config.early_stop),
                eot: cells.first().map_or(1, |(header, _)| header.config.eot),
                known_draw: self.known_draw,
                quantize: self.settings.quantize,
                precision: self.settings.precision,
            },
            cells,
        })
    }

    fn header(
        &self,
        classifier: &LoadedModel,
        purifier: Option<&LoadedModel>,
        threat: &LoadedThreat,
        attack: &LoadedAttack,
        pipeline: &Pipeline,
    ) -> CellHeader {
        let (settings, target) = (self.settings, threat.threat_model.access().target);
        let random_target = match target {
            Target::Pipeline => pipeline.random(),
            Target::Classifier => classifier.model.info().random,
            Target::Substitute => false,
        };
        // Sound only where the oracle is the scored, deterministic pipeline: elsewhere it would stop at the
        // surrogate's boundary and flatter the defence. One that rounds is another.
        let random = pipeline.random() && !self.known_draw;
        let scored_is_attacked = target == Target::Pipeline && !random && settings.precision.is_single();
        let least_eot = attack.part.as_ref().map_or(1, |part| part.eot);
        let config = CellConfig {
            contract: format!("{CONTRACT_MAJOR}.{CONTRACT_MINOR}"),
            classifier: classifier.config.clone(),
            purifier: purifier.map(|p| p.config.clone()),
            threat_model: threat.config.clone(),
            attack: attack.config.clone(),
            norm: attack.limits.norm,
            epsilon: attack.limits.epsilon,
            early_stop: settings.early_stop && scored_is_attacked && !attack.attack.info().targeted,
            dataset: self.dataset.name.clone(),
            dataset_sha256: self.dataset_sha256.into(),
            seed: settings.seed,
            eot: match random_target && !self.known_draw {
                true => settings.eot.max(least_eot),
                false => 1,
            },
            draws: if random { settings.draws } else { 1 },
            images_sha256: None,
            known_draw: self.known_draw,
            quantize: settings.quantize,
            precision: settings.precision,
            stage: self.stage(attack, target),
        };
        CellHeader {
            key: config.key(),
            classifier: classifier.named.clone(),
            purifier: purifier.map(|p| p.named.clone()),
            threat_model: threat.named.clone(),
            attack: attack.named.clone(),
            target: Some(target),
            granted: Some(threat.threat_model.access().into()),
            search: attack.attack.info().into(),
            rule: purifier.map(LoadedModel::rule),
            crafted_on: None,
            samples: self.dataset.len(),
            l2_caps: self.dataset.conventions().l2_caps.to_vec(),
            plain: attack.plain,
            dataset_note: dataset_note(self.dataset),
            note: purifier.map(LoadedModel::note).unwrap_or_default(),
            classifier_note: classifier.note(),
            config,
        }
    }
}

/// What falls to one draw of a random defence has not fallen: its survivors are not a later stage's.
fn refuse_staging(attack: &LoadedAttack, target: Target, pipeline: &Pipeline) -> Result<()> {
    let staged = attack
        .part
        .as_ref()
        .filter(|part| part.on_survivors && target == Target::Pipeline);
    let Some(part) = staged.filter(|_| pipeline.random()) else {
        return Ok(());
    };
    bail!(
        "'{}' attacks only what its earlier stages left standing, and behind a random defence that is what was lucky in one draw: use \
         --attack autoattack:version=rand, which attacks every sample and averages gradients over draws",
        part.stage.suite
    )
}

/// What a reader must know of the images.
fn dataset_note(dataset: &Dataset) -> String {
    match dataset.lossy {
        true => "its images were decoded from JPEG, which is slightly lossy: figures on the original pixels may differ"
            .into(),
        false => String::new(),
    }
}

/// Groups whose cells were not in an earlier one: a cell that was named twice is measured once.
fn once_each(groups: Vec<Group>) -> Vec<Group> {
    let mut seen = HashSet::new();
    let mut twice = vec![];
    let mut once = vec![];
    for mut group in groups {
        group.cells.retain(|(header, _)| {
            let new = seen.insert(header.key.clone());
            if !new {
                twice.push(header.name());
            }
            new
        });
        if !group.cells.is_empty() {
            once.push(group);
        }
    }
    if !twice.is_empty() {
        console::say(&format!("note: named twice, and measured once: {}", twice.join("; ")));
    }
    once
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attack_that_ships_is_run_by_default_or_where_it_is_named() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/attacks");
        let there: HashSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        let known = DEFAULT_ATTACKS.iter().chain(&NAMED_ONLY);
        assert_eq!(there, known.map(ToString::to_string).collect());
    }
}
