//! `reproduce`: the paper's tables, measured with the plugins that are installed, beside the figures that it prints.

mod page;
mod tables;

use crate::commands::complain::complain;
use crate::commands::eval::PICTURES;
use crate::experiment::{Series, Settings, check_device, threads};
use crate::isolation::SandboxArgs;
use crate::report::{Report, page_can_be_written};
use crate::results::Run as Written;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::exit::{EXIT_CANCELLED, EXIT_FAILED};
use advae_data::Set;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use page::{Page, Run};
use std::path::{Path, PathBuf};
use tables::{Column, Measured, Table};

/// File of the rows. Tables share it, since they share cells.
const ROWS: &str = "rows.jsonl";

/// Flags of `reproduce`.
#[derive(Args, Clone, Debug)]
pub struct ReproduceArgs {
    /// Table to measure
    #[arg(value_enum)]
    table: Name,
    /// Folder of the dataset; without it, the embedded sample is used [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Number of test images, the same ones for every cell; costly columns use only the first of them
    #[arg(long, value_name = "N", default_value_t = 1000)]
    samples: usize,
    /// Measure only the column with this title, or all columns whose titles contain this text; repeatable
    #[arg(long, value_name = "TEXT")]
    column: Vec<String>,
    /// Seed of all randomness
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Device that runs the networks: cpu, or cuda:N if the plugins were built for it [default: cpu]
    #[arg(long, value_name = "DEVICE", default_value = "cpu", hide_default_value = true)]
    device: String,
    /// Folder for the table (md) and the rows of all tables (rows.jsonl); existing measurements are not repeated
    #[arg(long, value_name = "DIR", default_value = "results")]
    out: PathBuf,
    /// Also write a page of all cells: one self-contained HTML file
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Print how the table is measured, as an experiment file for `run`, and measure nothing
    #[arg(long)]
    experiment: bool,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: SandboxArgs,
}

/// The available tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Table 1 on MNIST: attacks and threat models against the defences of classifier X
    Table1,
    /// Table 3: the purifier trained on X, or on X, A and B, in front of X, A, B, C and D
    Table3,
    /// Table 4 on CIFAR-10: attacks and threat models against the defences of ResNetV2-29
    Table4,
    /// All purifiers side by side in front of X, oblivious and white box
    Purifiers,
}

/// Runs every cell of a table, writing as it goes. Returns the exit code.
///
/// # Errors
/// Where a plugin, the data or a file fails.
pub fn run(args: ReproduceArgs) -> Result<i32> {
    let table = match args.table {
        Name::Table1 => tables::table1(),
        Name::Table3 => tables::table3(),
        Name::Table4 => tables::table4(),
        Name::Purifiers => tables::purifiers(),
    };
    if args.experiment {
        console::print(table.experiment)?;
        return Ok(0);
    }
    let columns = chosen(&table, &args.column)?;
    check_device(&args.device)?;
    ensure!(args.samples > 0, "--samples is 0: give 1 or more");
    args.report.as_deref().map(page_can_be_written).transpose()?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder '{}'", args.out.display()))?;
    let cancel = Cancel::on_ctrl_c()?;
    let part = if columns.len() < table.columns.len() {
        "-part"
    } else {
        ""
    };
    let path = args.out.join(format!("{}{part}.md", table.name));
    replaceable(&path, &table)?;
    let run = Run::here(args.samples, args.seed, dataset(&args, &table).name, &args.device);
    let mut page = Page::new(&table, run);
    let mut code = 0;
    let mut cells = vec![];
    let mut series = Series::default();
    for column in columns {
        console::say(&format!("{}: {}", table.name, column.title));
        let (settings, costly) = settings(&args, &table, column)?;
        match series.outcomes(&settings, &cancel) {
            Ok(outcome) => {
                let report = Report::new(&outcome.cells);
                code = code.max(complain(&report, outcome.trouble.as_deref()));
                page.add(column, costly, &report.cells);
                cells.extend(outcome.cells);
            }
            // A plugin that is not there must not keep the others from being measured.
            Err(error) => {
                let text = console::one_line(&error);
                console::say(&format!("error: {}: {text}", column.title));
                page.miss(column, &text);
                code = EXIT_FAILED;
            }
        }
        std::fs::write(&path, page.text()).with_context(|| format!("cannot write '{}'", path.display()))?;
        if cancel.is_cancelled() {
            console::say("stopped: the same command goes on from here");
            return Ok(EXIT_CANCELLED);
        }
    }
    console::print(&page.text())?;
    console::say(&format!("written to '{}'", path.display()));
    if let Some(path) = &args.report {
        Report::new(&cells).by([Written::here()]).write_page(path)?;
    }
    Ok(code)
}

/// Refuses to replace a file that is no page of this table, and says that one is replaced.
fn replaceable(path: &Path, table: &Table) -> Result<()> {
    let shown = path.display();
    if path.symlink_metadata().is_err() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).unwrap_or_default();
    ensure!(
        text.lines().next() == Some(page::heading(table).as_str()),
        "'{shown}' is there and is no page of this table: move it away, or choose another folder with --out"
    );
    console::say(&format!("note: the page '{shown}' is written anew"));
    Ok(())
}

/// The columns asked for, in the table's order: a whole title names its column, anything else all whose titles hold it.
fn chosen<'a>(table: &'a Table, wanted: &[String]) -> Result<Vec<&'a Column>> {
    let has = |text: &str, column: &Column| match table.columns.iter().any(|column| column.title == text) {
        true => column.title == text,
        false => column.title.contains(text),
    };
    if let Some(text) = wanted
        .iter()
        .find(|text| !table.columns.iter().any(|column| has(text, column)))
    {
        let titles: Vec<String> = table
            .columns
            .iter()
            .map(|column| format!("'{}'", column.title))
            .collect();
        bail!("no column has '{text}' in its title: choose of {}", titles.join(", "));
    }
    let asked = |column: &&Column| wanted.is_empty() || wanted.iter().any(|text| has(text, column));
    Ok(table.columns.iter().filter(asked).collect())
}

/// The whole test set where there is a folder of data, else the embedded sample.
fn dataset(args: &ReproduceArgs, table: &Table) -> &'static Set {
    let given = args.data_dir.is_some() || std::env::var_os(advae_data::DATA_DIR).is_some();
    let sample = table.data.sample.filter(|_| !given);
    sample.unwrap_or(table.data.test)
}

/// What a column is measured with, and whether on fewer images than the others.
fn settings(args: &ReproduceArgs, table: &Table, column: &Column) -> Result<(Settings, bool)> {
    let Measured { settings, most } = table.settings(column)?;
    let settings = Settings {
        dataset: Some(dataset(args, table).name.into()),
        data_dir: args.data_dir.clone(),
        samples: most.map_or(args.samples, |most| args.samples.min(most)),
        seed: args.seed,
        device: args.device.clone(),
        threads: threads(args.threads)?,
        out: Some(args.out.join(ROWS)),
        resume: true,
        isolation: args.isolation.limits(),
        pictures: if args.report.is_some() { PICTURES } else { 0 },
        ..settings
    };
    Ok((settings, most.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn titles(wanted: &[&str]) -> Vec<&'static str> {
        let wanted: Vec<String> = wanted.iter().map(|text| text.to_string()).collect();
        let table = tables::table1();
        let columns = chosen(&table, &wanted).unwrap();
        let titles = columns.iter().map(|column| column.title);
        titles.collect()
    }

    #[test]
    fn a_whole_title_is_one_column_and_a_part_all_that_hold_it() {
        assert_eq!(titles(&["no defence"]), ["no defence"]);
        assert_eq!(titles(&["AdvAE, white box"]), ["AdvAE, white box"]);
        assert_eq!(
            titles(&["HGD", "AdvAE, black box"]),
            ["AdvAE, black box", "HGD, oblivious", "HGD, white box"]
        );
        assert_eq!(titles(&[]).len(), tables::table1().columns.len());
    }

    #[test]
    fn a_title_that_is_not_there_is_refused_beside_one_that_is() {
        let table = tables::table1();
        let error = chosen(&table, &["HGD".into(), "hgd".into()]).err().unwrap().to_string();
        assert!(
            error.starts_with("no column has 'hgd' in its title: choose of 'no defence', 'AdvAE, oblivious', "),
            "{error}"
        );
    }
}
