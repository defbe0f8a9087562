//! The attacks of an audit, run as cells of an experiment: those on the whole defence within the claim's budget, and those beside them.

use super::finding::Finding;
use super::shares::{Shares, least, lesser, percent, shares, value};
use super::subject::{Extent, Subject, norm_name, with_norm};
use crate::experiment::{Budgets, Settings, outcomes_after};
use crate::plugin::{Plugin, PluginSpec};
use crate::results::Cell;
use advae_abi::info::{Kind, NormKind, Target};
use anyhow::Result;
use serde_json::json;

/// Points by which Square may lower the figure of the white-box attacks (AutoAttack's own).
const SQUARE: f64 = 0.002;

/// The threat model whose attacker knows the whole defence.
pub const WHITE_BOX: &str = "white_box";
/// The one whose attacker knows the classifier alone.
const OBLIVIOUS: &str = "oblivious";

/// What one run of the audit is asked to measure.
pub struct Part<'s> {
    /// By what.
    pub attacks: &'s [PluginSpec],
    /// Under which threat model.
    pub threat_model: &'s str,
    /// Within which budget, of the claim's norm.
    pub epsilon: f64,
}

/// Runs parts, and keeps their cells.
pub struct Bench<'a, 's> {
    /// What is audited.
    pub subject: &'a Subject<'s>,
    /// Draws of gradients through random defences.
    pub eot: u64,
    /// Every cell so far, once.
    pub cells: Vec<Cell>,
    /// Whether the results file is there.
    pub begun: bool,
    /// Trouble with it.
    pub trouble: Option<String>,
}

impl Bench<'_, '_> {
    /// Cells of one part, measured now or known already.
    pub fn run(&mut self, part: &Part, more: impl FnOnce(&mut Settings)) -> Result<Vec<Cell>> {
        let subject = self.subject;
        let budget = format!("{}={}", norm_name(subject.claim.norm), part.epsilon);
        let mut settings = Settings {
            attacks: part.attacks.iter().map(ToString::to_string).collect(),
            threat_models: vec![part.threat_model.into()],
            budgets: Budgets::parse(&[budget])?,
            // As many as there are: that there are no more is told once.
            samples: subject.dataset.len(),
            resume: subject.settings.resume || self.begun,
            repair: subject.settings.repair && !self.begun,
            ..subject.settings.clone()
        };
        more(&mut settings);
        if part.attacks.is_empty() {
            return Ok(vec![]);
        }
        let outcome = outcomes_after(&settings, &self.cells, subject.cancel)?;
        self.begun |= settings.out.is_some();
        self.trouble = outcome.trouble.or(self.trouble.take());
        subject.cancel.check()?;
        for cell in &outcome.cells {
            if self.cells.iter().all(|known| known.header.key != cell.header.key) {
                self.cells.push(cell.clone());
            }
        }
        Ok(outcome.cells)
    }
}

/// The attacks on the whole defence within the claim's budget.
pub struct WhiteBox {
    /// All of them.
    pub cells: Vec<Cell>,
    /// The claimed one.
    pub claimed: Option<Shares>,
    /// The claimed one by gradients of many draws, behind a random defence.
    pub averaged: Option<Shares>,
    /// One step.
    pub one_step: Option<Shares>,
    /// Points at random.
    pub noise: Option<Shares>,
    /// Logits alone.
    pub square: Option<Shares>,
    /// Everything that is neither Square nor noise.
    pub gradients: Option<Shares>,
    /// Twice the steps of the claimed one, with restarts.
    pub longer: Option<Shares>,
    /// The claimed one by other losses.
    pub losses: Vec<(String, Shares)>,
    /// Why the claimed attack has no figure.
    pub failed: Option<String>,
    /// Whether the defence is random.
    pub random: bool,
}

impl WhiteBox {
    pub fn run(bench: &mut Bench) -> Result<Self> {
        let subject = bench.subject;
        let random = subject.pipeline.random();
        let norm = subject.claim.norm;
        let parse = |text: &str| with_norm(PluginSpec::parse(text)?, norm);
        let one_step = parse("fgsm")
            .ok()
            .filter(|spec| norm == NormKind::Linf || subject.has_setting(spec, "norm"));
        let noise = parse("noise").ok();
        let longer = longer(subject);
        let losses = other_losses(subject);
        let suite = suite(subject, random)?;
        let mut single = vec![subject.attack.clone()];
        single.extend(
            one_step
                .iter()
                .chain(&noise)
                .chain(&longer)
                .chain(losses.iter().map(|(_, spec)| spec))
                .cloned(),
        );
        let mut seen = vec![];
        single.retain(|spec| {
            let new = !seen.contains(spec);
            seen.push(spec.clone());
            new
        });
        let part = |attacks| Part {
            attacks,
            threat_model: WHITE_BOX,
            epsilon: subject.claim.epsilon,
        };
        let mut cells = bench.run(&part(&single), |_| {})?;
        // Named alike, the suite's stages are its own cells.
        let of = |cells: &[Cell], spec: &PluginSpec| {
            let is = |cell: &&Cell| named_as(cell, spec);
            cells.iter().find(is).and_then(shares)
        };
        let claimed_cell = cells.iter().find(|cell| named_as(cell, &subject.attack));
        let failed = claimed_cell.and_then(|cell| cell.failed.clone());
        let eot = bench.eot;
        let averaged = match random && eot > subject.settings.eot {
            true => {
                let of_many = bench.run(&part(std::slice::from_ref(&subject.attack)), |settings| {
                    settings.eot = eot
                })?;
                let shares = of(&of_many, &subject.attack);
                cells.extend(of_many);
                shares
            }
            false => None,
        };
        let of_suite = bench.run(&part(&suite), |settings| settings.eot = settings.eot.max(eot))?;
        let is_square = |cell: &&Cell| cell.header.config.attack.name == "square";
        let by_gradients = |cell: &&Cell| !is_square(cell) && cell.header.config.attack.name != "noise";
        let gradients = least(cells.iter().chain(&of_suite).filter(by_gradients));
        let square = least(of_suite.iter().filter(is_square));
        Ok(Self {
            claimed: of(&cells, &subject.attack),
            averaged,
            one_step: one_step.and_then(|spec| of(&cells, &spec)),
            noise: noise.and_then(|spec| of(&cells, &spec)),
            square,
            gradients,
            longer: longer.and_then(|spec| of(&cells, &spec)),
            losses: losses
                .into_iter()
                .filter_map(|(name, spec)| Some((name, of(&cells, &spec)?)))
                .collect(),
            cells: cells.into_iter().chain(of_suite).collect(),
            failed,
            random,
        })
    }

    /// The claimed attack as strong as its gradients can be made.
    pub fn best_claimed(&self) -> Option<&Shares> {
        self.averaged.as_ref().or(self.claimed.as_ref())
    }

    pub fn absent(&self) -> String {
        let why = self.failed.as_deref().unwrap_or("it has no figure");
        format!("the claimed attack could not be run on the whole defence: {why}")
    }

    /// Check 4.
    pub fn square(&self) -> Finding {
        const THRESHOLD: &str = "by 0.2 points at the most";
        if self.random {
            return Finding::not_applicable(4, "AutoAttack's version for random defences has no Square");
        }
        let (Some(gradients), Some(square)) = (&self.gradients, &self.square) else {
            return Finding::not_run(4, "there are no figures of the white-box attacks and of Square".into());
        };
        let both = lesser(gradients.clone(), square.clone());
        let difference = value(gradients) - value(&both);
        let text = format!(
            "attacks by gradients leave {}, with Square {}",
            percent(gradients),
            percent(&both)
        );
        Finding::expect(4, difference <= SQUARE + 1e-9, text, THRESHOLD).next(
            "attack it by transfer from a smooth model (--attack transfer:file=FILE.npz) and by square:n_queries=20000",
        )
    }
}

/// Whether a cell is that attack, not as a stage of a suite.
fn named_as(cell: &Cell, spec: &PluginSpec) -> bool {
    let own = &cell.header.config.attack;
    let name = Plugin::find(&spec.name, Kind::Attack).map(|plugin| plugin.manifest.name);
    let settings = || own.config.iter().filter(|(key, _)| *key != "epsilon");
    cell.header.config.stage.is_none()
        && name.is_ok_and(|name| name == own.name)
        && settings().count() == spec.config.len()
        && settings().all(|(key, value)| spec.config.get(key) == Some(value))
}

/// The claimed attack with twice the steps, and restarts.
fn longer(subject: &Subject) -> Option<PluginSpec> {
    let number = |name: &str| subject.setting(&subject.attack, name).and_then(|value| value.as_u64());
    let steps = json!(2 * number("steps")?);
    let most = if subject.extent.quick { 2 } else { 5 };
    let restarts = number("restarts").map(|restarts| ("restarts", json!(restarts.max(most))));
    let both: Vec<_> = restarts.into_iter().chain([("steps", steps)]).collect();
    subject.varied(&both)
}

/// The claimed attack by other losses that it knows.
pub fn other_losses(subject: &Subject) -> Vec<(String, PluginSpec)> {
    let own = subject.setting(&subject.attack, "loss");
    let own = own.as_ref().and_then(|loss| loss.as_str()).unwrap_or("ce");
    let known: &[&str] = match subject.attack_name.as_str() {
        "pgd" => &["ce", "margin"],
        "apgd" if subject.pipeline.classes() >= 3 => &["ce", "dlr"],
        _ => &[],
    };
    let others = known.iter().filter(|loss| **loss != own);
    others
        .filter_map(|loss| Some(((*loss).into(), subject.varied(&[("loss", json!(loss))])?)))
        .collect()
}

/// What the strongest attack is sought among.
pub fn suite(subject: &Subject, random: bool) -> Result<Vec<PluginSpec>> {
    let classes = subject.pipeline.classes();
    let Extent { quick, .. } = subject.extent;
    let texts: Vec<String> = match (random, quick, classes) {
        (true, false, 3..) => vec!["autoattack:version=rand".into()],
        (true, _, _) => vec!["apgd:steps=20".into()],
        (false, false, 4..) => vec!["autoattack".into()],
        (false, false, _) => ["apgd", "fab:targeted=false", "square"].map(String::from).to_vec(),
        (false, true, 4..) => vec![
            "apgd:steps=50".into(),
            "apgd:steps=30,loss=dlr_targeted,n_target_classes=3".into(),
            "square:n_queries=300".into(),
        ],
        (false, true, _) => vec!["apgd:steps=50".into(), "square:n_queries=300".into()],
    };
    let parsed = texts.iter().map(|text| PluginSpec::parse(text));
    parsed
        .map(|spec| {
            let mut spec = spec?;
            // A suite is no plugin whose settings could be looked at.
            if spec.name == "autoattack" && subject.claim.norm == NormKind::L2 {
                spec.config.insert("norm".into(), "l2".into());
                return Ok(PluginSpec::new(&spec.name, spec.weights, spec.config));
            }
            if spec.name == "autoattack" {
                Ok(spec)
            } else {
                with_norm(spec, subject.claim.norm)
            }
        })
        .collect()
}

/// What is not an attack on the whole defence within the claim's budget.
pub struct Outside {
    /// Attacks by those who know less, within the budget.
    pub less: Vec<Cell>,
    /// Their least.
    pub transfer: Option<Shares>,
    /// The claimed attack within half of the budget.
    pub half: Option<Shares>,
    /// Within twice the budget.
    pub double: Option<Shares>,
    /// Within a budget that makes every image grey, and that budget.
    pub hopeless: Option<(f64, Shares)>,
    /// The claimed attack under the claimed threat model, where that is another one.
    pub claimed: Option<Shares>,
}

impl Outside {
    pub fn run(bench: &mut Bench) -> Result<Self> {
        let subject = bench.subject;
        let attack = std::slice::from_ref(&subject.attack);
        let claim = subject.claim;
        let eot = bench.eot;
        let mut less = vec![];
        let mut claimed = None;
        let mut models: Vec<&str> = vec![];
        if subject.purifier.is_some() {
            models.push(OBLIVIOUS);
        }
        if ![WHITE_BOX, OBLIVIOUS].contains(&subject.threat_name.as_str()) {
            models.push(&claim.threat_model);
        }
        for threat_model in models {
            let part = Part {
                attacks: attack,
                threat_model,
                epsilon: claim.epsilon,
            };
            let cells = bench.run(&part, |settings| settings.eot = settings.eot.max(eot))?;
            if threat_model == claim.threat_model || threat_model == subject.threat_name {
                claimed = least(&cells);
            }
            // Whoever attacks the whole defence is not one who knows less.
            less.extend(
                cells
                    .into_iter()
                    .filter(|cell| cell.header.target != Some(Target::Pipeline)),
            );
        }
        let mut within = |epsilon: f64| -> Result<Option<Shares>> {
            let part = Part {
                attacks: attack,
                threat_model: WHITE_BOX,
                epsilon,
            };
            Ok(least(
                &bench.run(&part, |settings| settings.eot = settings.eot.max(eot))?,
            ))
        };
        // Within half of the way every image can be made grey.
        let most = subject.farthest();
        let grey = most / 2.;
        let hopeless = within(grey)?.map(|shares| (grey, shares));
        Ok(Self {
            transfer: least(&less),
            half: within(claim.epsilon / 2.)?,
            double: within((2. * claim.epsilon).min(most))?,
            hopeless,
            less,
            claimed,
        })
    }
}
