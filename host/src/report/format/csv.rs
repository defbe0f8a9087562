//! For a spreadsheet: a line a cell and a line a worst case.

use super::parts::{Render, attacks};
use crate::report::contents::Report;
use crate::report::figures::{Share, Summary, Worst};
use anyhow::Result;

/// The format.
pub struct Csv;

impl Render for Csv {
    fn render(&self, report: &Report) -> Result<String> {
        csv(report)
    }
}

/// Columns: those of a cell and of a worst case, by `row`.
const COLUMNS: [&str; 31] = [
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
    "dataset",
    "seed",
    "row",
    "backward",
    "eot",
    "draws",
    "queries",
    "zero_gradients",
    "robust_within_l2_caps",
    "key",
];

/// One line a cell, then one a worst case.
fn csv(report: &Report) -> Result<String> {
    let mut writer = ::csv::Writer::from_writer(vec![]);
    writer.write_record(COLUMNS)?;
    let (cells, worst) = (report.cells.iter().map(cell), report.worst_cases.iter().map(worst));
    for filled in cells.chain(worst) {
        let of = |column: &&str| {
            filled
                .iter()
                .find(|(name, _)| name == column)
                .map(|(_, text)| text.as_str())
        };
        writer.write_record(COLUMNS.iter().map(|column| of(column).unwrap_or_default()))?;
    }
    Ok(String::from_utf8(writer.into_inner()?)?)
}

/// Columns and their texts; the others are empty.
type Line = Vec<(&'static str, String)>;

fn number(value: Option<f64>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn share(share: Option<Share>) -> Line {
    vec![
        ("robust_accuracy", number(share.map(|s| s.value))),
        ("robust_low", number(share.map(|s| s.low))),
        ("robust_high", number(share.map(|s| s.high))),
    ]
}

fn cell(cell: &Summary) -> Line {
    let config = &cell.cell.header.config;
    let mut line = vec![
        ("row", "cell".into()),
        ("classifier", cell.classifier.clone()),
        ("purifier", cell.purifier.clone()),
        ("threat_model", cell.threat_model.clone()),
        ("attack", cell.attack.clone()),
        ("norm", cell.norm.to_string()),
        ("epsilon", number(cell.epsilon)),
        ("failed", cell.failed.clone().unwrap_or_default()),
        ("dataset", cell.dataset.clone()),
        ("seed", cell.seed.to_string()),
        (
            "backward",
            cell.backward.as_ref().map(|rule| rule.used.clone()).unwrap_or_default(),
        ),
        ("eot", cell.eot.to_string()),
        ("draws", config.draws.to_string()),
        ("key", cell.key.clone()),
    ];
    if cell.failed.is_some() {
        return line;
    }
    let caps = cell
        .caps
        .iter()
        .map(|cap| format!("{}={}", cap.cap, cap.accuracy.value));
    line.extend(share(cell.robust_accuracy));
    line.extend([
        ("samples", cell.samples.to_string()),
        ("clean_accuracy", number(cell.clean_accuracy.map(|s| s.value))),
        ("broken", cell.broken.to_string()),
        ("clean_correct", cell.clean_correct.to_string()),
        ("l2_median", number(cell.l2.map(|s| s.median))),
        ("l2_max", number(cell.l2.map(|s| s.max))),
        ("linf_median", number(cell.linf.map(|s| s.median))),
        ("linf_max", number(cell.linf.map(|s| s.max))),
        ("refused", cell.refused.to_string()),
        ("seconds", cell.seconds.to_string()),
        ("images_per_second", number(cell.images_per_second)),
        ("queries", cell.queries.to_string()),
        ("zero_gradients", number(cell.zero_gradients)),
        ("robust_within_l2_caps", caps.collect::<Vec<_>>().join(" ")),
    ]);
    line
}

fn worst(worst: &Worst) -> Line {
    let mut line = vec![
        ("row", "worst case".into()),
        ("classifier", worst.classifier.clone()),
        ("purifier", worst.purifier.clone()),
        ("threat_model", worst.threat_model.clone()),
        ("attack", attacks(worst)),
        ("norm", worst.norm.to_string()),
        ("epsilon", number(worst.epsilon)),
        ("samples", worst.samples.to_string()),
    ];
    line.extend(share(worst.robust_accuracy));
    line
}
