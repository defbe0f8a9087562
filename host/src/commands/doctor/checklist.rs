//! A checklist: what was measured, and what to do about it.

use crate::terminal::console;
use anyhow::Result;

/// Width of the column that names the check.
const WIDTH: usize = 22;

/// What a check found.
#[derive(Clone, Debug, PartialEq)]
pub enum Finding {
    /// As it should be; says what was measured.
    Pass(String),
    /// Works, but an author would want to know.
    Warn(String),
    /// Not as the contract asks.
    Fail(String),
}

impl Finding {
    /// A pass where `fine`, else a failure with this advice.
    pub fn expect(fine: bool, measured: String, advice: &str) -> Self {
        match fine {
            true => Self::Pass(measured),
            false => Self::Fail(format!("{measured}: {advice}")),
        }
    }

    /// A pass where `fine`, else a warning with this advice.
    pub fn hope(fine: bool, measured: String, advice: &str) -> Self {
        match fine {
            true => Self::Pass(measured),
            false => Self::Warn(format!("{measured}: {advice}")),
        }
    }
}

/// Prints findings as they come and counts them.
#[derive(Debug, Default)]
pub struct Checklist {
    passed: usize,
    warned: usize,
    failed: usize,
}

impl Checklist {
    /// Makes a check and prints what it found; an error is a failure.
    ///
    /// # Errors
    /// Where nothing can be printed.
    pub fn check(&mut self, what: &str, check: impl FnOnce() -> Result<Finding>) -> Result<()> {
        let finding = check().unwrap_or_else(|error| Finding::Fail(console::one_line(&error)));
        console::print(&self.note(what, finding))
    }

    fn note(&mut self, what: &str, finding: Finding) -> String {
        let (mark, text) = match finding {
            Finding::Pass(text) => {
                self.passed += 1;
                ("pass", text)
            }
            Finding::Warn(text) => {
                self.warned += 1;
                ("warn", text)
            }
            Finding::Fail(text) => {
                self.failed += 1;
                ("FAIL", text)
            }
        };
        format!("{mark}  {what:WIDTH$} {text}\n")
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let Self { passed, warned, failed } = self;
        format!("{passed} passed, {warned} warned, {failed} failed\n")
    }

    /// Whether anything failed.
    pub fn failed(&self) -> bool {
        self.failed > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lined_up_and_counted() {
        let mut list = Checklist::default();
        let lines = [
            list.note("shapes", Finding::expect(true, "as promised".into(), "mend it")),
            list.note("determinism", Finding::hope(false, "differs".into(), "mend it")),
            list.note("gradient", Finding::expect(false, "off by 0.5".into(), "mend it")),
        ];
        let expected = [
            "pass  shapes                 as promised\n",
            "warn  determinism            differs: mend it\n",
            "FAIL  gradient               off by 0.5: mend it\n",
        ];
        assert_eq!(lines, expected);
        assert_eq!(list.summary(), "1 passed, 1 warned, 1 failed\n");
        assert!(list.failed());
    }
}
