//! A line of a results file: JSON that ends in its own checksum.

use super::record::{CellHeader, Check, Picture, Row, Run, Substitute};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// A run begins to write; the first line of every file.
    Run(Run),
    /// A cell begins, or begins anew with more samples.
    Cell(Box<CellHeader>),
    /// A sample was scored.
    Sample(Row),
    /// A substitute was prepared.
    Substitute {
        /// Key of the cell.
        cell: String,
        /// What it cost.
        #[serde(flatten)]
        substitute: Substitute,
    },
    /// The scoring was repeated on a few samples.
    Check {
        /// Key of the cell.
        cell: String,
        /// What was found.
        #[serde(flatten)]
        check: Check,
    },
    /// The cell's adversarial images are about to be written to a file.
    Images {
        /// Key of the cell.
        cell: String,
        /// Hash of what the file will hold.
        sha256: String,
    },
    /// Samples of a cell as they look. Since format 4.
    Pictures {
        /// Key of the cell.
        cell: String,
        /// A few.
        pictures: Vec<Picture>,
    },
    /// A cell failed.
    Failed {
        /// Key of the cell.
        cell: String,
        /// Why.
        error: String,
    },
    /// A cell ended.
    Done {
        /// Key of the cell.
        cell: String,
        /// Number of its rows.
        rows: usize,
        /// Hash of its rows and of what else is known of it: a line that went missing is noticed.
        digest: String,
    },
}

/// What stands before the checksum and behind it.
const BEFORE: &str = ",\"crc\":\"";
const BEHIND: &str = "\"}";
/// Hex digits of a checksum.
const DIGITS: usize = 8;

impl Line {
    /// The line as text, without the line break.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn write(&self) -> Result<String> {
        let mut text = serde_json::to_string(self).context("cannot write the results")?;
        text.pop();
        let crc = crc32fast::hash(text.as_bytes());
        Ok(format!("{text}{BEFORE}{crc:0DIGITS$x}{BEHIND}"))
    }

    /// Key of the cell that it belongs to, if it belongs to one.
    pub fn cell(&self) -> Option<&str> {
        match self {
            Self::Run(_) => None,
            Self::Cell(header) => Some(&header.key),
            Self::Sample(row) => Some(&row.cell),
            Self::Substitute { cell, .. }
            | Self::Check { cell, .. }
            | Self::Images { cell, .. }
            | Self::Pictures { cell, .. }
            | Self::Failed { cell, .. }
            | Self::Done { cell, .. } => Some(cell),
        }
    }

    /// Reads a line whose checksum fits.
    ///
    /// # Errors
    /// Where it is no line of this host, or was damaged.
    pub fn read(text: &str) -> Result<Self> {
        let tail = BEFORE.len() + DIGITS + BEHIND.len();
        let split = text.len().checked_sub(tail).filter(|at| text.is_char_boundary(*at));
        let (body, tail) = text.split_at(split.context("it is no result of this host")?);
        let crc = tail.strip_prefix(BEFORE).and_then(|rest| rest.strip_suffix(BEHIND));
        let crc = crc.context("it is no result of this host")?;
        ensure!(
            u32::from_str_radix(crc, 16) == Ok(crc32fast::hash(body.as_bytes())),
            "it is damaged: its checksum does not fit"
        );
        serde_json::from_str(text).context("it is no result of this host")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line::Failed {
            cell: "c".into(),
            error: "é ,\"crc\":\"".into(),
        }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let text = line().write().unwrap();
        assert_eq!(Line::read(&text).unwrap(), line());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["type"], "failed");
    }

    #[test]
    fn one_flipped_bit_anywhere_is_noticed() {
        let text = line().write().unwrap().into_bytes();
        for at in 0..8 * text.len() {
            let mut damaged = text.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            let read = std::str::from_utf8(&damaged).ok().map(Line::read);
            // A digit of the checksum may change its case and stay the same number.
            let same = damaged.to_ascii_lowercase() == text;
            assert!(same || read.is_none_or(|line| line.is_err()), "bit {at}");
        }
    }

    #[test]
    fn what_is_too_short_is_no_line() {
        for text in ["", "{}", "hello", &"é".repeat(20)] {
            assert!(Line::read(text).is_err(), "{text}");
        }
    }
}
