//! Formats of a report, each a [`Render`].

mod csv;
mod html;
mod json;
mod latex;
mod markdown;
mod parts;
mod table;

pub use parts::{Render, notes, with_interval};

use clap::ValueEnum;
use serde::Deserialize;

/// How the report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For a terminal.
    #[default]
    Table,
    /// For a document.
    Markdown,
    /// For a spreadsheet.
    Csv,
    /// For a program.
    Json,
    /// For a paper: booktabs.
    Latex,
    /// For people: one page with curves and images
    Html,
}

impl Format {
    /// What writes it. `width`: columns of the terminal, where there is one.
    pub fn renderer(self, width: Option<usize>) -> Box<dyn Render> {
        match self {
            Self::Table => Box::new(table::Table { width }),
            Self::Markdown => Box::new(markdown::Markdown),
            Self::Csv => Box::new(csv::Csv),
            Self::Json => Box::new(json::Json),
            Self::Latex => Box::new(latex::Latex),
            Self::Html => Box::new(html::Html),
        }
    }
}
