//! The commands, one file or folder each: flags to settings, and what is printed.

pub mod doctor;
pub mod eval;
pub mod plugins;
pub mod purify;
pub mod reproduce;
pub mod score;
pub mod train;

use crate::report::Report;
use crate::terminal::exit::EXIT_FAILED;

/// Tells what went wrong, and the exit code that follows from it.
pub fn complain(report: &Report) -> i32 {
    let complaints = report.complaints();
    complaints.iter().for_each(|complaint| eprintln!("error: {complaint}"));
    if complaints.is_empty() { 0 } else { EXIT_FAILED }
}
