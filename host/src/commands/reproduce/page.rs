//! A table as a page of Markdown: ours beside the paper's.

use super::tables::{Column, Table};
use crate::report::{Share, Summary, with_interval};
use crate::terminal::version;
use advae_abi::info::NormKind;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Where and how a table was measured.
pub struct Run {
    date: String,
    commit: String,
    machine: String,
    command: String,
    data: String,
}

impl Run {
    /// This process, now.
    pub fn here(samples: usize, seed: u64, dataset: &str, device: &str) -> Self {
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
            commit: version::COMMIT.into(),
            machine: version::machine() + &card(device),
            command: version::command(),
            data: format!("{samples} images of {dataset}, seed {seed}"),
        }
    }
}

/// The graphics card of `cuda:N`, as its driver names it. The host has no CUDA to ask.
fn card(device: &str) -> String {
    if device == "cpu" {
        return String::new();
    }
    let cards = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten();
    let model = |text: String| {
        Some(
            text.lines()
                .find_map(|line| line.strip_prefix("Model:"))?
                .trim()
                .to_owned(),
        )
    };
    let names: BTreeSet<String> = cards
        .flatten()
        .filter_map(|card| model(std::fs::read_to_string(card.path().join("information")).ok()?))
        .collect();
    // Which of several kinds N is, the driver's folder does not say.
    match names.len() {
        1 => format!(", {device} ({})", names.into_iter().collect::<String>()),
        _ => format!(", {device}"),
    }
}

/// The page so far.
pub struct Page<'a> {
    table: &'a Table,
    run: Run,
    lines: Vec<String>,
    notes: Vec<String>,
}

impl<'a> Page<'a> {
    /// A page without lines.
    pub fn new(table: &'a Table, run: Run) -> Self {
        Self {
            table,
            run,
            lines: vec![],
            notes: vec![],
        }
    }

    /// Adds the cells of a column, found by their attacks' configurations; an attack without a cell was not measured and has
    /// no line. `costly`: fewer images and attacks were run than for the others.
    pub fn add(&mut self, column: &Column, costly: bool, cells: &[Summary]) {
        if let Some(first) = cells.iter().find(|cell| cell.failed.is_none()) {
            if costly {
                self.notes.push(format!(
                    "- {}: {} images, each scored once. Only the first attacks of the list were run, because this defence is costly.",
                    column.title, first.samples
                ));
            }
            for (what, note) in first.notes() {
                // The dataset is the same in all columns.
                let about = if what == first.dataset { what } else { column.title };
                let said = format!("- {about}: {note}.");
                if !self.notes.contains(&said) {
                    self.notes.push(said);
                }
            }
            if let Some(clean) = first.clean_accuracy {
                self.line(column, "none", clean, column.paper[0], "");
            }
        }
        for attack in self.table.attacks {
            let Some(cell) = cells.iter().find(|cell| attack.is(&cell.cell.header.config)) else {
                continue;
            };
            let paper = attack.paper.and_then(|i| column.paper[i]);
            match (&cell.failed, cell.robust_accuracy) {
                (None, Some(robust)) => self.line(column, attack.title, robust, paper, &detail(cell)),
                (reason, _) => self.failure(column, attack.title, paper, reason.as_deref().unwrap_or("no samples")),
            }
            self.note(column, cell);
        }
        if let Some((names, nearest)) = nearest(cells)
            && let Some(robust) = nearest.robust_accuracy
        {
            self.line(column, &format!("nearest of {names}"), robust, None, &detail(&nearest));
        }
    }

    /// A cell without figures.
    fn failure(&mut self, column: &Column, attack: &str, paper: Option<f64>, reason: &str) {
        self.push([column.title, attack, "failed", &figure(paper), "-", ""]);
        self.notes
            .push(format!("- {}, {attack}: failed: {reason}", column.title));
    }

    /// Notes that a column could not be measured.
    pub fn miss(&mut self, column: &Column, error: &str) {
        self.notes.push(format!("- {}: not measured: {error}", column.title));
    }

    fn line(&mut self, column: &Column, attack: &str, ours: Share, paper: Option<f64>, detail: &str) {
        let difference = paper.map_or("-".into(), |paper| format!("{:+.1}", 100. * ours.value - paper));
        self.push([
            column.title,
            attack,
            &with_interval(ours),
            &figure(paper),
            &difference,
            detail,
        ]);
    }

    fn push(&mut self, cells: [&str; 6]) {
        let cells = cells.map(|cell| cell.replace('|', "\\|"));
        self.lines.push(format!("| {} |", cells.join(" | ")));
    }

    /// What the black box's attacker paid and got: once, since the attacks share a substitute.
    fn note(&mut self, column: &Column, cell: &Summary) {
        if let Some(substitute) = &cell.substitute {
            let note = format!(
                "- {}: {} label queries; the substitute agrees with the black box on {:.1} % of {} clean images.",
                column.title,
                substitute.queries,
                100. * substitute.agreement(),
                substitute.of
            );
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }

    /// The page as Markdown.
    pub fn text(&self) -> String {
        let Run {
            date,
            commit,
            machine,
            command,
            data,
        } = &self.run;
        let mut text = format!(
            "{}\n\nMeasured {date} at {commit}, on {machine}, by `{command}`. Data: {data}, or fewer images if a note below the \
             table says so. The table gives accuracy in percent, with Wilson's 95 % interval over samples. It also gives the paper's \
             figure, and the difference in points. Attacks are given the true labels, unless the row says otherwise.\n\n",
            heading(self.table)
        );
        text += "| defence | attack | ours [95 %] | paper | difference | distances |\n";
        text += "|---|---|---|---|---|---|\n";
        self.lines.iter().for_each(|line| text.extend([line.as_str(), "\n"]));
        if !self.notes.is_empty() {
            let _ = write!(text, "\n{}\n", self.notes.join("\n"));
        }
        text
    }
}

/// First line of a table's page.
pub fn heading(table: &Table) -> String {
    format!("# {}", table.title)
}

/// What the paper prints.
fn figure(paper: Option<f64>) -> String {
    paper.map_or("-".into(), |paper| format!("{paper:.1}"))
}

/// The nearest image that any of several attacks without a budget found of each sample, and their names; nothing where there is one such
/// attack alone. A minimum distance is an upper bound, and the best of several the best that is known.
fn nearest(cells: &[Summary]) -> Option<(String, Summary)> {
    let uncapped = |cell: &&Summary| cell.failed.is_none() && cell.epsilon.is_none() && cell.norm == NormKind::L2;
    let all: Vec<&Summary> = cells.iter().filter(uncapped).collect();
    let (first, others) = all.split_first()?;
    if others.is_empty() {
        return None;
    }
    let mut best = first.cell.clone();
    for (id, row) in others.iter().flat_map(|other| &other.cell.rows) {
        let Some(known) = best.rows.get_mut(id) else { continue };
        let nearer = row.broken() && (!known.broken() || row.l2 < known.l2);
        if nearer {
            *known = row.clone();
        }
    }
    let names: Vec<&str> = all.iter().map(|cell| cell.attack.as_str()).collect();
    Some((names.join(", "), Summary::all(&[best]).pop()?))
}

/// How far an attack without a budget had to go.
fn detail(cell: &Summary) -> String {
    if cell.caps.is_empty() {
        return String::new();
    }
    let caps = cell
        .caps
        .iter()
        .map(|c| format!("{:.1} within L2 {}", 100. * c.accuracy.value, c.cap));
    let median = cell
        .l2
        .map_or(String::new(), |l2| format!("; median L2 {:.2}", l2.median));
    caps.collect::<Vec<_>>().join(", ") + &median
}

#[cfg(test)]
mod tests {
    use super::super::tables::{purifiers, table1, table3, table4};
    use super::*;
    use crate::results::tests::{header, row};
    use crate::results::{Cell, Substitute};
    use advae_abi::info::NormKind;

    fn cell(attack: &str, norm: NormKind, epsilon: Option<f64>, robust: u64) -> Summary {
        outcome(attack, norm, epsilon, robust, None)
    }

    fn outcome(attack: &str, norm: NormKind, epsilon: Option<f64>, robust: u64, error: Option<&str>) -> Summary {
        let mut cell = Cell::new(header(attack, norm, epsilon));
        let (key, scored) = (cell.header.key.clone(), if error.is_some() { 0 } else { 20 });
        cell.rows = (0..scored)
            .map(|id| (id, row(&key, id, id < 19, id < robust)))
            .collect();
        cell.failed = error.map(String::from);
        cell.substitute = (attack == "cw").then_some(Substitute {
            queries: 4800,
            agreeing: 19,
            of: 20,
        });
        Summary::all(&[cell]).remove(0)
    }

    fn page(table: &Table) -> Page<'_> {
        Page::new(
            table,
            Run {
                date: "2026-01-02".into(),
                commit: "abc1234".into(),
                machine: "a processor, 2 cores".into(),
                command: "advae-host reproduce table1".into(),
                data: "20 images of mnist-1k, seed 0".into(),
            },
        )
    }

    #[test]
    fn a_missing_cell_moves_no_other_to_its_line_and_a_failed_one_has_no_figure() {
        let table = table1();
        let mut page = page(&table);
        let failed = outcome("pgd", NormKind::Linf, Some(0.3), 0, Some("plugin panicked: a | b"));
        let cells = [failed, cell("cw", NormKind::L2, None, 3)];
        page.add(&table.columns[0], false, &cells);
        let text = page.text();
        for line in [
            "| no defence | PGD-40 | failed | 1.6 | - |  |",
            "- no defence, PGD-40: failed: plugin panicked: a | b",
        ] {
            assert!(text.lines().any(|said| said == line), "no '{line}' in:\n{text}");
        }
        assert!(text.contains("| no defence | CW | 15.0 ["), "{text}");
        assert!(!text.contains("| FGSM |") && !text.contains("0.0 [0.0"), "{text}");
    }

    #[test]
    fn the_nearest_of_several_is_the_best_image_of_each_sample() {
        let table = table1();
        let mut page = page(&table);
        // CW leaves the first three, DDN the last six.
        let mut ddn = cell("ddn", NormKind::L2, None, 0);
        for (id, row) in &mut ddn.cell.rows {
            (row.robust, row.l2) = (*id >= 14, Some(0.5));
            row.adversarial_prediction = if row.robust { row.label } else { row.label + 1 };
        }
        let ddn = Summary::all(&[ddn.cell]).remove(0);
        page.add(&table.columns[0], false, &[cell("cw", NormKind::L2, None, 3), ddn]);
        let text = page.text();
        let line = text.lines().find(|line| line.contains("| nearest of ")).unwrap();
        assert!(line.starts_with("| no defence | nearest of cw, ddn | 0.0 ["), "{line}");
        assert!(line.ends_with("median L2 0.50 |"), "{line}");
    }

    #[test]
    fn the_page_as_a_person_sees_it() {
        let table = table1();
        let mut page = page(&table);
        let linf = |attack: &str, robust| cell(attack, NormKind::Linf, Some(0.3), robust);
        let cells = [linf("fgsm", 9), linf("pgd", 1), cell("cw", NormKind::L2, None, 0)];
        page.add(&table.columns[0], false, &cells);
        page.miss(&table.columns[1], "no plugin 'advae'");
        insta::assert_snapshot!(page.text());
    }

    #[test]
    fn the_tables_hold_every_figure_of_the_paper() {
        let printed = |table: &Table| table.columns.iter().flat_map(|c| c.paper).flatten().count();
        assert_eq!(
            [table1(), table3(), table4()].map(|table| printed(&table)),
            [26, 36, 22]
        );
        for table in [table1(), table3(), table4(), purifiers()] {
            for column in table.columns {
                let measured = table.settings(column).unwrap();
                let known = |attack: &String| table.attacks.iter().any(|row| row.spec == attack);
                assert!(measured.settings.attacks.iter().all(known), "{}", column.title);
                assert!(measured.settings.keep_seeds_out, "{}", column.title);
            }
        }
        let titles: std::collections::HashSet<_> = table3().columns.iter().map(|c| c.title).collect();
        assert_eq!(titles.len(), 9);
    }
}
