//! What is drawn as curves: accuracy against the budget, against L2, and against the number of images asked about.

use super::charts::{Chart, Series};
use crate::report::contents::Report;
use crate::report::figures::Summary;
use crate::results::Row;
use advae_abi::info::NormKind;

/// Lines a chart, at the most.
const LINES: usize = 8;

/// All charts that the cells have the data for.
pub fn all(report: &Report) -> Vec<Chart> {
    let mut charts = vec![];
    for norm in [NormKind::Linf, NormKind::L2] {
        charts.extend(charted(
            &format!("Accuracy against the {norm} budget"),
            &format!("epsilon, {norm}"),
            budgets(report, norm),
        ));
    }
    let nearest = report
        .cells
        .iter()
        .filter(|cell| cell.epsilon.is_none() && cell.norm == NormKind::L2);
    charts.extend(charted(
        "Accuracy against the L2 distance",
        "L2 distance that an image may have",
        nearest.filter_map(|cell| curve(cell, |row| row.l2)),
    ));
    let by_queries = report
        .cells
        .iter()
        .filter(|cell| cell.asked.is_some() && without_gradients(cell));
    charts.extend(charted(
        "Accuracy against queries",
        "images that the attack asked about",
        by_queries.filter_map(|cell| curve(cell, |row| Some(row.asked as f64))),
    ));
    charts
}

/// Charts of so many lines that they can be told apart.
fn charted(title: &str, x: &str, series: impl IntoIterator<Item = Series>) -> Vec<Chart> {
    let mut charts: Vec<Chart> = vec![];
    for series in series {
        match charts.last_mut() {
            Some(chart) if chart.series.len() < LINES => chart.series.push(series),
            _ => charts.push(Chart {
                title: title.into(),
                x: x.into(),
                series: vec![series],
            }),
        }
    }
    charts
}

/// A line for every attack that was run with several budgets; it begins at the clean accuracy.
fn budgets(report: &Report, norm: NormKind) -> Vec<Series> {
    // In the order of the table.
    let mut groups: Vec<(String, Vec<&Summary>)> = vec![];
    for cell in report
        .cells
        .iter()
        .filter(|cell| cell.norm == norm && cell.epsilon.is_some())
    {
        // The same cell but for its budget.
        let mut config = cell.cell.header.config.clone();
        config.epsilon = None;
        config.attack.config.remove("epsilon");
        if let Some(stage) = &mut config.stage {
            stage.after = None;
        }
        let key = config.key();
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, cells)) => cells.push(cell),
            None => groups.push((key, vec![cell])),
        }
    }
    let several = |cells: &Vec<&Summary>| {
        let mut all: Vec<u64> = cells.iter().filter_map(|cell| Some(cell.epsilon?.to_bits())).collect();
        all.sort_unstable();
        all.dedup();
        all.len() > 1
    };
    let line = |mut cells: Vec<&Summary>| {
        cells.sort_by(|a, b| a.epsilon.partial_cmp(&b.epsilon).unwrap_or(std::cmp::Ordering::Equal));
        let first = cells.first()?;
        let clean = first.clean_accuracy?;
        let begins = first.epsilon != Some(0.);
        let clean = begins.then_some((0., clean));
        let rest = cells
            .iter()
            .filter_map(|cell| Some((cell.epsilon?, cell.robust_accuracy?)));
        let (mut points, mut band) = (vec![], vec![]);
        for (epsilon, share) in clean.into_iter().chain(rest) {
            points.push([epsilon, 100. * share.value]);
            band.push([100. * share.low, 100. * share.high]);
        }
        let name = format!(
            "{}, {}, {}",
            first.defence(),
            first.threat_model,
            first.cell.header.attack.plugin
        );
        Some(Series {
            name,
            points,
            band,
            steps: false,
        })
    };
    groups
        .into_iter()
        .map(|(_, cells)| cells)
        .filter(several)
        .filter_map(line)
        .collect()
}

/// Accuracy as a function of how far an attack may go: it falls where a sample is broken.
fn curve(cell: &Summary, how_far: impl Fn(&Row) -> Option<f64>) -> Option<Series> {
    let rows = || cell.cell.rows.values();
    let all = cell.samples as f64;
    let clean = rows().filter(|row| row.clean_correct).count();
    let mut broken: Vec<f64> = rows().filter(|row| row.broken()).filter_map(how_far).collect();
    broken.sort_by(f64::total_cmp);
    broken.last()?;
    let mut points = vec![[0., 100. * clean as f64 / all]];
    for (i, at) in broken.iter().enumerate() {
        points.push([*at, 100. * (clean - i - 1) as f64 / all]);
    }
    // A thousand corners are more than a screen has columns.
    if points.len() > 400 {
        let every = points.len().div_ceil(400);
        let end = points.len() - 1;
        points = (points.into_iter().enumerate())
            .filter(|(i, _)| i % every == 0 || *i == end)
            .map(|(_, p)| p)
            .collect();
    }
    let budget = cell.epsilon.map_or(String::new(), |_| format!(", {}", cell.budget()));
    let name = format!(
        "{}, {}, {}{budget}",
        cell.defence(),
        cell.threat_model,
        cell.attack_and_rule()
    );
    Some(Series {
        name,
        points,
        band: vec![],
        steps: true,
    })
}

fn without_gradients(cell: &Summary) -> bool {
    cell.cell.rows.values().all(|row| row.gradients == 0)
}
