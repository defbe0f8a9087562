//! A results file read back: whole, in order, and believed only as far as its checksums go.

use super::line::Line;
use super::record::{Cell, FORMAT, OLDEST, Run};
use crate::plugin::hex;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;

/// Bytes that are read from a file at once.
const BUFFER: usize = 1 << 20;

/// Everything a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Runs that wrote it.
    pub runs: Vec<Run>,
    /// Its cells, in the order they began.
    pub cells: Vec<Cell>,
}

impl Records {
    /// The cell with that key.
    pub fn cell(&self, key: &str) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.header.key == key)
    }
}

/// A file as it was read.
#[derive(Debug, Default)]
pub struct Contents {
    /// What its sound lines say.
    pub records: Records,
    /// Where those lines stand in the file, without their ends: a million lines are not kept twice.
    pub sound: Vec<Range<u64>>,
    /// What is wrong with the others, in order, with their numbers.
    pub damage: Vec<String>,
    /// Bytes up to the end of the last whole line; what follows was cut off while it was written.
    pub end: u64,
}

/// Reads a results file.
///
/// # Errors
/// Where it cannot be read, is not a results file, or is damaged: names the lines and the remedy.
pub fn read(path: &Path) -> Result<Records> {
    let shown = path.display();
    let contents = contents(path).with_context(|| format!("'{shown}'"))?;
    refuse_damage(
        &contents,
        "run the same eval again with --resume --repair, which measures the lost rows again",
    )
    .with_context(|| format!("'{shown}'"))?;
    Ok(contents.records)
}

/// An error where lines are damaged.
///
/// # Errors
/// Names the first of them and the remedy.
pub fn refuse_damage(contents: &Contents, remedy: &str) -> Result<()> {
    let Some(first) = contents.damage.first() else {
        return Ok(());
    };
    let others = match contents.damage.len() - 1 {
        0 => String::new(),
        1 => ", and another damaged line".into(),
        n => format!(", and {n} other damaged lines"),
    };
    bail!("{first}{others}: {remedy}")
}

/// Reads a file line by line.
///
/// # Errors
/// Where it cannot be read, holds no line of a results file, or is of another format.
pub fn contents(path: &Path) -> Result<Contents> {
    let metadata = std::fs::metadata(path).context("cannot be read: give a file that eval --out or reproduce wrote")?;
    ensure!(
        metadata.is_file(),
        "it is no regular file: results are kept in one, such as results.jsonl"
    );
    let mut contents = Contents::default();
    if metadata.len() == 0 {
        return Ok(contents);
    }
    let mut file = BufReader::with_capacity(BUFFER, File::open(path)?);
    let (mut reader, mut bytes, mut number) = (Collector::default(), vec![], 0);
    loop {
        bytes.clear();
        file.read_until(b'\n', &mut bytes)?;
        // What follows the last end of a line was cut off while it was written.
        let Some(line) = bytes.strip_suffix(b"\n") else { break };
        let start = contents.end;
        contents.end += bytes.len() as u64;
        number += 1;
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let read = || -> Result<(u64, Line)> {
            let text = std::str::from_utf8(line)
                .context("it is no text")?
                .trim_end_matches('\r');
            Ok((text.len() as u64, Line::read(text)?))
        };
        let taken = read().and_then(|(length, line)| {
            reader.take(line)?;
            Ok(length)
        });
        match taken {
            Ok(length) => contents.sound.push(start..start + length),
            Err(error) if error.is::<OtherFormat>() => return Err(error),
            Err(error) => contents.damage.push(format!("line {number}: {error:#}")),
        }
    }
    // A file that has no line of ours is never written.
    ensure!(
        !contents.sound.is_empty(),
        "its first line is not that of a results file of this host: choose another file"
    );
    contents.records = reader.records;
    Ok(contents)
}

/// A file of another version.
#[derive(Debug)]
struct OtherFormat(u32);

impl std::fmt::Display for OtherFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "it has format {}, this host reads formats {OLDEST} to {FORMAT}: choose another file",
            self.0
        )
    }
}

impl std::error::Error for OtherFormat {}

/// Records as they come, line by line.
#[derive(Debug, Default)]
pub struct Collector {
    records: Records,
    places: HashMap<String, usize>,
}

impl Collector {
    /// Goes on with these.
    pub fn after(records: Records) -> Self {
        let keys = records.cells.iter().map(|cell| cell.header.key.clone());
        Self {
            places: keys.enumerate().map(|(at, key)| (key, at)).collect(),
            records,
        }
    }

    /// What has come.
    pub fn into_records(self) -> Records {
        self.records
    }

    /// The cell with that key.
    pub fn cell(&self, key: &str) -> Option<&Cell> {
        self.records.cells.get(*self.places.get(key)?)
    }

    /// Takes a line.
    ///
    /// # Errors
    /// Where it does not go with those before.
    pub fn take(&mut self, line: Line) -> Result<()> {
        match line {
            Line::Run(run) if !(OLDEST..=FORMAT).contains(&run.format) => bail!(OtherFormat(run.format)),
            Line::Run(run) => self.records.runs.push(run),
            Line::Cell(header) => self.begin(*header)?,
            Line::Sample(row) => {
                let cell = self.open(&row.cell)?;
                cell.failed = None;
                match cell.rows.get(&row.id) {
                    Some(known) if *known != row => bail!(
                        "it contradicts an earlier line about sample {} of the same cell",
                        row.id
                    ),
                    _ => drop(cell.rows.insert(row.id, row)),
                }
            }
            Line::Substitute { cell, substitute } => self.open(&cell)?.substitute = Some(substitute),
            Line::Check { cell, check } => self.open(&cell)?.check = Some(check),
            Line::Images { cell, sha256 } => drop(self.open(&cell)?.images.insert(sha256)),
            Line::Pictures { cell, pictures } => {
                let cell = self.open(&cell)?;
                cell.pictures.extend(pictures.into_iter().map(|p| (p.id, p)));
            }
            Line::Failed { cell, error } => self.open(&cell)?.failed = Some(error),
            Line::Done { cell, rows, digest } => {
                let cell = self.open(&cell)?;
                ensure!(
                    (cell.rows.len(), digest_of(cell)) == (rows, digest),
                    "the cell '{}' ended with {rows} rows, of which {} are here unchanged or others have been added",
                    cell.header.key,
                    cell.rows.len()
                );
            }
        }
        Ok(())
    }

    fn begin(&mut self, header: super::record::CellHeader) -> Result<()> {
        ensure!(
            header.key == header.config.key(),
            "the key '{}' is not that of its configuration",
            header.key
        );
        match self.places.get(&header.key) {
            Some(at) => self.records.cells[*at].header = header,
            None => {
                self.places.insert(header.key.clone(), self.records.cells.len());
                self.records.cells.push(Cell::new(header));
            }
        }
        Ok(())
    }

    fn open(&mut self, key: &str) -> Result<&mut Cell> {
        let at = *(self.places.get(key)).with_context(|| format!("the header of its cell '{key}' is missing"))?;
        Ok(&mut self.records.cells[at])
    }
}

/// Hash over the rows of a cell in the order of their ids, its substitute and the repeated scoring.
pub fn digest_of(cell: &Cell) -> String {
    let mut hasher = Sha256::new();
    for row in cell.rows.values() {
        hasher.update(serde_json::to_vec(row).unwrap_or_default());
    }
    hasher.update(serde_json::to_vec(&(&cell.substitute, &cell.check)).unwrap_or_default());
    hex(&hasher.finalize())[..16].to_string()
}
