//! For a terminal: a table a defence, as many columns as the terminal has room for.

use super::parts::{LEGEND, Render, attacks, figures, notes, robust};
use crate::report::contents::Report;
use crate::report::figures::{Summary, Worst};
use anyhow::Result;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle};

/// Columns that are always shown; the first three are names.
const COLUMNS: [&str; 6] = ["threat", "attack", "budget", "clean %", "robust % [95 %]", "broken"];
const NAMES: usize = 3;
/// Columns that are shown where there is room, the most telling first.
const MORE: [&str; 5] = ["L2 median, max", "Linf median, max", "refused", "s", "images/s"];
/// Widest attacks that are not wrapped, on a wide terminal and on narrow ones.
const ATTACK: [usize; 3] = [40, 24, 16];

/// The table; `width` in characters, any where absent.
pub struct Table {
    /// Columns of the terminal.
    pub width: Option<usize>,
}

/// Rows that share their heading.
struct Section<'a> {
    heading: String,
    cells: Vec<&'a Summary>,
    worst: Vec<&'a Worst>,
}

impl Render for Table {
    fn render(&self, report: &Report) -> Result<String> {
        let mut out = String::new();
        let mut left_out = 0;
        for section in sections(report) {
            let (text, less) = self.section(&section);
            out += &format!("{}\n{text}\n\n", section.heading);
            left_out = left_out.max(less);
        }
        if !report.cells.is_empty() {
            out += LEGEND;
            out += "\n";
        }
        if left_out > 0 {
            let columns = MORE[MORE.len() - left_out..].join("; ");
            out += &format!("Left out, for the terminal is narrow: {columns}. --format markdown has all columns.\n");
        }
        Ok(out + &notes(report))
    }
}

impl Table {
    /// The widest table that fits, and how many columns it lacks.
    fn section(&self, section: &Section) -> (String, usize) {
        let wide = (0..=MORE.len()).rev().map(|more| (more, ATTACK[0]));
        for (more, attack) in wide.chain(ATTACK[1..].iter().map(|attack| (0, *attack))) {
            let table = table(section, more, attack);
            let text = table.to_string();
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            if self.width.is_none_or(|width| widest <= width) {
                return (text, MORE.len() - more);
            }
        }
        let mut narrow = table(section, 0, ATTACK[2]);
        narrow.set_content_arrangement(ContentArrangement::Dynamic);
        narrow.set_width(
            self.width
                .map_or(u16::MAX, |width| u16::try_from(width).unwrap_or(u16::MAX)),
        );
        (narrow.to_string(), MORE.len())
    }
}

/// Cells by defence, dataset and number of samples, in the order they come.
fn sections(report: &Report) -> Vec<Section<'_>> {
    let mut sections: Vec<Section> = vec![];
    for cell in &report.cells {
        let samples = match &cell.failed {
            Some(_) => cell.cell.header.samples,
            None => cell.samples,
        };
        let dataset = match cell.dataset.as_str() {
            "" => "unnamed images",
            dataset => dataset,
        };
        let heading = format!("{}: {dataset}, {samples} samples, seed {}", cell.defence(), cell.seed);
        let worst = report.worst_cases.iter().filter(|worst| worst.first == cell.key);
        match sections.iter_mut().find(|section| section.heading == heading) {
            Some(section) => {
                section.cells.push(cell);
                section.worst.extend(worst);
            }
            None => sections.push(Section {
                heading,
                cells: vec![cell],
                worst: worst.collect(),
            }),
        }
    }
    sections
}

fn table(section: &Section, more: usize, attack: usize) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY.row_separator(LineStyle::none()));
    table.set_header(COLUMNS.iter().chain(&MORE[..more]));
    table.add_rows(section.cells.iter().map(|cell| cells(cell, more, attack)));
    table.add_rows(section.worst.iter().map(|case| worst(case, more, attack)));
    for column in table.column_iter_mut() {
        column.set_padding((1, 0));
    }
    for column in table.column_iter_mut().skip(NAMES) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn cells(cell: &Summary, more: usize, attack: usize) -> Vec<String> {
    let mut cells = vec![
        cell.threat_model.clone(),
        folded(&cell.attack_and_rule(), attack),
        cell.budget(),
    ];
    match figures(cell) {
        Some(figures) => cells.extend(figures),
        None => cells.extend(["", "failed"].map(String::from)),
    }
    cells.resize(COLUMNS.len() + more, String::new());
    cells
}

fn worst(worst: &Worst, more: usize, attack: usize) -> Vec<String> {
    let mut cells = vec![
        worst.threat_model.clone(),
        folded(&format!("worst case of {}", attacks(worst)), attack),
        worst.budget.clone(),
        String::new(),
        robust(worst.robust_accuracy),
    ];
    cells.resize(COLUMNS.len() + more, String::new());
    cells
}

/// A text on lines of that many characters, broken behind commas, colons and spaces.
fn folded(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for part in text.split_inclusive([',', ':', ' ']) {
        let last = lines.len() - 1;
        match lines[last].chars().count() + part.chars().count() > width && !lines[last].is_empty() {
            true => lines.push(part.into()),
            false => lines[last] += part,
        }
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}
