//! The end of a command that measured something.

use crate::report::Report;
use crate::terminal::console;
use crate::terminal::exit::EXIT_FAILED;

/// Tells what went wrong, and the exit code that follows from it. `trouble`: with the files of results and images.
pub fn complain(report: &Report, trouble: Option<&str>) -> i32 {
    let complaints = report.complaints();
    complaints
        .iter()
        .for_each(|complaint| console::say(&format!("error: {complaint}")));
    trouble
        .iter()
        .for_each(|trouble| console::say(&format!("error: {trouble}")));
    if complaints.is_empty() && trouble.is_none() {
        0
    } else {
        EXIT_FAILED
    }
}
