//! What two processes say to each other: the one that has the results and the one that runs the plugins. Lines of a results file go as they
//! are; everything else is JSON behind a mark that no line of a results file begins with.

use super::settings::Settings;
use crate::results::CellHeader;
use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const MARK: char = '!';

/// Said to the process with the plugins.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Load everything and lay out the cells.
    Plan {
        /// Of the evaluation.
        settings: Box<Settings>,
        /// Whether it was planned before: notes are not repeated.
        again: bool,
    },
    /// Measure what was planned, after the lines of what is known.
    Measure {
        /// Cells that a process before this one failed at, by key, and why.
        failed: BTreeMap<String, String>,
    },
}

/// Said by the process with the plugins.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The cells, group by group.
    Planned(Vec<Vec<CellHeader>>),
    /// A group begins; lines of its cells follow.
    Begins(usize),
    /// Everything is measured, or as much as came before the stop.
    Finished {
        /// Why files of images are not whole.
        trouble: Option<String>,
    },
    /// It cannot be done: the error and its causes.
    Refused(Vec<String>),
}

/// What a line is.
#[derive(Debug)]
pub enum Heard<T> {
    /// A line of a results file.
    Result,
    /// A message.
    Message(T),
}

/// A message as a line, with its end.
///
/// # Errors
/// Where it cannot be serialised.
pub fn said(message: &impl Serialize) -> Result<String> {
    Ok(format!("{MARK}{}\n", serde_json::to_string(message)?))
}

/// What a line is.
///
/// # Errors
/// Where it is a message of another kind.
pub fn heard<T: DeserializeOwned>(line: &str) -> Result<Heard<T>> {
    match line.strip_prefix(MARK) {
        None => Ok(Heard::Result),
        Some(message) => Ok(Heard::Message(
            serde_json::from_str(message).context("no message of this host")?,
        )),
    }
}

/// An error and its causes, to be sent.
pub fn chain(error: &anyhow::Error) -> Vec<String> {
    error.chain().map(ToString::to_string).collect()
}

/// The error again.
pub fn unchained(chain: Vec<String>) -> anyhow::Error {
    let mut causes = chain.into_iter().rev();
    let first = anyhow::Error::msg(causes.next().unwrap_or_default());
    causes.fold(first, |error, cause| error.context(cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_with_its_causes() {
        let error = anyhow::anyhow!("cause").context("middle").context("top");
        let again = unchained(chain(&error));
        assert_eq!(format!("{again:#}"), "top: middle: cause");
    }

    #[test]
    fn messages_and_results_are_told_apart() {
        let line = said(&Reply::Begins(3)).unwrap();
        assert!(matches!(
            heard(line.trim_end()).unwrap(),
            Heard::Message(Reply::Begins(3))
        ));
        assert!(matches!(heard::<Reply>("{\"type\":\"run\"}").unwrap(), Heard::Result));
        assert!(heard::<Reply>("!{}").is_err());
    }

    #[test]
    fn settings_arrive_as_they_were() {
        let settings = Settings {
            classifiers: vec!["a".into()],
            budgets: super::super::Budgets::parse(&["8/255".into()]).unwrap(),
            shard: Some("2/5".parse().unwrap()),
            ..Settings::default()
        };
        let line = said(&Request::Plan {
            settings: Box::new(settings.clone()),
            again: true,
        })
        .unwrap();
        let Heard::Message(Request::Plan { settings: read, again }) = heard(line.trim_end()).unwrap() else {
            panic!("{line}")
        };
        assert!(again);
        assert_eq!(format!("{read:?}"), format!("{settings:?}"));
    }
}
