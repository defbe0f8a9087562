//! What a person reads of an experiment, made from its records alone.

mod contents;
mod figures;
mod format;
mod labels;
mod stats;
mod warnings;

pub use contents::Report;
pub use figures::{CapAccuracy, DrawSummary, Share, Spread, Summary, Worst, short, worst_cases};
pub use format::{Format, with_interval};
pub use stats::mcnemar_of;
pub use warnings::Warning;

use crate::terminal::console;
use anyhow::Result;
use format::notes;

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

    /// The report as text, no wider than that many columns where the format can help it.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn render(&self, format: Format, width: Option<usize>) -> Result<String> {
        format.renderer(width).render(self)
    }
}

#[cfg(test)]
mod tests;
