//! Confusion matrices, and which images harm which defence.

use crate::report::contents::Report;
use crate::report::figures::Summary;
use advae_abi::info::Target;
use serde::Serialize;
use std::collections::BTreeMap;

/// Classes that a matrix has at most.
const CLASSES: usize = 20;

/// Named rows and columns of shares.
#[derive(Serialize)]
pub struct Matrix {
    title: String,
    columns: Vec<String>,
    rows: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    cells: Vec<Cell>,
}

#[derive(Serialize)]
struct Cell {
    text: String,
    /// How dark it is, 0 to 1.
    share: Option<f64>,
}

/// What the images of each cell are taken for.
pub fn confusions(report: &Report) -> Vec<Matrix> {
    report.cells.iter().filter_map(confusion).collect()
}

/// A share as a page writes it.
fn shade(share: f64) -> Option<f64> {
    Some((share * 100.).round() / 100.)
}

fn confusion(cell: &Summary) -> Option<Matrix> {
    let rows = || cell.cell.rows.values();
    cell.robust_accuracy?;
    let classes = rows()
        .map(|row| row.label.max(row.adversarial_prediction) as usize + 1)
        .max()?;
    if classes > CLASSES {
        return None;
    }
    let line = |label: usize| {
        let of_class = || rows().filter(|row| row.label as usize == label);
        let all = of_class().count();
        let share = |class: usize| {
            let taken = of_class()
                .filter(|row| row.adversarial_prediction as usize == class)
                .count();
            match taken {
                0 => Cell {
                    text: String::new(),
                    share: None,
                },
                _ => {
                    let share = taken as f64 / all as f64;
                    Cell {
                        text: format!("{:.0}", 100. * share),
                        share: shade(share),
                    }
                }
            }
        };
        Line {
            name: label.to_string(),
            cells: (0..classes).map(share).collect(),
        }
    };
    Some(Matrix {
        title: format!("{}, {}", cell.name(), cell.budget()),
        columns: (0..classes).map(|class| class.to_string()).collect(),
        rows: (0..classes).map(line).collect(),
    })
}

/// For each attack, accuracy by what its images were crafted on and by what they were scored on.
pub fn transfers(report: &Report) -> Vec<Matrix> {
    let mut by_attack: BTreeMap<String, Vec<&Summary>> = BTreeMap::new();
    for cell in report
        .cells
        .iter()
        .filter(|cell| cell.robust_accuracy.is_some() && cell.epsilon.is_some())
    {
        by_attack
            .entry(format!("{}, {}", cell.attack, cell.budget()))
            .or_default()
            .push(cell);
    }
    let travels = |cells: &&Vec<&Summary>| cells.iter().any(|cell| origin(cell) != cell.defence());
    (by_attack.iter())
        .filter(|(_, cells)| travels(cells))
        .map(|(title, cells)| transfer(title, cells))
        .collect()
}

/// What the images of a cell were crafted on.
fn origin(cell: &Summary) -> String {
    match (&cell.crafted_on, cell.cell.header.target, cell.substitute) {
        (Some(origin), ..) => origin.clone(),
        (None, _, Some(_)) => "a substitute".into(),
        (None, Some(Target::Classifier), _) => cell.classifier.clone(),
        _ => cell.defence(),
    }
}

fn transfer(title: &str, cells: &[&Summary]) -> Matrix {
    let (mut from, mut to): (Vec<String>, Vec<String>) = (vec![], vec![]);
    for cell in cells {
        for (list, name) in [(&mut from, origin(cell)), (&mut to, cell.defence())] {
            if !list.contains(&name) {
                list.push(name);
            }
        }
    }
    let line = |row: &String| {
        let cell = |column: &String| {
            let here = cells
                .iter()
                .filter(|cell| origin(cell) == *row && cell.defence() == *column);
            // The most harmful of several threat models or backward rules.
            match here.map(|cell| cell.robust()).reduce(f64::min) {
                Some(robust) => Cell {
                    text: format!("{:.1}", 100. * robust),
                    share: shade(1. - robust),
                },
                None => Cell {
                    text: String::new(),
                    share: None,
                },
            }
        };
        Line {
            name: row.clone(),
            cells: to.iter().map(cell).collect(),
        }
    };
    Matrix {
        title: title.into(),
        rows: from.iter().map(line).collect(),
        columns: to.clone(),
    }
}
