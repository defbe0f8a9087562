//! For a document: all columns, one table.

use super::parts::{LEGEND, Render, figures, notes, worst_case};
use crate::report::contents::Report;
use crate::report::figures::{Summary, Worst};
use anyhow::Result;

const CELLS: [&str; 16] = [
    "classifier",
    "purifier",
    "threat model",
    "attack",
    "backward",
    "budget",
    "clean %",
    "robust % [95 %]",
    "broken/correct",
    "L2 median, max",
    "Linf median, max",
    "refused",
    "s",
    "images/s",
    "dataset, seed",
    "samples",
];
const WORST: [&str; 7] = [
    "classifier",
    "purifier",
    "threat model",
    "per-sample worst case of",
    "budget",
    "robust % [95 %]",
    "samples",
];

/// The format.
pub struct Markdown;

impl Render for Markdown {
    fn render(&self, report: &Report) -> Result<String> {
        let mut out = String::new();
        if !report.cells.is_empty() {
            out += &table(&CELLS, report.cells.iter().map(cells));
            out += &format!("\n{LEGEND}\n");
        }
        if !report.worst_cases.is_empty() {
            out += "\n";
            out += &table(&WORST, report.worst_cases.iter().map(worst));
        }
        Ok(out + &notes(report))
    }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| {
        format!(
            "| {} |\n",
            cells.iter().map(|c| escaped(c)).collect::<Vec<_>>().join(" | ")
        )
    };
    let mut out = line(&header.iter().map(|text| text.to_string()).collect::<Vec<_>>());
    out += &format!("|{}\n", "---|".repeat(header.len()));
    rows.for_each(|row| out += &line(&row));
    out
}

/// A cell's text cannot end its cell.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn cells(cell: &Summary) -> Vec<String> {
    let names = [&cell.classifier, &cell.purifier, &cell.threat_model, &cell.attack].map(Clone::clone);
    let mut cells = names.to_vec();
    cells.push(cell.backward.as_ref().map_or("-".into(), |rule| rule.used.clone()));
    cells.push(cell.budget());
    match figures(cell) {
        Some(figures) => cells.extend(figures),
        None => cells.extend(["", "failed", "", "", "", "", "", ""].map(String::from)),
    }
    cells.push(format!("{}, {}", cell.dataset, cell.seed));
    cells.push(cell.samples.to_string());
    cells
}

fn worst(worst: &Worst) -> Vec<String> {
    let mut cells = worst_case(worst);
    cells.push(worst.samples.to_string());
    cells
}
