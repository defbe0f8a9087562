//! Figures of a cell, and the worst case over cells.

use crate::experiment::{CellOutcome, l2_caps};
use crate::report::stats::{max, median, wilson, worst_case};
use crate::results::{Row, Substitute};
use advae_abi::info::NormKind;
use serde::Serialize;
use std::collections::HashSet;

/// A share of samples with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The share.
    pub value: f64,
    /// Lower end of Wilson's interval.
    pub low: f64,
    /// Upper end of Wilson's interval.
    pub high: f64,
}

impl Share {
    /// Mean of values between 0 and 1.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let (n, sum) = values.into_iter().fold((0, 0.), |(n, sum), v| (n + 1, sum + v));
        let (low, high) = wilson(sum, n);
        Self {
            value: if n == 0 { 0. } else { sum / n as f64 },
            low,
            high,
        }
    }
}

/// Median and largest distance of the images that broke a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64> + Clone) -> Option<Self> {
        Some(Self {
            median: median(values.clone())?,
            max: max(values)?,
        })
    }
}

/// Accuracy against an attack without a budget, counting only what it broke within a cap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CapAccuracy {
    /// L2 cap.
    pub cap: f64,
    /// Share that is robust within it.
    pub accuracy: Share,
}

/// Robust accuracy of a random pipeline in two other readings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DrawSummary {
    /// Scoring draws.
    pub draws: u64,
    /// Share of samples that most draws classify correctly.
    pub majority: f64,
    /// Share of samples that at least one draw misclassifies.
    pub ever_wrong: f64,
}

/// Figures of one cell.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Key in the results file.
    pub key: String,
    /// Name in the table.
    pub classifier: String,
    /// Name in the table.
    pub purifier: String,
    /// Name in the table.
    pub threat_model: String,
    /// Name in the table.
    pub attack: String,
    /// What the purifier says a reader must know of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Norm of the attack.
    pub norm: NormKind,
    /// Budget; absent: none.
    pub epsilon: Option<f64>,
    /// Samples scored.
    pub samples: usize,
    /// Share of clean images that are classified correctly.
    pub clean_accuracy: Share,
    /// Share of scored images that are classified correctly.
    pub robust_accuracy: Share,
    /// Samples that were correct and that the attack broke.
    pub broken: usize,
    /// Samples that were correct.
    pub clean_correct: usize,
    /// L2 distances of the broken samples.
    pub l2: Option<Spread>,
    /// Linf distances of the broken samples.
    pub linf: Option<Spread>,
    /// Images that were refused.
    pub refused: usize,
    /// One of the reasons.
    pub refusal: Option<String>,
    /// Accuracy within L2 caps, for an L2 attack without a budget.
    pub caps: Vec<CapAccuracy>,
    /// For a random pipeline.
    pub random: Option<DrawSummary>,
    /// Draws that each gradient is the mean of.
    pub eot: u64,
    /// Label queries.
    pub queries: u64,
    /// What was attacked in place of the whole model.
    pub substitute: Option<Substitute>,
    /// Share of input gradients that were zero without reason.
    pub zero_gradients: Option<f64>,
    /// Time it took.
    pub seconds: f64,
    /// Samples a second.
    pub images_per_second: f64,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// Oracle passes a sample may need.
    #[serde(skip)]
    pub passes: u64,
    /// The rows.
    #[serde(skip)]
    pub rows: Vec<Row>,
}

impl Summary {
    /// Of what became of a cell.
    pub fn of(outcome: &CellOutcome) -> Self {
        let (header, rows) = (&outcome.header, &outcome.rows);
        let broken = || rows.iter().filter(|row| row.broken());
        let config = &header.config;
        let seconds: f64 = rows.iter().map(|row| row.seconds).sum();
        let uncapped_l2 = config.epsilon.is_none() && config.norm == NormKind::L2;
        let caps = if uncapped_l2 { l2_caps(outcome.shape) } else { &[] };
        Self {
            key: header.key.clone(),
            classifier: header.classifier.clone(),
            purifier: header.purifier.clone(),
            threat_model: header.threat_model.clone(),
            attack: header.attack.clone(),
            note: header.note.clone(),
            norm: config.norm,
            epsilon: config.epsilon,
            samples: rows.len(),
            clean_accuracy: Share::of(rows.iter().map(Row::clean_share)),
            robust_accuracy: Share::of(rows.iter().map(Row::robust_share)),
            broken: broken().count(),
            clean_correct: rows.iter().filter(|row| row.clean_correct).count(),
            l2: Spread::of(broken().filter_map(|row| row.l2)),
            linf: Spread::of(broken().filter_map(|row| row.linf)),
            refused: rows.iter().filter(|row| row.refused.is_some()).count(),
            refusal: rows.iter().find_map(|row| row.refused.clone()),
            caps: caps.iter().map(|cap| within(rows, *cap)).collect(),
            random: (config.draws > 1).then(|| draws(rows, config.draws)),
            eot: config.eot,
            queries: outcome.queries,
            substitute: outcome.substitute,
            zero_gradients: outcome.zero_gradients,
            seconds,
            images_per_second: if seconds > 0. { rows.len() as f64 / seconds } else { 0. },
            failed: outcome.error.clone(),
            passes: outcome.passes,
            rows: rows.clone(),
        }
    }

    /// The cell in a sentence.
    pub fn name(&self) -> String {
        format!(
            "{} + {}, {}, {}",
            self.classifier, self.purifier, self.threat_model, self.attack
        )
    }

    /// What went wrong: the cell failed, or images were refused.
    pub fn complaint(&self) -> Option<String> {
        let refused = || {
            let (count, reason) = (self.refused, self.refusal.as_ref()?);
            Some(format!(
                "{count} images refused and scored as the clean ones: {reason}: mend the attack"
            ))
        };
        let what = self.failed.clone().or_else(refused)?;
        Some(format!("{}: {what}", self.name()))
    }

    /// Whether two cells differ in no more than the attack.
    pub fn same_defence(&self, other: &Self) -> bool {
        let of = |s: &Self| (s.classifier.clone(), s.purifier.clone(), s.threat_model.clone());
        of(self) == of(other)
    }

    /// `Linf 0.3`, or `L2 uncapped`.
    pub fn budget(&self) -> String {
        self.epsilon.map_or_else(
            || format!("{} uncapped", self.norm),
            |epsilon| format!("{} {}", self.norm, short(epsilon)),
        )
    }
}

/// A number without a tail of digits.
pub fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

fn within(rows: &[Row], cap: f64) -> CapAccuracy {
    let robust = |row: &Row| match row.l2 {
        Some(l2) if l2 <= cap => row.robust_share(),
        _ => row.clean_share(),
    };
    CapAccuracy {
        cap,
        accuracy: Share::of(rows.iter().map(robust)),
    }
}

fn draws(rows: &[Row], draws: u64) -> DrawSummary {
    let mean = |of: fn(&Row) -> bool| Share::of(rows.iter().map(|row| f64::from(u8::from(of(row))))).value;
    DrawSummary {
        draws,
        majority: mean(|row| row.robust),
        ever_wrong: mean(|row| row.robust_share() < 1.),
    }
}

/// Robust accuracy under every attack of one norm and budget, the clean image included.
#[derive(Clone, Debug, Serialize)]
pub struct Worst {
    /// Name in the table.
    pub classifier: String,
    /// Name in the table.
    pub purifier: String,
    /// Name in the table.
    pub threat_model: String,
    /// The attacks.
    pub attacks: Vec<String>,
    /// Norm and budget.
    pub budget: String,
    /// Share of samples that no attack broke.
    pub robust_accuracy: Share,
}

/// The worst case of every defence, norm and budget. Failed cells and attacks without a budget never enter it.
pub fn worst_cases(cells: &[Summary]) -> Vec<Worst> {
    let enters = |cell: &&Summary| cell.failed.is_none() && cell.epsilon.is_some() && cell.samples > 0;
    let mut seen = HashSet::new();
    let capped: Vec<&Summary> = cells.iter().filter(enters).collect();
    let mut worst = vec![];
    for first in &capped {
        let same = |cell: &&&Summary| cell.same_defence(first) && cell.budget() == first.budget();
        let group: Vec<&Summary> = capped.iter().filter(same).copied().collect();
        if group.iter().any(|cell| !seen.insert(cell.key.clone())) {
            continue;
        }
        let clean: Vec<f64> = first.rows.iter().map(Row::clean_share).collect();
        let attacked = group
            .iter()
            .map(|cell| cell.rows.iter().map(Row::robust_share).collect());
        let columns: Vec<Vec<f64>> = std::iter::once(clean).chain(attacked).collect();
        worst.push(Worst {
            classifier: first.classifier.clone(),
            purifier: first.purifier.clone(),
            threat_model: first.threat_model.clone(),
            attacks: group.iter().map(|cell| cell.attack.clone()).collect(),
            budget: first.budget(),
            robust_accuracy: Share::of(worst_case(&columns)),
        });
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::row;

    #[test]
    fn shares_carry_their_interval() {
        let share = Share::of([1., 0., 1., 1.]);
        assert_eq!(share.value, 0.75);
        assert!(share.low < 0.75 && share.high > 0.75);
    }

    #[test]
    fn a_cap_forgives_what_was_broken_beyond_it() {
        let mut rows = vec![
            row("c", 0, true, false),
            row("c", 1, true, false),
            row("c", 2, false, false),
        ];
        rows[1].l2 = Some(2.5);
        let accuracy = |cap| within(&rows, cap).accuracy.value;
        assert_eq!(accuracy(1.0), 2. / 3.);
        assert_eq!(accuracy(1.5), 1. / 3.);
        assert_eq!(accuracy(3.0), 0.);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            (short(0.3), short(2.), short(8. / 255.)),
            ("0.3".into(), "2".into(), "0.0314".into())
        );
    }
}
