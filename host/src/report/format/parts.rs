//! What formats share: the trait, and pieces of text.

use crate::report::contents::Report;
use crate::report::figures::{Share, Spread, Summary, Worst, short};
use crate::results::Named;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Writes a report in one format.
pub trait Render {
    /// The whole text.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    fn render(&self, report: &Report) -> Result<String>;
}

/// What stands under a table.
pub const LEGEND: &str = "broken: of those that are correct without an attack. L2 and Linf: of the broken samples, measured by the host. \
                      Intervals: Wilson, over samples; training variance is not covered.";

pub fn percent(share: f64) -> String {
    format!("{:.1}", 100. * share)
}

/// A share in percent with its interval, `97.0 [95.7, 97.9]`.
pub fn with_interval(share: Share) -> String {
    format!(
        "{} [{}, {}]",
        percent(share.value),
        percent(share.low),
        percent(share.high)
    )
}

/// The same, or `-` where there is none.
pub fn robust(share: Option<Share>) -> String {
    share.map_or("-".into(), with_interval)
}

pub fn spread(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or("-".into(), |s| format!("{:.digits$}, {:.digits$}", s.median, s.max))
}

/// Figures of a cell from its clean accuracy to its images a second; absent where it failed. `-`: there is none.
pub fn figures(cell: &Summary) -> Option<[String; 8]> {
    Some([
        percent(cell.clean_accuracy?.value),
        robust(cell.robust_accuracy),
        format!("{}/{}", cell.broken, cell.clean_correct),
        spread(cell.l2, 2),
        spread(cell.linf, 3),
        cell.refused.to_string(),
        format!("{:.1}", cell.seconds),
        cell.images_per_second.map_or("-".into(), |rate| format!("{rate:.1}")),
    ])
}

/// The attacks of a worst case, the clean image first.
pub fn attacks(worst: &Worst) -> String {
    let attacks = std::iter::once("clean").chain(worst.attacks.iter().map(String::as_str));
    attacks.collect::<Vec<_>>().join(", ")
}

/// A worst case up to its figure.
pub fn worst_case(worst: &Worst) -> Vec<String> {
    vec![
        worst.classifier.clone(),
        worst.purifier.clone(),
        worst.threat_model.clone(),
        attacks(worst),
        worst.budget.clone(),
        robust(worst.robust_accuracy),
    ]
}

/// What is to be said of cells, a line each.
pub fn notes(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| out.extend([text.as_str(), "\n"]);
    let noted = report.cells.iter().flat_map(Summary::notes);
    let said: BTreeSet<String> = noted.map(|(what, note)| format!("{what}: {note}")).collect();
    said.into_iter().for_each(&mut line);
    let specs: BTreeSet<String> = report.cells.iter().flat_map(shortened).collect();
    specs.into_iter().for_each(&mut line);
    rules(report).into_iter().for_each(&mut line);
    report.cells.iter().flat_map(cell_notes).for_each(&mut line);
    for worst in report.worst_cases.iter().filter(|worst| worst.left_out > 0) {
        let over = match worst.samples {
            0 => "there is none, as no sample was attacked by all of them".to_string(),
            samples => format!("over the {samples} samples that all of them attacked"),
        };
        line(format!(
            "worst case of {} ({}, {}): {over}; {} others are left out",
            attacks(worst),
            worst.purifier,
            worst.threat_model,
            worst.left_out
        ));
    }
    for cell in &report.unfinished {
        line(format!("not finished: {cell}"));
    }
    for warning in &report.warnings {
        line(format!("warning: {warning}"));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

/// By which backward rules the attacker's gradients went, a line a purifier.
fn rules(report: &Report) -> Vec<String> {
    let mut by_purifier: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for cell in report.cells.iter().filter(|cell| cell.zero_gradients.is_some()) {
        if let Some(rule) = &cell.backward {
            by_purifier.entry(&cell.purifier).or_default().insert(&rule.used);
        }
    }
    let line = |(purifier, rules): (&str, BTreeSet<&str>)| {
        let (noun, rules) = match rules.len() {
            1 => ("rule", rules.into_iter().collect::<String>()),
            _ => ("rules", rules.into_iter().collect::<Vec<_>>().join(", ")),
        };
        format!("gradients through {purifier} went by the backward {noun} {rules}")
    };
    by_purifier.into_iter().map(line).collect()
}

/// What to type for models and attacks that tables name by less than their paths.
fn shortened(cell: &Summary) -> Vec<String> {
    let header = &cell.cell.header;
    let purifier = header.purifier.as_ref().map(|named| (&cell.purifier, named));
    let others = [
        (&cell.classifier, &header.classifier),
        (&cell.threat_model, &header.threat_model),
        (&cell.attack, &header.attack),
    ];
    let is_path = |named: &Named| named.plugin.contains('/') || named.weights.iter().any(|path| path.contains('/'));
    let paths = purifier.into_iter().chain(others).filter(|(_, named)| is_path(named));
    paths.map(|(label, named)| format!("{label} is {named}")).collect()
}

fn cell_notes(cell: &Summary) -> Vec<String> {
    let name = cell.name();
    if let Some(reason) = &cell.failed {
        return vec![format!("{name}: failed: {reason}")];
    }
    let mut lines = vec![];
    if let Some(origin) = &cell.crafted_on {
        lines.push(format!("{name}: a transfer: the images were crafted on {origin}"));
    }
    if !cell.caps.is_empty() {
        let caps = cell.caps.iter();
        let caps = caps.map(|c| format!("<= {}: {}", short(c.cap), with_interval(c.accuracy)));
        lines.push(format!(
            "{name}: robust % at L2 {}",
            caps.collect::<Vec<_>>().join(", ")
        ));
    }
    if let Some(random) = &cell.random {
        let (majority, ever) = (percent(random.majority), percent(random.ever_wrong));
        lines.push(format!(
            "{name}: over {} draws, {majority} % robust by majority, {ever} % ever wrong",
            random.draws
        ));
    }
    if let Some(substitute) = &cell.substitute {
        let (agreement, of) = (percent(substitute.agreement()), substitute.of);
        lines.push(format!(
            "{name}: the substitute agrees with the black box on {agreement} % of {of} clean images, after {} label queries",
            substitute.queries
        ));
    }
    let asked = cell.queries - cell.substitute.map_or(0, |s| s.queries);
    if asked > 0 {
        lines.push(format!("{name}: {asked} label queries by the attack"));
    }
    lines
}
