//! Figures of a cell, and the worst case over cells, from records alone.

use super::labels::{Labels, NONE, labels};
use super::stats::{max, median, wilson};
use crate::results::{Cell, CellConfig, CellHeader, Row, Rule, Stage, Substitute};
use advae_abi::info::{NormKind, Target};
use serde::{Serialize, Serializer};
use std::collections::BTreeSet;

/// A share of samples with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end of Wilson's interval.
    pub high: f64,
}

impl Share {
    /// Mean of values between 0 and 1; absent where there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let (n, sum) = values.into_iter().fold((0, 0.), |(n, sum), v| (n + 1, sum + v));
        let (low, high) = wilson(sum, n);
        (n > 0).then(|| Self {
            value: sum / n as f64,
            low,
            high,
        })
    }
}

/// Median and largest distance of the images that broke a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        Some(Self {
            median: median(values.clone())?,
            max: max(values)?,
        })
    }
}

/// Accuracy against an attack without a budget, counting only what it broke within a cap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CapAccuracy {
    /// L2 cap.
    pub cap: f64,
    /// Share that is robust within it.
    pub accuracy: Share,
}

/// Robust accuracy of a random pipeline in two other readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DrawSummary {
    /// Scoring draws.
    pub draws: u64,
    /// Share of samples that most draws classify correctly.
    pub majority: f64,
    /// Share of samples that at least one draw misclassifies.
    pub ever_wrong: f64,
}

/// What to do where images are refused.
const REFUSED: &str = "mend the attack, or give the budget that its images keep";

/// Figures of one cell.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Key in the results file.
    pub key: String,
    /// Name in the table.
    pub classifier: String,
    /// Name in the table, `none` without one.
    pub purifier: String,
    /// Name in the table.
    pub threat_model: String,
    /// Name in the table; may be given to `--attack`.
    pub attack: String,
    /// Backward rule of the purifier that the attacker's gradients went by; absent where they did not go through one.
    pub backward: Option<Rule>,
    /// Name of the dataset.
    pub dataset: String,
    /// Seed.
    pub seed: u64,
    /// What the purifier says a reader must know of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What the classifier says a reader must know of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub classifier_note: String,
    /// What a reader must know of the dataset.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dataset_note: String,
    /// Defence that the images were crafted on, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crafted_on: Option<String>,
    /// Norm of the attack.
    pub norm: NormKind,
    /// Budget; absent: none.
    pub epsilon: Option<f64>,
    /// Samples scored.
    pub samples: usize,
    /// Share of clean images that are classified correctly; absent where the cell failed.
    pub clean_accuracy: Option<Share>,
    /// Share of scored images that are classified correctly; absent where the cell failed or every image was refused.
    pub robust_accuracy: Option<Share>,
    /// Samples that were correct and that the attack broke.
    pub broken: usize,
    /// Samples that were correct.
    pub clean_correct: usize,
    /// L2 distances of the broken samples.
    pub l2: Option<Spread>,
    /// Linf distances of the broken samples.
    pub linf: Option<Spread>,
    /// Images that were refused.
    pub refused: usize,
    /// One of the reasons.
    pub refusal: Option<String>,
    /// Accuracy within L2 caps, for an L2 attack without a budget.
    pub caps: Vec<CapAccuracy>,
    /// For a random pipeline.
    pub random: Option<DrawSummary>,
    /// Draws that each gradient is the mean of.
    pub eot: u64,
    /// Label queries.
    pub queries: u64,
    /// Images that the attack asked anything about for each of the broken samples; absent where it asked nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Spread>,
    /// What was attacked in place of the whole model.
    pub substitute: Option<Substitute>,
    /// Share of the input gradients that were zero; absent where the attack asked for none.
    pub zero_gradients: Option<f64>,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Samples a second; absent where no time was measured.
    pub images_per_second: Option<f64>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// Its place in a suite of attacks: what earlier stages broke counts as broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// The record. Written out is what is needed to repeat it: plugins, weights and their hashes, draws.
    #[serde(rename = "config", serialize_with = "config")]
    pub cell: Cell,
}

impl Summary {
    /// What a reader must know of its dataset and models, each under its name.
    pub fn notes(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = [
            (&self.dataset, &self.dataset_note),
            (&self.classifier, &self.classifier_note),
            (&self.purifier, &self.note),
        ];
        let all = all.map(|(name, note)| (name.as_str(), note.as_str()));
        all.into_iter().filter(|(_, note)| !note.is_empty())
    }

    /// Of cells that are shown together.
    pub fn all(cells: &[Cell]) -> Vec<Self> {
        Self::all_of(cells.to_vec())
    }

    /// The same, without a copy of their rows.
    pub fn all_of(cells: Vec<Cell>) -> Vec<Self> {
        let headers: Vec<&CellHeader> = cells.iter().map(|cell| &cell.header).collect();
        let labels = labels(&headers);
        let named = cells.into_iter().zip(labels);
        named.map(|(cell, labels)| Self::of(cell, labels)).collect()
    }

    fn of(cell: Cell, labels: Labels) -> Self {
        let (header, config) = (&cell.header, &cell.header.config);
        let failed = cell.failed.is_some();
        let rows = || cell.rows.values().filter(|_| !failed);
        // Images that were refused are scored as the clean ones. Where there are no others, nothing was attacked.
        let attacked = rows().any(|row| row.refused.is_none());
        let broken = || rows().filter(|row| row.broken());
        let uncapped_l2 = config.epsilon.is_none() && config.norm == NormKind::L2;
        let caps: &[f64] = if uncapped_l2 && attacked { &header.l2_caps } else { &[] };
        let through_a_purifier = header.target == Some(Target::Pipeline) && header.purifier.is_some();
        let (gradients, zeros) = rows().fold((0, 0), |(n, z), row| (n + row.gradients, z + row.zero_gradients));
        let (seconds, samples) = (cell.seconds(), rows().count());
        let own = rows().filter(|row| !row.carried).count();
        let asked: u64 = rows().map(|row| row.queries).sum();
        Self {
            key: header.key.clone(),
            classifier: labels.classifier,
            purifier: labels.purifier,
            threat_model: labels.threat_model,
            attack: attack_label(config, labels.attack),
            backward: header.rule.clone().filter(|_| through_a_purifier),
            dataset: config.dataset.clone(),
            seed: config.seed,
            note: header.note.clone(),
            classifier_note: header.classifier_note.clone(),
            dataset_note: header.dataset_note.clone(),
            crafted_on: header.crafted_on.clone(),
            norm: config.norm,
            epsilon: config.epsilon,
            samples,
            clean_accuracy: Share::of(rows().map(Row::clean_share)),
            robust_accuracy: Share::of(rows().filter(|_| attacked).map(Row::robust_share)),
            broken: broken().count(),
            clean_correct: rows().filter(|row| row.clean_correct).count(),
            l2: Spread::of(broken().filter_map(|row| row.l2)),
            linf: Spread::of(broken().filter_map(|row| row.linf)),
            refused: rows().filter(|row| row.refused.is_some()).count(),
            refusal: rows().find_map(|row| row.refused.clone()),
            caps: caps.iter().filter_map(|cap| within(rows(), *cap)).collect(),
            random: (config.draws > 1 && attacked)
                .then(|| draws(rows(), config.draws))
                .flatten(),
            eot: config.eot,
            queries: asked + cell.substitute.map_or(0, |s| s.queries),
            asked: Spread::of(broken().filter(|row| row.asked > 0).map(|row| row.asked as f64)),
            substitute: cell.substitute,
            zero_gradients: (gradients > 0).then(|| zeros as f64 / gradients as f64),
            seconds,
            images_per_second: (seconds > 0.).then(|| own as f64 / seconds),
            failed: cell.failed.clone(),
            stage: config.stage.clone(),
            cell,
        }
    }

    /// The cell in a sentence.
    pub fn name(&self) -> String {
        format!("{}, {}, {}", self.defence(), self.threat_model, self.attack_and_rule())
    }

    /// `pgd`, and `pgd backward=identity` where that is not the purifier's own rule.
    pub fn attack_and_rule(&self) -> String {
        match &self.backward {
            Some(rule) if rule.offered.first() != Some(&rule.used) => format!("{} backward={}", self.attack, rule.used),
            _ => self.attack.clone(),
        }
    }

    /// `model_x + advae`, or the classifier alone.
    pub fn defence(&self) -> String {
        match self.purifier.as_str() {
            NONE => self.classifier.clone(),
            purifier => format!("{} + {purifier}", self.classifier),
        }
    }

    /// What went wrong: the cell failed, or images were refused.
    pub fn complaint(&self) -> Option<String> {
        let refused = || {
            let (count, reason) = (self.refused, self.refusal.as_ref()?);
            let which = match count == self.samples {
                true => format!("all {count} images refused, so that there is no figure"),
                false => format!("{count} images refused and scored as the clean ones"),
            };
            Some(format!("{which}: {reason}: {REFUSED}"))
        };
        let what = self.failed.clone().or_else(refused)?;
        Some(format!("{}: {what}", self.name()))
    }

    /// Robust accuracy; 0 where there is none.
    pub fn robust(&self) -> f64 {
        self.robust_accuracy.map_or(0., |share| share.value)
    }

    /// Whether the attack differentiates through the scored defence itself.
    pub fn through_the_defence(&self) -> bool {
        self.cell.header.target == Some(Target::Pipeline)
    }

    /// Whether two cells are of one defence under one threat model; the attack and the backward rule may differ.
    pub fn same_defence(&self, other: &Self) -> bool {
        let (a, b) = (&self.cell.header.config, &other.cell.header.config);
        a.same_defence(b) && a.threat_model == b.threat_model
    }

    /// Whether two cells attack by the same means: plugin, settings and budget.
    pub fn same_attack(&self, other: &Self) -> bool {
        let (a, b) = (&self.cell.header.config, &other.cell.header.config);
        a.attack == b.attack && a.same_budget(b) && a.seed == b.seed && a.images_sha256 == b.images_sha256
    }

    /// `Linf 0.3`, or `L2 uncapped`.
    pub fn budget(&self) -> String {
        self.epsilon.map_or_else(
            || format!("{} uncapped", self.norm),
            |epsilon| format!("{} {}", self.norm, short(epsilon)),
        )
    }
}

/// The attack, its place in a suite, and whether the attacker knew the draw.
fn attack_label(config: &CellConfig, own: String) -> String {
    let label = match &config.stage {
        Some(stage) => format!("{} {}/{} {own}", stage.suite, stage.number, stage.of),
        None => own,
    };
    match config.known_draw {
        true => format!("{label}, known draw"),
        false => label,
    }
}

fn config<S: Serializer>(cell: &Cell, serializer: S) -> Result<S::Ok, S::Error> {
    cell.header.config.serialize(serializer)
}

/// A number without a tail of digits: four decimals where that is the number, and all of them where it is not.
pub fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    let eighths = (1..=255).find(|n| f64::from(*n) / 255. == value);
    match eighths {
        Some(n) if text.len() > 4 => format!("{n}/255"),
        _ if text.parse() == Ok(value) => text.into(),
        _ => value.to_string(),
    }
}

fn within<'a>(rows: impl Iterator<Item = &'a Row>, cap: f64) -> Option<CapAccuracy> {
    let robust = |row: &Row| match row.l2 {
        Some(l2) if l2 <= cap => row.robust_share(),
        _ => row.clean_share(),
    };
    Some(CapAccuracy {
        cap,
        accuracy: Share::of(rows.map(robust))?,
    })
}

fn draws<'a>(rows: impl Iterator<Item = &'a Row> + Clone, draws: u64) -> Option<DrawSummary> {
    let mean = |of: fn(&Row) -> bool| Some(Share::of(rows.clone().map(|row| f64::from(u8::from(of(row)))))?.value);
    Some(DrawSummary {
        draws,
        majority: mean(|row| row.robust)?,
        ever_wrong: mean(|row| row.robust_share() < 1.)?,
    })
}

/// Robust accuracy under every attack of one norm and budget, the clean image included. The worst case of an attacker who knows the
/// whole defence also counts the images of attackers who know less of it.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    /// Name in the table.
    pub classifier: String,
    /// Name in the table.
    pub purifier: String,
    /// Name in the table.
    pub threat_model: String,
    /// The attacks, with their backward rule where several were tried, and with their threat model where it is another one.
    pub attacks: Vec<String>,
    /// Norm and budget.
    pub budget: String,
    /// Norm.
    pub norm: NormKind,
    /// Budget.
    pub epsilon: Option<f64>,
    /// Samples that all of them attacked.
    pub samples: usize,
    /// Samples that only some of them attacked: left out.
    pub left_out: usize,
    /// Share of samples that no attack broke; absent where all of them attacked none together.
    pub robust_accuracy: Option<Share>,
    /// Key of the first of the cells.
    #[serde(skip)]
    pub first: String,
}

/// The worst case of every defence, norm and budget. Failed cells and attacks without a budget never enter it.
pub fn worst_cases(cells: &[Summary]) -> Vec<Worst> {
    let enters = |cell: &&Summary| cell.robust_accuracy.is_some() && cell.epsilon.is_some();
    let mut seen = BTreeSet::new();
    let capped: Vec<&Summary> = cells.iter().filter(enters).collect();
    let mut worst = vec![];
    for first in &capped {
        let budget = |cell: &&&Summary| {
            let (a, b) = (&cell.cell.header.config, &first.cell.header.config);
            a.same_budget(b) && a.same_defence(b)
        };
        let (own, others): (Vec<&Summary>, Vec<&Summary>) =
            (capped.iter().filter(budget).copied()).partition(|cell| cell.same_defence(first));
        if own.iter().any(|cell| !seen.insert(&cell.key)) {
            continue;
        }
        let knows_less = |cell: &&Summary| {
            let target = cell.cell.header.target;
            first.through_the_defence() && matches!(target, Some(Target::Classifier | Target::Substitute))
        };
        let less: Vec<&Summary> = others.into_iter().filter(knows_less).collect();
        worst.extend(worst_of(&own, &less));
        // A suite has a figure of its own beside other attacks.
        let suite = |cell: &&Summary| cell.stage.as_ref().map(|stage| stage.suite.clone());
        let suites: BTreeSet<String> = own.iter().filter_map(suite).collect();
        for name in suites {
            let stages: Vec<&Summary> = own
                .iter()
                .filter(|cell| suite(cell).as_ref() == Some(&name))
                .copied()
                .collect();
            if stages.len() < own.len() + less.len() {
                worst.extend(worst_of(&stages, &[]));
            }
        }
    }
    worst
}

/// `own`: under one threat model; `less`: under others that know less.
fn worst_of(own: &[&Summary], less: &[&Summary]) -> Option<Worst> {
    let first = own.first()?;
    let has = |cell: &Summary, id: &u64| cell.cell.rows.contains_key(id);
    let ids: BTreeSet<u64> = own.iter().flat_map(|cell| cell.cell.rows.keys().copied()).collect();
    let common: Vec<u64> = (ids.iter().copied())
        .filter(|id| own.iter().all(|cell| has(cell, id)))
        .collect();
    // What knows less must not cost samples.
    let less = less.iter().filter(|cell| common.iter().all(|id| has(cell, id)));
    let group: Vec<&Summary> = own.iter().chain(less).copied().collect();
    let least = |id: &u64| {
        let rows = group.iter().filter_map(|cell| cell.cell.rows.get(id));
        rows.fold(1., |least: f64, row| {
            least.min(row.clean_share()).min(row.robust_share())
        })
    };
    let several = own.iter().any(|cell| cell.cell.header.rule != first.cell.header.rule);
    let attack = |cell: &Summary| {
        let name = cell.stage.as_ref().map_or(&cell.attack, |stage| &stage.suite);
        match &cell.backward {
            _ if !cell.same_defence(first) => format!("{} {name}", cell.threat_model),
            Some(rule) if several => format!("{name} backward={}", rule.used),
            _ => name.clone(),
        }
    };
    // The stages of a suite are one attack.
    let mut attacks: Vec<String> = vec![];
    for name in group.iter().map(|cell| attack(cell)) {
        if !attacks.contains(&name) {
            attacks.push(name);
        }
    }
    Some(Worst {
        classifier: first.classifier.clone(),
        purifier: first.purifier.clone(),
        threat_model: first.threat_model.clone(),
        attacks,
        budget: first.budget(),
        norm: first.norm,
        epsilon: first.epsilon,
        samples: common.len(),
        left_out: ids.len() - common.len(),
        robust_accuracy: Share::of(common.iter().map(least)),
        first: first.key.clone(),
    })
}
