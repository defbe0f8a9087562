//! For people: one page that needs nothing beside it, with curves, matrices and images, in light and dark, for phones, keyboards and
//! screen readers, and for paper.

mod charts;
mod curves;
mod matrices;
mod pictures;

use super::parts::{LEGEND, Render, attacks, notes, percent, robust};
use crate::report::contents::Report;
use crate::report::figures::{Share, Summary, Worst};
use crate::results::PluginConfig;
use anyhow::{Context, Result};
use minijinja::{Environment, context};
use serde::Serialize;
use std::collections::BTreeSet;

/// The format.
pub struct Html;

/// A defence in a few numbers.
#[derive(Serialize)]
struct Card {
    defence: String,
    /// Threat model and budget.
    under: String,
    clean: String,
    /// What the large number is.
    what: String,
    robust: String,
    /// For the bar, in percent.
    value: f64,
    low: f64,
    width: f64,
    /// Over which attacks.
    over: String,
}

#[derive(Serialize)]
struct Table {
    id: &'static str,
    title: &'static str,
    about: String,
    columns: Vec<Column>,
    rows: Vec<Vec<Entry>>,
}

#[derive(Serialize)]
struct Column {
    name: &'static str,
    number: bool,
}

#[derive(Serialize)]
struct Entry {
    text: String,
    /// What a number is sorted by.
    sort: Option<f64>,
}

#[derive(Serialize)]
struct Figure {
    title: String,
    svg: String,
}

#[derive(Serialize, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    what: &'static str,
    name: String,
    version: String,
    sha256: String,
}

impl Render for Html {
    fn render(&self, report: &Report) -> Result<String> {
        let mut page = Environment::new();
        page.add_template("page.html", include_str!("page.html"))
            .context("the page's template")?;
        let figures: Vec<Figure> = (curves::all(report).into_iter())
            .map(|chart| Figure {
                title: chart.title.clone(),
                svg: chart.svg(),
            })
            .collect();
        let said = notes(report);
        let notes: Vec<&str> = (said.lines())
            .filter(|line| !line.is_empty() && !line.starts_with("warning: "))
            .collect();
        let text = page.get_template("page.html")?.render(context! {
            title => title(report),
            lead => lead(report),
            style => include_str!("style.css"),
            script => include_str!("sort.js"),
            audited => report.audited,
            cards => cards(report),
            warnings => report.warnings,
            tables => [cells(report), worst_cases(report)].into_iter().filter(|t| !t.rows.is_empty()).collect::<Vec<_>>(),
            figures,
            pictures => pictures::all(report),
            transfers => matrices::transfers(report),
            confusions => matrices::confusions(report),
            notes,
            runs => report.runs,
            files => files(report),
            legend => LEGEND,
        });
        text.context("the page cannot be filled")
    }
}

fn title(report: &Report) -> String {
    if let Some(audited) = &report.audited {
        return format!("Audit of {}: {}", audited.defence, audited.verdict);
    }
    let defences: BTreeSet<String> = report.cells.iter().map(Summary::defence).collect();
    match defences.len() {
        0 => "No results".into(),
        1..=3 => format!("Robustness of {}", defences.into_iter().collect::<Vec<_>>().join(", ")),
        n => format!("Robustness of {n} defences"),
    }
}

fn lead(report: &Report) -> String {
    let datasets: BTreeSet<String> = (report.cells.iter())
        .map(|cell| format!("{}, {} samples, seed {}", cell.dataset, cell.samples, cell.seed))
        .collect();
    datasets.into_iter().collect::<Vec<_>>().join("; ")
}

/// The worst case of every defence, and the cells of budgets without one.
fn cards(report: &Report) -> Vec<Card> {
    let card = |cell: &Summary, what: &str, robust_share: Share, under: String, over: String| Card {
        defence: cell.defence(),
        under,
        clean: cell.clean_accuracy.map_or("-".into(), |share| percent(share.value)),
        what: what.into(),
        robust: robust(Some(robust_share)),
        value: 100. * robust_share.value,
        low: 100. * robust_share.low,
        width: 100. * (robust_share.high - robust_share.low),
        over,
    };
    let of_worst = |worst: &Worst| {
        let cell = report.cells.iter().find(|cell| cell.key == worst.first)?;
        let under = format!("{}, {}", worst.threat_model, worst.budget);
        Some(card(cell, "worst case", worst.robust_accuracy?, under, attacks(worst)))
    };
    let mut cards: Vec<Card> = report.worst_cases.iter().filter_map(of_worst).collect();
    let is_first = |cell: &&Summary| report.worst_cases.iter().any(|worst| worst.first == cell.key);
    let firsts: Vec<&Summary> = report.cells.iter().filter(is_first).collect();
    let in_worst = |cell: &Summary| {
        let budget = |other: &Summary| cell.cell.header.config.same_budget(&other.cell.header.config);
        firsts.iter().any(|first| cell.same_defence(first) && budget(first))
    };
    for cell in report
        .cells
        .iter()
        .filter(|cell| cell.epsilon.is_some() && !in_worst(cell))
    {
        if let Some(share) = cell.robust_accuracy {
            let under = format!("{}, {}", cell.threat_model, cell.budget());
            cards.push(card(cell, "robust", share, under, cell.attack_and_rule()));
        }
    }
    cards
}

fn text(text: impl Into<String>) -> Entry {
    Entry {
        text: text.into(),
        sort: None,
    }
}

/// A number; where there is none, it is sorted before all others.
fn number(text: String, value: Option<f64>) -> Entry {
    Entry {
        text,
        sort: Some(value.unwrap_or(-1.)),
    }
}

fn columns(names: &[(&'static str, bool)]) -> Vec<Column> {
    names
        .iter()
        .map(|(name, number)| Column { name, number: *number })
        .collect()
}

fn cells(report: &Report) -> Table {
    let row = |cell: &Summary| {
        let share = |share: Option<Share>| share.map(|s| s.value);
        let robust_text = match &cell.failed {
            Some(_) => "failed".into(),
            None => robust(cell.robust_accuracy),
        };
        vec![
            text(&cell.classifier),
            text(&cell.purifier),
            text(&cell.threat_model),
            text(cell.attack_and_rule()),
            text(cell.budget()),
            number(
                cell.clean_accuracy.map_or("-".into(), |s| percent(s.value)),
                share(cell.clean_accuracy),
            ),
            number(robust_text, share(cell.robust_accuracy)),
            number(
                format!("{}/{}", cell.broken, cell.clean_correct),
                Some(cell.broken as f64),
            ),
            number(
                cell.l2.map_or("-".into(), |s| format!("{:.2}", s.median)),
                cell.l2.map(|s| s.median),
            ),
            number(
                cell.linf.map_or("-".into(), |s| format!("{:.3}", s.median)),
                cell.linf.map(|s| s.median),
            ),
            number(cell.refused.to_string(), Some(cell.refused as f64)),
            number(format!("{:.1}", cell.seconds), Some(cell.seconds)),
        ]
    };
    Table {
        id: "cells",
        title: "All cells",
        about: "Accuracy in percent, with Wilson's 95 % interval over the samples. A click on a heading sorts.".into(),
        columns: columns(&[
            ("classifier", false),
            ("purifier", false),
            ("threat model", false),
            ("attack", false),
            ("budget", false),
            ("clean", true),
            ("robust", true),
            ("broken", true),
            ("L2, median", true),
            ("Linf, median", true),
            ("refused", true),
            ("seconds", true),
        ]),
        rows: report.cells.iter().map(row).collect(),
    }
}

fn worst_cases(report: &Report) -> Table {
    let row = |worst: &Worst| {
        vec![
            text(&worst.classifier),
            text(&worst.purifier),
            text(&worst.threat_model),
            text(attacks(worst)),
            text(&worst.budget),
            number(robust(worst.robust_accuracy), worst.robust_accuracy.map(|s| s.value)),
        ]
    };
    Table {
        id: "worst",
        title: "Worst cases",
        about: "A sample counts as robust where every attack of one norm and budget left it correct, the clean image included.".into(),
        columns: columns(&[
            ("classifier", false),
            ("purifier", false),
            ("threat model", false),
            ("worst case of", false),
            ("budget", false),
            ("robust", true),
        ]),
        rows: report.worst_cases.iter().map(row).collect(),
    }
}

/// Every plugin, weight file and dataset once.
fn files(report: &Report) -> Vec<File> {
    let mut files = BTreeSet::new();
    let mut add = |what: &'static str, plugin: &PluginConfig, weights: &str| {
        let file = |name: &str, version: &str, sha256: &str| File {
            what,
            name: name.into(),
            version: version.into(),
            sha256: sha256.into(),
        };
        files.insert(file(&plugin.name, &plugin.version, &plugin.sha256));
        for (setting, sha256) in &plugin.files {
            files.insert(file(&plugin.name, setting, sha256));
        }
        if let Some((kind, of)) = weights.split_once(':') {
            let (version, sha256) = if kind == "file" {
                ("weights", of)
            } else {
                (weights, "inside the plugin")
            };
            files.insert(file(&plugin.name, version, sha256));
        }
    };
    for config in report.cells.iter().map(|cell| &cell.cell.header.config) {
        add("classifier", &config.classifier.plugin, &config.classifier.weights);
        if let Some(purifier) = &config.purifier {
            add("purifier", &purifier.plugin, &purifier.weights);
        }
        add("threat model", &config.threat_model, "");
        add("attack", &config.attack, "");
    }
    for config in report.cells.iter().map(|cell| &cell.cell.header.config) {
        files.insert(File {
            what: "dataset",
            name: config.dataset.clone(),
            version: String::new(),
            sha256: config.dataset_sha256.clone(),
        });
    }
    files.into_iter().collect()
}
