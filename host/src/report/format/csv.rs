//! For a spreadsheet: a line a cell.

use super::parts::Render;
use crate::report::contents::Report;
use crate::report::figures::Summary;
use anyhow::Result;

/// The format.
pub struct Csv;

impl Render for Csv {
    fn render(&self, report: &Report) -> Result<String> {
        csv(report)
    }
}

/// One line a cell.
fn csv(report: &Report) -> Result<String> {
    let mut writer = ::csv::Writer::from_writer(vec![]);
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
        "dataset",
        "seed",
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
        number(cell.clean_accuracy.map(|s| s.value)),
        number(robust.map(|s| s.value)),
        number(robust.map(|s| s.low)),
        number(robust.map(|s| s.high)),
        count(cell.broken),
        count(cell.clean_correct),
        number(cell.l2.map(|s| s.median)),
        number(cell.l2.map(|s| s.max)),
        number(cell.linf.map(|s| s.median)),
        number(cell.linf.map(|s| s.max)),
        count(cell.refused),
        number(Some(cell.seconds)),
        number(cell.images_per_second),
        cell.failed.clone().unwrap_or_default(),
        cell.dataset.clone(),
        cell.seed.to_string(),
    ]
}
