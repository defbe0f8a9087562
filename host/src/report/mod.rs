//! What a person reads of an experiment, made from its records alone.

mod contents;
mod figures;
mod format;
mod labels;
mod stats;
mod warnings;

pub use contents::{Audited, CheckLine, Report};
pub use figures::{CapAccuracy, DrawSummary, Share, Spread, Summary, Worst, short, worst_cases};
pub use format::{Format, with_interval};
pub use stats::mcnemar_of;
pub use warnings::Warning;

use crate::terminal::console;
use anyhow::{Context, Result, ensure};
use format::notes;
use std::path::Path;

impl Report {
    /// Prints the report; notes and warnings go to stderr where the format has no place for them.
    ///
    /// # Errors
    /// Where it cannot be serialised, or nothing can be printed.
    pub fn print(&self, format: Format) -> Result<()> {
        console::print(&self.render(format, console::width())?)?;
        if format == Format::Csv {
            console::say(notes(self).trim_end());
        }
        Ok(())
    }

    /// Writes the report as a page.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn write_page(&self, path: &Path) -> Result<()> {
        let page = self.render(Format::Html, None)?;
        let shown = path.display();
        std::fs::write(path, page).with_context(|| format!("cannot write the page '{shown}'"))?;
        console::say(&format!("the page is '{shown}': a browser shows it"));
        Ok(())
    }

    /// The report as text, no wider than that many columns where the format can help it.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn render(&self, format: Format, width: Option<usize>) -> Result<String> {
        format.renderer(width).render(self)
    }
}

/// Refuses a place for a page before the work is done: what is there is never overwritten.
///
/// # Errors
/// Where a file is there already, or none can be made.
pub fn page_can_be_written(path: &Path) -> Result<()> {
    let shown = path.display();
    ensure!(
        path.symlink_metadata().is_err(),
        "--report '{shown}' is there already: choose another file, or move it away"
    );
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    ensure!(
        folder.is_dir(),
        "--report '{shown}': there is no folder '{}', make it first",
        folder.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
