//! What a person reads of a run.

mod figures;
mod format;
mod render;
mod stats;
mod warnings;

pub use figures::{CapAccuracy, DrawSummary, Share, Spread, Summary, Worst, worst_cases};
pub use format::Format;
pub use render::with_interval;
pub use warnings::Warning;

use crate::terminal::console;
use anyhow::Result;
use serde::Serialize;

/// Cells, worst cases and warnings.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One a cell.
    pub cells: Vec<Summary>,
    /// Per-sample worst cases within one norm and budget.
    pub worst_cases: Vec<Worst>,
    /// What to look at.
    pub warnings: Vec<String>,
}

impl Report {
    /// Of these cells, compared with one another.
    pub fn new(cells: Vec<Summary>) -> Self {
        let warnings = Warning::all(&cells).iter().map(Warning::to_string).collect();
        Self {
            worst_cases: worst_cases(&cells),
            warnings,
            cells,
        }
    }

    /// What went wrong, a line a cell: failures and refused images.
    pub fn complaints(&self) -> Vec<String> {
        self.cells.iter().filter_map(Summary::complaint).collect()
    }

    /// Prints the report; notes and warnings go to stderr where the format has no place for them.
    ///
    /// # Errors
    /// Where it cannot be serialised, or nothing can be printed.
    pub fn print(&self, format: Format) -> Result<()> {
        console::print(&self.render(format)?)?;
        if format == Format::Csv {
            eprint!("{}", render::notes(self));
        }
        Ok(())
    }

    /// The report as text.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn render(&self, format: Format) -> Result<String> {
        match format {
            Format::Table => Ok(render::text(self, false)),
            Format::Markdown => Ok(render::text(self, true)),
            Format::Csv => render::csv(self),
            Format::Json => Ok(serde_json::to_string_pretty(self)? + "\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::CellOutcome;
    use crate::results::tests::{header, row};
    use advae_abi::info::NormKind;

    fn outcome(attack: &str, norm: NormKind, epsilon: Option<f64>, verdicts: &[(bool, bool)]) -> CellOutcome {
        let header = header(attack, norm, epsilon);
        let rows = verdicts
            .iter()
            .enumerate()
            .map(|(i, (clean, robust))| row(&header.key, i as u64, *clean, *robust));
        CellOutcome {
            rows: rows.collect(),
            header,
            error: None,
            zero_gradients: Some(0.),
            queries: 0,
            substitute: None,
            passes: 40,
            shape: [1, 28, 28],
        }
    }

    fn report() -> Report {
        let linf = NormKind::Linf;
        let fgsm = outcome(
            "fgsm",
            linf,
            Some(0.3),
            &[(true, true), (true, true), (true, false), (false, false)],
        );
        let pgd = outcome(
            "pgd steps=100",
            linf,
            Some(0.3),
            &[(true, true), (true, false), (true, true), (false, true)],
        );
        let mut cw = outcome(
            "cw",
            NormKind::L2,
            None,
            &[(true, false), (true, false), (true, false), (false, false)],
        );
        cw.rows[1].l2 = Some(2.25);
        cw.rows[2].refused = Some("a pixel is NaN".into());
        cw.rows[2].robust = true;
        let mut broken = outcome("bad", linf, Some(0.3), &[(true, true)]);
        broken.error = Some("attack 'bad': plugin panicked: boom".into());
        let outcomes = [fgsm, pgd, cw, broken];
        Report::new(outcomes.iter().map(Summary::of).collect())
    }

    #[test]
    fn the_table_as_a_person_sees_it() {
        insta::assert_snapshot!(report().render(Format::Table).unwrap());
    }

    #[test]
    fn what_went_wrong_is_told_a_line_a_cell() {
        insta::assert_snapshot!(report().complaints().join("\n"));
    }

    #[test]
    fn the_table_in_a_document() {
        insta::assert_snapshot!(report().render(Format::Markdown).unwrap());
    }

    #[test]
    fn the_table_in_a_spreadsheet() {
        insta::assert_snapshot!(report().render(Format::Csv).unwrap());
    }

    #[test]
    fn the_report_for_a_program() {
        let json: serde_json::Value = serde_json::from_str(&report().render(Format::Json).unwrap()).unwrap();
        assert_eq!(json["cells"].as_array().unwrap().len(), 4);
        assert_eq!(json["worst_cases"][0]["robust_accuracy"]["value"], 0.25);
        assert_eq!(json["cells"][3]["failed"], "attack 'bad': plugin panicked: boom");
    }
}
