//! Attacks as an evaluation runs them, and what their figures say together: checks 4, 13, 14, 19, 20 and 21.

use super::finding::Finding;
use super::subject::{Extent, Search, Subject, norm_name, with_norm};
use crate::experiment::{Backward, Budgets, Settings, outcomes_after};
use crate::plugin::PluginSpec;
use crate::report::{DrawSummary, Share, Summary};
use crate::results::{Cell, Row};
use crate::wire::head::Head;
use advae_abi::info::{BackwardRule, NormKind, Target};
use anyhow::{Result, anyhow};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;

/// Points by which more search, another loss or another rule may lower a figure.
const POINT: f64 = 0.01;
/// Points by which Square may lower the figure of the white-box attacks (AutoAttack's own).
const SQUARE: f64 = 0.002;
/// Two figures differ where chance makes them so in less than one of twenty cases (McNemar's exact test).
const CHANCE: f64 = 0.05;
/// Weights of an adversarially trained classifier, by the name that sets of them have here.
const STATIC: &str = "it_adv";

/// Robust accuracy of one attack, as an audit tells it.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was attacked.
    pub defence: String,
    /// Under which threat model.
    pub threat_model: String,
    /// By what, with its backward rule where that is not the purifier's own.
    pub attack: String,
    /// Within which budget.
    pub budget: String,
    /// What is left; absent where the cell failed.
    pub robust: Option<Share>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What the cells came to.
pub struct Figures {
    /// Checks 4, 13, 14, 19, 20, 21.
    pub findings: Vec<Finding>,
    /// Robust accuracy under the strongest attack within the claim's budget, per sample, clean images included.
    pub strongest: Option<Share>,
    /// Accuracy without an attack.
    pub clean: Option<Share>,
    /// Every attack.
    pub figures: Vec<Figure>,
    /// Trouble with the results file.
    pub trouble: Option<String>,
}

/// Correctness under one attack or several, by sample.
type Shares = BTreeMap<u64, f64>;

/// What one run of the audit is asked to measure.
struct Part<'s> {
    attacks: &'s [PluginSpec],
    threat_model: &'s str,
    epsilon: f64,
}

struct Bench<'a, 's> {
    subject: &'a Subject<'s>,
    /// Draws of gradients through random defences.
    eot: u64,
    cells: Vec<Cell>,
    begun: bool,
    trouble: Option<String>,
}

impl Bench<'_, '_> {
    /// Cells of one part, measured now or known already.
    fn run(&mut self, part: &Part, more: impl FnOnce(&mut Settings)) -> Result<Vec<Cell>> {
        let subject = self.subject;
        let budget = format!("{}={}", norm_name(subject.claim.norm), part.epsilon);
        let mut settings = Settings {
            attacks: part.attacks.iter().map(ToString::to_string).collect(),
            threat_models: vec![part.threat_model.into()],
            budgets: Budgets::parse(&[budget])?,
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

/// Correctness a sample, where the cell has figures.
fn shares(cell: &Cell) -> Option<Shares> {
    let whole = cell.failed.is_none() && !cell.rows.is_empty();
    whole.then(|| {
        cell.rows
            .iter()
            .map(|(id, row)| (*id, row.robust_share().min(row.clean_share())))
            .collect()
    })
}

/// The least over several attacks; absent where none has figures.
fn least<'c>(cells: impl IntoIterator<Item = &'c Cell>) -> Option<Shares> {
    let all = cells.into_iter().filter_map(shares);
    all.reduce(|mut a, b| {
        for (id, share) in b {
            a.entry(id)
                .and_modify(|known| *known = known.min(share))
                .or_insert(share);
        }
        a
    })
}

fn value(shares: &Shares) -> f64 {
    shares.values().sum::<f64>() / shares.len().max(1) as f64
}

fn percent(shares: &Shares) -> String {
    format!("{:.1} %", 100. * value(shares))
}

/// Whether the second figure lies below the first by more than `points`, and not by chance: over the samples of both.
fn lower(first: &Shares, second: &Shares, points: f64) -> bool {
    let pairs: Vec<(f64, f64)> = first
        .iter()
        .filter_map(|(id, a)| Some((*a, *second.get(id)?)))
        .collect();
    let difference = pairs.iter().map(|(a, b)| a - b).sum::<f64>() / pairs.len().max(1) as f64;
    let verdicts = pairs.iter().map(|(a, b)| (*a > 0.5, *b > 0.5));
    difference > points && crate::report::mcnemar_of(verdicts) < CHANCE
}

/// Runs the attacks.
///
/// # Errors
/// Where nothing can be run, results cannot be written, or the audit is cancelled.
pub fn examine(subject: &Subject, eot: u64) -> Result<Figures> {
    let mut bench = Bench {
        subject,
        eot,
        cells: vec![],
        begun: false,
        trouble: None,
    };
    let white = WhiteBox::run(&mut bench)?;
    let mut findings = vec![white.square()];
    let outside = Outside::run(&mut bench)?;
    findings.push(order(subject, &white, &outside));
    findings.push(more_search(subject, &white)?);
    findings.push(known_draw(&mut bench, &white)?);
    let (finding, rules) = every_rule(&mut bench, &white)?;
    findings.push(finding);
    let own: Vec<&Cell> = white.cells.iter().chain(&outside.less).chain(&rules).collect();
    let strongest = least(own.iter().copied());
    findings.push(baseline(&mut bench, strongest.as_ref())?);
    let clean = own.iter().find(|cell| cell.failed.is_none() && !cell.rows.is_empty());
    Ok(Figures {
        clean: clean.and_then(|cell| Share::of(cell.rows.values().map(Row::clean_share))),
        strongest: strongest.and_then(|shares| Share::of(shares.into_values())),
        findings,
        figures: figures(&bench.cells),
        trouble: bench.trouble,
    })
}

fn figures(cells: &[Cell]) -> Vec<Figure> {
    let summaries = Summary::all(cells);
    let figure = |summary: &Summary| Figure {
        defence: summary.defence(),
        threat_model: summary.threat_model.clone(),
        attack: summary.attack_and_rule(),
        budget: summary.budget(),
        robust: summary.robust_accuracy,
        failed: summary.failed.clone(),
    };
    summaries.iter().map(figure).collect()
}

/// The attacks on the whole defence within the claim's budget.
struct WhiteBox {
    /// All of them.
    cells: Vec<Cell>,
    /// The claimed one.
    claimed: Option<Shares>,
    /// The claimed one by gradients of many draws, behind a random defence.
    averaged: Option<Shares>,
    /// One step.
    one_step: Option<Shares>,
    /// Points at random.
    noise: Option<Shares>,
    /// Logits alone.
    square: Option<Shares>,
    /// Everything by gradients.
    gradients: Option<Shares>,
    /// Twice the steps and five restarts of the claimed one.
    longer: Option<Shares>,
    /// The claimed one by other losses.
    losses: Vec<(String, Shares)>,
    /// Why the claimed attack has no figure.
    failed: Option<String>,
    random: bool,
}

impl WhiteBox {
    fn run(bench: &mut Bench) -> Result<Self> {
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
            threat_model: "white_box",
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
    fn best_claimed(&self) -> Option<&Shares> {
        self.averaged.as_ref().or(self.claimed.as_ref())
    }

    fn absent(&self) -> String {
        let why = self.failed.as_deref().unwrap_or("it has no figure");
        format!("the claimed attack could not be run on the whole defence: {why}")
    }

    /// Check 4.
    fn square(&self) -> Finding {
        const THRESHOLD: &str = "by 0.2 points at the most";
        if self.random {
            return Finding::not_applicable(4, "AutoAttack's version for random defences has no Square");
        }
        let (Some(gradients), Some(square)) = (&self.gradients, &self.square) else {
            return Finding::not_run(4, "there are no figures of the white-box attacks and of Square".into());
        };
        let both: Shares = gradients
            .iter()
            .map(|(id, share)| (*id, share.min(square.get(id).copied().unwrap_or(1.))))
            .collect();
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
    let file = spec.name.rsplit('/').next().unwrap_or(&spec.name);
    let stem = file.strip_suffix(".so").unwrap_or(file);
    let stem = stem.strip_prefix("lib").unwrap_or(stem);
    let settings = own.config.iter().filter(|(key, _)| *key != "epsilon");
    cell.header.config.stage.is_none()
        && own.name == stem
        && settings.clone().count() == spec.config.len()
        && settings
            .into_iter()
            .all(|(key, value)| spec.config.get(key) == Some(value))
}

/// The claimed attack with twice the steps and five restarts.
fn longer(subject: &Subject) -> Option<PluginSpec> {
    let number = |name: &str, default: u64| {
        subject
            .attack
            .config
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(default)
    };
    let default = match subject.attack.name.as_str() {
        "pgd" => 40,
        _ => 100,
    };
    let restarts = if subject.extent.quick { 2 } else { 5 };
    let steps = json!(2 * number("steps", default));
    let both = [
        ("steps", steps),
        ("restarts", json!(restarts.max(number("restarts", 1)))),
    ];
    subject.varied(&both).or_else(|| subject.varied(&both[..1]))
}

/// The claimed attack by other losses that it knows.
fn other_losses(subject: &Subject) -> Vec<(String, PluginSpec)> {
    let own = subject
        .attack
        .config
        .get("loss")
        .and_then(|loss| loss.as_str())
        .unwrap_or("ce");
    let known: &[&str] = match subject.attack.name.as_str() {
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
fn suite(subject: &Subject, random: bool) -> Result<Vec<PluginSpec>> {
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
struct Outside {
    /// Attacks by those who know less, within the budget.
    less: Vec<Cell>,
    /// Their least.
    transfer: Option<Shares>,
    /// The claimed attack within half, twice and a hopeless budget.
    half: Option<Shares>,
    double: Option<Shares>,
    hopeless: Option<(f64, Shares)>,
    /// The claimed attack under the claimed threat model, where that is another one.
    claimed: Option<Shares>,
}

impl Outside {
    fn run(bench: &mut Bench) -> Result<Self> {
        let subject = bench.subject;
        let attack = std::slice::from_ref(&subject.attack);
        let claim = subject.claim;
        let eot = bench.eot;
        let mut less = vec![];
        let mut claimed = None;
        let mut models: Vec<&str> = vec![];
        if subject.purifier.is_some() {
            models.push("oblivious");
        }
        if !["white_box", "oblivious"].contains(&claim.threat_model.as_str()) {
            models.push(&claim.threat_model);
        }
        for threat_model in models {
            let part = Part {
                attacks: attack,
                threat_model,
                epsilon: claim.epsilon,
            };
            let cells = bench.run(&part, |settings| settings.eot = settings.eot.max(eot))?;
            if threat_model == claim.threat_model {
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
                threat_model: "white_box",
                epsilon,
            };
            Ok(least(
                &bench.run(&part, |settings| settings.eot = settings.eot.max(eot))?,
            ))
        };
        let most = match claim.norm {
            NormKind::Linf => 1.,
            NormKind::L2 => (subject.dataset.image_len() as f64).sqrt(),
        };
        let grey = match claim.norm {
            NormKind::Linf => 0.5,
            NormKind::L2 => most / 2.,
        };
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

/// Check 13.
fn order(subject: &Subject, white: &WhiteBox, outside: &Outside) -> Finding {
    const THRESHOLD: &str = "many steps <= one, white box <= transfer, noise and Square, larger budgets <= smaller ones, chance where every image \
                             can be made grey; beyond what chance explains (McNemar's p < 0.05)";
    let Some(claimed) = white.best_claimed() else {
        return Finding::not_run(13, white.absent());
    };
    let mut wrong = vec![];
    let mut told = vec![format!("'{}' leaves {}", subject.attack, percent(claimed))];
    let mut below = |name: &str, other: Option<&Shares>| {
        let Some(other) = other else { return };
        told.push(format!("{name} {}", percent(other)));
        if lower(claimed, other, 0.) {
            wrong.push(format!("{name} does better"));
        }
    };
    below("one step", white.one_step.as_ref());
    below("noise", white.noise.as_ref());
    below("Square", white.square.as_ref());
    below("an attack that knows less", outside.transfer.as_ref());
    below("half the budget", outside.half.as_ref());
    if let Some(double) = &outside.double {
        told.push(format!("twice the budget {}", percent(double)));
        if lower(double, claimed, 0.) {
            wrong.push("twice the budget is weaker".into());
        }
    }
    if let Some((epsilon, shares)) = &outside.hopeless {
        told.push(format!("{} {epsilon} {}", subject.claim.norm, percent(shares)));
        let chance = 1. / subject.dataset.classes.max(1) as f64;
        if Share::of(shares.values().copied()).is_some_and(|share| share.low > chance) {
            wrong.push("where every image can be made grey, more than chance is left".into());
        }
    }
    // A claim on one step, or on an attacker who does not know the defence.
    if let (Some(strongest), Some(own)) = (&white.gradients, &white.claimed) {
        let one = subject.attack.name == "fgsm";
        if one && lower(own, strongest, subject.claim.tolerance) {
            told.push(format!("attacks of many steps {}", percent(strongest)));
            wrong.push("the claim rests on one step".into());
        }
        if let Some(other) = outside.claimed.as_ref().or(outside
            .transfer
            .as_ref()
            .filter(|_| subject.claim.threat_model == "oblivious"))
            && subject.claim.threat_model != "white_box"
            && lower(other, strongest, subject.claim.tolerance)
        {
            told.push(format!("attacks that know the defence {}", percent(strongest)));
            wrong.push(format!(
                "the claim rests on the threat model {}, which knows less",
                subject.claim.threat_model
            ));
        }
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("{}: {}", wrong.join(", "), told.join("; ")),
    };
    Finding::expect(13, wrong.is_empty(), text, THRESHOLD)
        .next(subject.eval("--attack autoattack --attack pgd:steps=100,restarts=5 --attack pgd:loss=margin"))
}

/// Check 14.
fn more_search(subject: &Subject, white: &WhiteBox) -> Result<Finding> {
    const THRESHOLD: &str = "by 1 point at the most, beyond what chance explains";
    let Some(claimed) = &white.claimed else {
        return Ok(Finding::not_run(14, white.absent()));
    };
    let mut told = vec![format!("'{}' leaves {}", subject.attack, percent(claimed))];
    let mut wrong = vec![];
    if let Some(longer) = &white.longer {
        let what = "twice the steps with restarts";
        told.push(format!("{what} {}", percent(longer)));
        if lower(claimed, longer, POINT) {
            wrong.push(what.to_string());
        }
    }
    for (loss, shares) in &white.losses {
        told.push(format!("loss {loss} {}", percent(shares)));
        if lower(claimed, shares, POINT) {
            wrong.push(format!("loss {loss}"));
        }
    }
    if let Some(averaged) = &white.averaged {
        told.push(format!("gradients of many draws {}", percent(averaged)));
        if lower(claimed, averaged, POINT) {
            wrong.push("gradients of many draws".into());
        }
    }
    for (factor, what) in [(10., "logits times 10"), (0.1, "logits a tenth")] {
        let (own, scaled) = scaled(subject, factor)?;
        told.push(format!("{what} {} of {} images", percent(&scaled), scaled.len()));
        if lower(&own, &scaled, POINT) {
            wrong.push(format!("{what} (lower)"));
        } else if lower(&scaled, &own, POINT) {
            wrong.push(format!("{what} (higher)"));
        }
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("the figure moves with {}: {}", wrong.join(", "), told.join("; ")),
    };
    Ok(
        Finding::expect(14, wrong.is_empty(), text, THRESHOLD).next(subject.eval(
            "--attack apgd:steps=200,restarts=5 --attack pgd:loss=margin,steps=100,restarts=5 --attack apgd:loss=dlr",
        )),
    )
}

/// The claimed attack on a few samples as they are, and on logits times a factor.
fn scaled(subject: &Subject, factor: f32) -> Result<(Shares, Shares)> {
    let samples = subject.first(subject.extent.few);
    let (attack, limits) = subject.claimed(subject.claim.epsilon)?;
    let run = |attacked: &crate::wire::pipeline::Pipeline| -> Result<Shares> {
        let searched = subject.search(&Search {
            attack: &attack,
            limits,
            attacked,
            scored: &subject.pipeline,
            samples: &samples,
            labels: None,
            early_stop: !subject.pipeline.random(),
            watch: None,
        })?;
        let ids = samples.iter().map(|i| subject.dataset.ids[*i]);
        Ok(ids
            .zip(searched)
            .map(|(id, found)| (id, f64::from(u8::from(found.robust && found.clean))))
            .collect())
    };
    Ok((
        run(&subject.pipeline)?,
        run(&subject.pipeline.with_head(Head::Scaled(factor)))?,
    ))
}

/// Check 19.
fn known_draw(bench: &mut Bench, white: &WhiteBox) -> Result<Finding> {
    const THRESHOLD: &str = "the claim holds for the mean over draws; the other readings belong beside it";
    let subject = bench.subject;
    if !white.random {
        return Ok(Finding::not_applicable(19, "the defence is not random"));
    }
    let part = Part {
        attacks: std::slice::from_ref(&subject.attack),
        threat_model: "white_box",
        epsilon: subject.claim.epsilon,
    };
    let cells = bench.run(&part, |settings| settings.known_draw = true)?;
    let (known, mean): (Vec<&Cell>, Vec<&Cell>) = cells.iter().partition(|cell| cell.header.config.known_draw);
    let Some(shares) = least(mean.iter().copied()) else {
        return Ok(Finding::not_run(19, white.absent()));
    };
    let summary = Summary::all(&mean.iter().map(|cell| (*cell).clone()).collect::<Vec<_>>());
    let mut text = format!("'{}' leaves {} (mean over draws)", subject.attack, percent(&shares));
    if let Some(DrawSummary {
        draws,
        majority,
        ever_wrong,
    }) = summary.iter().find_map(|summary| summary.random)
    {
        text += &format!(
            "; by majority of {draws} draws {:.1} %; to one who may ask {draws} times {:.1} %",
            100. * majority,
            100. * (1. - ever_wrong)
        );
    }
    if let Some(known) = least(known) {
        text += &format!("; to one who knows the draw {}", percent(&known));
    }
    let more = format!(
        "--attack {} --known-draw --eot {} --draws 20",
        subject.attack, bench.eot
    );
    Ok(Finding::note(19, text, THRESHOLD).next(subject.eval(&more)))
}

/// Check 20, and the cells of other backward rules.
fn every_rule(bench: &mut Bench, white: &WhiteBox) -> Result<(Finding, Vec<Cell>)> {
    const THRESHOLD: &str =
        "no other rule, and no minimum over all, lowers the figure by more than 1 point beyond chance";
    let subject = bench.subject;
    let Some(purifier) = &subject.purifier else {
        return Ok((Finding::not_applicable(20, "there is no purifier"), vec![]));
    };
    let rule = purifier.rule();
    let mut rules = purifier.model.info().backward_rules.clone();
    if !rules.contains(&BackwardRule::Identity) {
        rules.push(BackwardRule::Identity);
    }
    rules.retain(|other| other.name() != rule.used && *other != BackwardRule::None);
    let part = Part {
        attacks: std::slice::from_ref(&subject.attack),
        threat_model: "white_box",
        epsilon: subject.claim.epsilon,
    };
    let (mut cells, mut told, mut wrong) = (vec![], vec![], vec![]);
    if let Some(own) = &white.claimed {
        told.push(format!("{} (its own) leaves {}", rule.used, percent(own)));
    }
    for other in rules {
        let by_rule = bench.run(&part, |settings| settings.backward = Some(Backward::One(other)))?;
        let shares = least(&by_rule);
        cells.extend(by_rule);
        let Some(shares) = shares else { continue };
        told.push(format!("{} {}", other.name(), percent(&shares)));
        if white.claimed.as_ref().is_none_or(|own| lower(own, &shares, POINT)) {
            wrong.push(other.name());
        }
    }
    let all = least(cells.iter())
        .into_iter()
        .chain(white.claimed.clone())
        .reduce(|mut a, b| {
            for (id, share) in b {
                a.entry(id)
                    .and_modify(|known| *known = known.min(share))
                    .or_insert(share);
            }
            a
        });
    if let Some(all) = &all {
        told.push(format!("the minimum over all, per sample, {}", percent(all)));
        if wrong.is_empty() && white.claimed.as_ref().is_some_and(|own| lower(own, all, POINT)) {
            wrong.push("the minimum over all");
        }
    }
    if white.claimed.is_none() && wrong.is_empty() {
        return Ok((Finding::not_run(20, white.absent()), cells));
    }
    let text = match wrong.is_empty() {
        true => told.join("; "),
        false => format!("stronger than its own rule: {}; {}", wrong.join(", "), told.join("; ")),
    };
    let finding = Finding::expect(20, wrong.is_empty(), text, THRESHOLD);
    Ok((finding.next(subject.eval("--attack apgd --backward all")), cells))
}

/// Check 21.
fn baseline(bench: &mut Bench, strongest: Option<&Shares>) -> Result<Finding> {
    const THRESHOLD: &str = "a purifier is to beat the classifier without it, and the best static classifier at hand";
    let subject = bench.subject;
    let classifier = &subject.classifier;
    let has_static = classifier.plugin.manifest.weight_sets.iter().any(|set| set == STATIC);
    let own = classifier.named.weights.as_deref() == Some(STATIC);
    let mut rivals: Vec<(String, String)> = vec![];
    if subject.purifier.is_some() {
        rivals.push(("without the purifier".into(), classifier.named.to_string()));
    }
    if has_static && !own {
        rivals.push((
            format!("adversarially trained (@{STATIC})"),
            format!("{}@{STATIC}", classifier.named.plugin),
        ));
    }
    if rivals.is_empty() {
        return Ok(Finding::not_applicable(
            21,
            "there is no purifier, and no adversarially trained classifier beside it",
        ));
    }
    let Some(strongest) = strongest else {
        return Ok(Finding::not_run(
            21,
            "no attack of the whole defence could be run".into(),
        ));
    };
    let attacks = suite(subject, false)?;
    let part = Part {
        attacks: &attacks,
        threat_model: "white_box",
        epsilon: subject.claim.epsilon,
    };
    let (mut told, mut beaten) = (vec![format!("the defence keeps {}", percent(strongest))], vec![]);
    for (name, spec) in rivals {
        let cells = bench.run(&part, |settings| {
            settings.classifiers = vec![spec];
            settings.purifiers = vec!["none".into()];
        })?;
        let shares = least(&cells).ok_or_else(|| anyhow!("the classifier {name} could not be attacked"))?;
        told.push(format!("the classifier {name} {}", percent(&shares)));
        if value(strongest) <= value(&shares) {
            beaten.push(name);
        }
    }
    let text = told.join("; ");
    Ok(match beaten.is_empty() {
        true => Finding::expect(21, true, text, THRESHOLD),
        false => Finding::note(
            21,
            format!("no better than the classifier {}: {text}", beaten.join(" and ")),
            THRESHOLD,
        )
        .next("use that classifier instead, or show what the purifier is good for"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(robust: &[u8]) -> Shares {
        (0u64..)
            .zip(robust)
            .map(|(id, robust)| (id, f64::from(*robust)))
            .collect()
    }

    #[test]
    fn a_figure_is_lower_where_chance_does_not_explain_it() {
        let all = verdicts(&[1; 100]);
        let mut few = [1; 100];
        few[..5].fill(0);
        assert!(
            !lower(&all, &verdicts(&few), 0.01),
            "five pairs of one kind happen by chance"
        );
        few[..8].fill(0);
        assert!(lower(&all, &verdicts(&few), 0.01));
        assert!(!lower(&all, &verdicts(&few), 0.1), "not by so many points");
        assert!(!lower(&verdicts(&few), &all, 0.));
    }
}
