//! For a program.

use super::parts::Render;
use crate::report::contents::Report;
use anyhow::Result;

/// The format.
pub struct Json;

impl Render for Json {
    fn render(&self, report: &Report) -> Result<String> {
        Ok(serde_json::to_string_pretty(report)? + "\n")
    }
}
