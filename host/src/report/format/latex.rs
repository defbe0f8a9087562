//! For a paper: booktabs, with intervals, one table of cells and one of worst cases.

use super::parts::{Render, notes, percent, robust, worst_case};
use crate::report::contents::Report;
use crate::report::figures::Summary;
use anyhow::Result;

const CELLS: [&str; 8] = [
    "Classifier",
    "Purifier",
    "Threat model",
    "Attack",
    "Budget",
    "Clean (\\%)",
    "Robust (\\%)",
    "$L_2$ median",
];
const WORST: [&str; 6] = [
    "Classifier",
    "Purifier",
    "Threat model",
    "Worst case of",
    "Budget",
    "Robust (\\%)",
];

/// The format.
pub struct Latex;

impl Render for Latex {
    fn render(&self, report: &Report) -> Result<String> {
        let mut out = String::from("% \\usepackage{booktabs}\n");
        if !report.cells.is_empty() {
            let first = &report.cells[0];
            let about = format!(
                "{}, {} samples, seed {}. In brackets: Wilson's 95 % interval over samples; training variance is not covered. L2: of the broken \
                 samples.",
                first.dataset, first.samples, first.seed
            );
            out += &table(&CELLS, "lllllrll", report.cells.iter().map(cells), &about);
        }
        if !report.worst_cases.is_empty() {
            let about = "Per-sample worst case over attacks of one norm and budget, the clean image included.";
            out += "\n";
            out += &table(&WORST, "llllll", report.worst_cases.iter().map(worst_case), about);
        }
        // Warnings belong to the author, and not into the paper unread.
        let said = notes(report);
        let said = said.lines().filter(|line| !line.is_empty());
        said.for_each(|line| out += &format!("% {line}\n"));
        Ok(out)
    }
}

fn table(header: &[&str], columns: &str, rows: impl Iterator<Item = Vec<String>>, caption: &str) -> String {
    let mut out = format!("\\begin{{table}}\n\\centering\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n");
    out += &format!("{} \\\\\n\\midrule\n", header.join(" & "));
    for row in rows {
        let cells: Vec<String> = row.iter().map(|text| escaped(text)).collect();
        out += &format!("{} \\\\\n", cells.join(" & "));
    }
    out += &format!(
        "\\bottomrule\n\\end{{tabular}}\n\\caption{{{}}}\n\\end{{table}}\n",
        escaped(caption)
    );
    out
}

/// Text as LaTeX prints it.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '|' => out += "\\textbar{}",
            '<' => out += "\\textless{}",
            '>' => out += "\\textgreater{}",
            '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn cells(cell: &Summary) -> Vec<String> {
    let failed = cell.failed.is_some();
    vec![
        cell.classifier.clone(),
        cell.purifier.clone(),
        cell.threat_model.clone(),
        cell.attack_and_rule(),
        cell.budget(),
        cell.clean_accuracy.map_or("--".into(), |share| percent(share.value)),
        if failed {
            "failed".into()
        } else {
            robust(cell.robust_accuracy)
        },
        cell.l2.map_or("--".into(), |l2| format!("{:.2}", l2.median)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_latex_would_read_as_a_command_is_escaped() {
        assert_eq!(
            escaped("white_box & 5 % of $x^2$ {a}\\b"),
            "white\\_box \\& 5 \\% of \\$x\\textasciicircum{}2\\$ \\{a\\}\\textbackslash{}b"
        );
    }
}
