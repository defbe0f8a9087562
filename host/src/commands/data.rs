//! `data`: which datasets there are, and where they were found.

use crate::terminal::console;
use crate::terminal::exit::EXIT_FAILED;
use advae_data::{DataError, Found, Set};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Flags of `data`.
#[derive(Args, Clone, Debug, Default)]
pub struct DataArgs {
    /// Datasets to read and check: names, or paths to your own images; if none is given, all known datasets are looked for
    #[arg(value_name = "NAME|PATH")]
    datasets: Vec<String>,
    /// Folder of the datasets that are not embedded [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// Reads and checks the datasets that are named, or all known ones, and lists counts, hashes and where each was looked for. Returns the
/// exit code: 2 where files are there and are not the dataset's.
///
/// # Errors
/// Where a named dataset cannot be read, or the list cannot be printed.
pub fn run(args: DataArgs) -> Result<i32> {
    let dir = args.data_dir.as_deref();
    for name in &args.datasets {
        let found = advae_data::find(name, dir)?;
        console::print(&format!("{name}\n{}", described(&found)))?;
    }
    if !args.datasets.is_empty() {
        return Ok(0);
    }
    let mut code = 0;
    for set in advae_data::sets() {
        let found = set.find(dir);
        if found.as_ref().is_err_and(|error| !absent(error)) {
            code = EXIT_FAILED;
        }
        console::print(&entry(set, found))?;
    }
    console::print("Images of your own: --dataset ./DIR (a subfolder a class), FILE.npz or FILE.parquet\n")?;
    Ok(code)
}

/// Whether nothing of a dataset is there, which is no fault.
fn absent(error: &DataError) -> bool {
    matches!(error, DataError::NoDataDir { .. } | DataError::MissingFile { .. })
}

fn entry(set: &Set, found: Result<Found, DataError>) -> String {
    let text = match found {
        Ok(found) => described(&found),
        Err(DataError::NoDataDir { .. }) => "  not looked for: give --data-dir or set ADVAE_DATA_DIR\n".into(),
        Err(error @ DataError::MissingFile { .. }) => format!("  not found: {error}\n"),
        Err(error) => format!("  damaged: {error}\n"),
    };
    format!("{}: {}\n{text}", set.name, set.about)
}

/// What was found, a line a fact.
fn described(found: &Found) -> String {
    let Found { dataset, at } = found;
    let [c, h, w] = dataset.shape;
    let mut lines = vec![
        match at {
            None => "embedded".into(),
            Some(at) => format!("found in '{}'", at.display()),
        },
        format!(
            "{} images of {c}x{h}x{w}, {} classes{}, {} of each",
            dataset.len(),
            dataset.classes,
            if dataset.open_classes { " or more" } else { "" },
            range(&per_class(dataset))
        ),
        format!("sha256 {}", dataset.sha256()),
    ];
    if dataset.lossy {
        lines.push("decoded from JPEG: slightly lossy".into());
    }
    let conventions = dataset.conventions();
    let caps: Vec<String> = conventions.l2_caps.iter().map(f64::to_string).collect();
    let customary = [
        conventions.linf.map(|epsilon| format!("Linf {}", share(epsilon))),
        conventions.step.map(|step| format!("step {}", share(step))),
        conventions.l2.map(|epsilon| format!("L2 {epsilon}")),
        (!caps.is_empty()).then(|| format!("L2 caps {}", caps.join(", "))),
    ];
    let customary: Vec<String> = customary.into_iter().flatten().collect();
    lines.push(match customary.is_empty() {
        true => "no customary budgets: give --epsilon".into(),
        false => format!("customary: {}", customary.join("; ")),
    });
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// How many samples each class has.
fn per_class(dataset: &advae_data::Dataset) -> Vec<usize> {
    let mut counts = vec![0; dataset.classes];
    dataset.labels.iter().for_each(|label| counts[*label as usize] += 1);
    counts
}

fn range(counts: &[usize]) -> String {
    let (low, high) = (counts.iter().min(), counts.iter().max());
    match (low, high) {
        (Some(low), Some(high)) if low != high => format!("{low} to {high}"),
        (Some(n), _) => n.to_string(),
        (None, _) => "0".into(),
    }
}

/// A share of the pixels' range, as a number of bytes where it is one and not a short decimal.
fn share(value: f64) -> String {
    let bytes = value * 255.;
    match (bytes - bytes.round()).abs() < 1e-9 {
        true => format!("{}/255", bytes.round()),
        false => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_as_papers_print_them() {
        assert_eq!([share(8. / 255.), share(0.3)], ["8/255", "0.3"]);
    }

    #[test]
    fn counts_are_one_number_where_they_are_equal() {
        assert_eq!([range(&[5, 5]), range(&[3, 9, 4]), range(&[])], ["5", "3 to 9", "0"]);
    }
}
