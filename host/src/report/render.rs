//! Reports as text.

use super::figures::{Share, Spread, Summary, short};
use super::{Report, Worst};
use anyhow::Result;
use comfy_table::presets::{ASCII_MARKDOWN, UTF8_FULL_CONDENSED};
use comfy_table::{CellAlignment, Table};
use std::collections::BTreeSet;

const HEADER: [&str; 13] = [
    "classifier",
    "purifier",
    "threat model",
    "attack",
    "budget",
    "clean %",
    "robust % [95 %]",
    "broken/correct",
    "L2 median, max",
    "Linf median, max",
    "refused",
    "s",
    "images/s",
];
/// The first columns are names, the others numbers.
const NAMES: usize = 5;

/// A table and what is to be said beneath it.
pub fn text(report: &Report, markdown: bool) -> String {
    let mut out = String::new();
    if !report.cells.is_empty() {
        let rows = report.cells.iter().map(cells).collect();
        out += &table(&HEADER, NAMES, rows, markdown);
        out += "\nL2 and Linf: of the broken samples, measured by the host. Intervals: Wilson, over samples; training variance is not covered.\n";
    }
    if !report.worst_cases.is_empty() {
        let header = [
            "classifier",
            "purifier",
            "threat model",
            "per-sample worst case of",
            "budget",
            "robust % [95 %]",
        ];
        out += "\n";
        out += &table(&header, NAMES, report.worst_cases.iter().map(worst).collect(), markdown);
    }
    out += &notes(report);
    out
}

fn table<const N: usize>(header: &[&str; N], names: usize, rows: Vec<Vec<String>>, markdown: bool) -> String {
    let mut table = Table::new();
    table.load_style(if markdown { ASCII_MARKDOWN } else { UTF8_FULL_CONDENSED });
    table.set_header(header.iter().copied());
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(names) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}

fn cells(cell: &Summary) -> Vec<String> {
    let names = [&cell.classifier, &cell.purifier, &cell.threat_model, &cell.attack].map(Clone::clone);
    let mut cells = names.to_vec();
    cells.push(cell.budget());
    if cell.failed.is_some() {
        cells.extend(["", "failed"].map(String::from));
        cells.resize(HEADER.len(), String::new());
        return cells;
    }
    cells.extend([
        percent(cell.clean_accuracy.value),
        with_interval(cell.robust_accuracy),
        format!("{}/{}", cell.broken, cell.clean_correct),
        spread(cell.l2, 2),
        spread(cell.linf, 3),
        cell.refused.to_string(),
        format!("{:.1}", cell.seconds),
        format!("{:.1}", cell.images_per_second),
    ]);
    cells
}

fn worst(worst: &Worst) -> Vec<String> {
    let attacks = std::iter::once("clean".to_string()).chain(worst.attacks.iter().cloned());
    vec![
        worst.classifier.clone(),
        worst.purifier.clone(),
        worst.threat_model.clone(),
        attacks.collect::<Vec<_>>().join(", "),
        worst.budget.clone(),
        with_interval(worst.robust_accuracy),
    ]
}

/// What is to be said of cells, a line each.
pub fn notes(report: &Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| out.extend([text.as_str(), "\n"]);
    let noted = report.cells.iter().filter(|cell| !cell.note.is_empty());
    let said: BTreeSet<String> = noted.map(|cell| format!("{}: {}", cell.purifier, cell.note)).collect();
    said.into_iter().for_each(&mut line);
    for cell in &report.cells {
        let name = cell.name();
        if cell.failed.is_some() {
            continue;
        }
        if !cell.caps.is_empty() {
            let caps = cell
                .caps
                .iter()
                .map(|c| format!("<= {}: {}", short(c.cap), with_interval(c.accuracy)));
            line(format!(
                "{name}: robust % at L2 {}",
                caps.collect::<Vec<_>>().join(", ")
            ));
        }
        if let Some(random) = &cell.random {
            let (majority, ever) = (percent(random.majority), percent(random.ever_wrong));
            line(format!(
                "{name}: over {} draws, {majority} % robust by majority, {ever} % ever wrong",
                random.draws
            ));
        }
        if let Some(substitute) = &cell.substitute {
            let (agreement, of) = (percent(substitute.agreement()), substitute.of);
            line(format!(
                "{name}: the substitute agrees with the black box on {agreement} % of {of} clean images, after {} label queries",
                substitute.queries
            ));
        } else if cell.queries > 0 {
            line(format!("{name}: {} label queries", cell.queries));
        }
    }
    for warning in &report.warnings {
        line(format!("warning: {warning}"));
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}

fn percent(share: f64) -> String {
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

fn spread(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or("-".into(), |s| format!("{:.digits$}, {:.digits$}", s.median, s.max))
}

/// One line a cell.
pub fn csv(report: &Report) -> Result<String> {
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record([
        "classifier",
        "purifier",
        "threat_model",
        "attack",
        "norm",
        "epsilon",
        "samples",
        "clean_accuracy",
        "robust_accuracy",
        "robust_low",
        "robust_high",
        "broken",
        "clean_correct",
        "l2_median",
        "l2_max",
        "linf_median",
        "linf_max",
        "refused",
        "seconds",
        "images_per_second",
        "failed",
    ])?;
    report
        .cells
        .iter()
        .try_for_each(|cell| writer.write_record(record(cell)))?;
    Ok(String::from_utf8(writer.into_inner()?)?)
}

fn record(cell: &Summary) -> Vec<String> {
    let number = |value: Option<f64>| {
        let value = value.filter(|_| cell.failed.is_none());
        value.map(|v| v.to_string()).unwrap_or_default()
    };
    let count = |value: usize| number(Some(value as f64));
    let robust = cell.robust_accuracy;
    vec![
        cell.classifier.clone(),
        cell.purifier.clone(),
        cell.threat_model.clone(),
        cell.attack.clone(),
        cell.norm.to_string(),
        cell.epsilon.map(|epsilon| epsilon.to_string()).unwrap_or_default(),
        count(cell.samples),
        number(Some(cell.clean_accuracy.value)),
        number(Some(robust.value)),
        number(Some(robust.low)),
        number(Some(robust.high)),
        count(cell.broken),
        count(cell.clean_correct),
        number(cell.l2.map(|s| s.median)),
        number(cell.l2.map(|s| s.max)),
        number(cell.linf.map(|s| s.median)),
        number(cell.linf.map(|s| s.max)),
        count(cell.refused),
        number(Some(cell.seconds)),
        number(Some(cell.images_per_second)),
        cell.failed.clone().unwrap_or_default(),
    ]
}
