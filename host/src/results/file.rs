//! A results file while it is written: lines as they come, one writer, and nothing of the user's overwritten.

use super::line::Line;
use super::read::{Contents, Records, contents, digest_of, refuse_damage};
use super::record::{Cell, CellHeader, Check, Picture, Row, Run, Substitute};
use crate::isolation::Channel;
use crate::terminal::console;
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a process may take to be gone that was killed.
const LEAVING: Duration = Duration::from_millis(500);

/// Where rows go; nowhere, if no file was asked for.
///
/// A file that can no longer be written, as on a full disk, does not end the run: what was measured is still reported, and
/// [`trouble`](Self::trouble) says what became of the file.
#[derive(Debug, Default)]
pub struct Results {
    path: Option<PathBuf>,
    to: Option<To>,
    headers: HashMap<String, CellHeader>,
    trouble: Option<String>,
}

/// What rows are written to.
#[derive(Debug)]
enum To {
    File(File),
    /// The process that has the file.
    Parent(&'static Channel),
}

impl Results {
    /// No file.
    pub fn nowhere() -> Self {
        Self::default()
    }

    /// The process that started this one to run plugins.
    pub fn parent(channel: &'static Channel) -> Self {
        Self {
            to: Some(To::Parent(channel)),
            ..Self::default()
        }
    }

    /// A new file. Its first line is written at once: a disk that is full or read-only is told before the work.
    ///
    /// # Errors
    /// Where it is there already or cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let shown = path.display();
        ensure!(
            !path.is_dir(),
            "--out '{shown}' is a folder: name a file, such as results.jsonl in it"
        );
        if path.symlink_metadata().is_ok() {
            bail!("'{shown}' is there already: add --resume to go on with it, or choose another --out");
        }
        let file = File::create_new(path).with_context(|| {
            format!("cannot write --out '{shown}': name a file in a folder that is there and may be written")
        })?;
        claim(&file, || busy(path))?;
        let mut results = Self::of(path, file, HashMap::new());
        results.introduce()?;
        Ok(results)
    }

    /// Goes on with a file, or begins it. A last line that was cut off by a crash is dropped.
    ///
    /// `repair`: damaged lines are dropped, and measured again by the run; the file as it was is kept beside it.
    ///
    /// # Errors
    /// Where the file is not one of this host, is damaged, or another run writes it.
    pub fn resume(path: &Path, repair: bool) -> Result<(Self, Records)> {
        if path.symlink_metadata().is_err() || path.is_dir() {
            return Ok((Self::create(path)?, Records::default()));
        }
        let shown = path.display();
        // Before it is opened: a pipe would wait for its reader.
        ensure!(
            path.is_file(),
            "--out '{shown}' is no regular file: name one, such as results.jsonl"
        );
        let mut file = OpenOptions::new()
            .write(true)
            .open(path)
            .with_context(|| format!("cannot write '{shown}'"))?;
        claim(&file, || busy(path))?;
        let mut read = contents(path).with_context(|| format!("cannot resume '{shown}'"))?;
        if repair && !read.damage.is_empty() {
            read = repaired(path, &mut file, &read).with_context(|| format!("cannot repair '{shown}'"))?;
        }
        refuse_damage(&read, "add --repair to drop what is damaged and measure it again")
            .with_context(|| format!("cannot resume '{shown}'"))?;
        file.set_len(read.end)?;
        file.seek(SeekFrom::End(0))?;
        let cells = read.records.cells.iter();
        let headers = cells
            .map(|cell| (cell.header.key.clone(), cell.header.clone()))
            .collect();
        let mut results = Self::of(path, file, headers);
        results.introduce()?;
        Ok((results, read.records))
    }

    /// A writer of an open file, for tests.
    #[cfg(test)]
    pub fn over(file: File) -> Self {
        Self::of(Path::new("file"), file, HashMap::new())
    }

    fn of(path: &Path, file: File, headers: HashMap<String, CellHeader>) -> Self {
        Self {
            path: Some(path.into()),
            to: Some(To::File(file)),
            headers,
            trouble: None,
        }
    }

    /// Says who writes from here on.
    fn introduce(&mut self) -> Result<()> {
        self.write([Line::Run(Run::here())])?;
        match self.trouble.take() {
            Some(trouble) => bail!(trouble),
            None => Ok(()),
        }
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Why the file could not be written to its end, if it could not.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Writes the header of a cell, unless it stands there.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn begin(&mut self, header: &CellHeader) -> Result<()> {
        if self.headers.get(&header.key) == Some(header) {
            return Ok(());
        }
        self.headers.insert(header.key.clone(), header.clone());
        self.write([Line::Cell(Box::new(header.clone()))])
    }

    /// Writes rows of a cell, and what repeating the scoring has found so far: all at once.
    ///
    /// # Errors
    /// Where they cannot be serialised.
    pub fn append(&mut self, cell: &str, rows: &[Row], check: Option<Check>) -> Result<()> {
        let check = check.map(|check| Line::Check {
            cell: cell.into(),
            check,
        });
        self.write(rows.iter().cloned().map(Line::Sample).chain(check))
    }

    /// Notes whom a cell attacks in place of the whole model.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn prepared(&mut self, cell: &str, substitute: Substitute) -> Result<()> {
        self.write([Line::Substitute {
            cell: cell.into(),
            substitute,
        }])
    }

    /// Notes what the cell's file of adversarial images will hold, before it is written.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn images(&mut self, cell: &str, sha256: String) -> Result<()> {
        self.write([Line::Images {
            cell: cell.into(),
            sha256,
        }])
    }

    /// Writes a few samples of a cell as they look.
    ///
    /// # Errors
    /// Where they cannot be serialised.
    pub fn pictures(&mut self, cell: &str, pictures: &[Picture]) -> Result<()> {
        self.write([Line::Pictures {
            cell: cell.into(),
            pictures: pictures.to_vec(),
        }])
    }

    /// Notes how a cell ended: failed, or with all its rows.
    ///
    /// # Errors
    /// Where it cannot be serialised.
    pub fn end(&mut self, cell: &Cell) -> Result<()> {
        let key = cell.header.key.clone();
        self.write([match &cell.failed {
            Some(error) => Line::Failed {
                cell: key,
                error: error.clone(),
            },
            None => Line::Done {
                cell: key,
                rows: cell.rows.len(),
                digest: digest_of(cell),
            },
        }])
    }

    /// Writes the records of other files, as they are. Cells that are not whole stay open.
    ///
    /// # Errors
    /// Where they cannot be serialised.
    pub fn copy(&mut self, records: &Records) -> Result<()> {
        self.write(records.runs.iter().cloned().map(Line::Run))?;
        for cell in &records.cells {
            self.begin(&cell.header)?;
            self.write(lines_of(cell).skip(1))?;
            if cell.is_whole() {
                self.end(cell)?;
            }
        }
        Ok(())
    }

    /// Writes a line that another process has measured, as it stands. Headers are for [`begin`](Self::begin).
    pub fn pass_on(&mut self, line: &str) {
        self.write_text(&format!("{line}\n"));
    }

    fn write(&mut self, lines: impl IntoIterator<Item = Line>) -> Result<()> {
        if self.to.is_none() {
            return Ok(());
        }
        let mut text = String::new();
        for line in lines {
            text += &line.write()?;
            text.push('\n');
        }
        self.write_text(&text);
        Ok(())
    }

    fn write_text(&mut self, text: &str) {
        let written = match &mut self.to {
            None => Ok(()),
            Some(To::Parent(channel)) => {
                channel.send(text);
                Ok(())
            }
            Some(To::File(file)) => file.write_all(text.as_bytes()),
        };
        if let Err(error) = written {
            let path = self.path.as_deref().unwrap_or(Path::new("")).display();
            self.trouble = Some(format!(
                "'{path}' can no longer be written ({error}): rows from here on are not kept; make room and run the same \
                 command with --resume"
            ));
            self.to = None;
        }
    }
}

/// What is known of a cell, header first, but for how it ended.
pub fn lines_of(cell: &Cell) -> impl Iterator<Item = Line> {
    let key = cell.header.key.clone();
    let header = Line::Cell(Box::new(cell.header.clone()));
    let substitute = cell.substitute.map(|substitute| Line::Substitute {
        cell: key.clone(),
        substitute,
    });
    let check = cell.check.map(|check| Line::Check {
        cell: key.clone(),
        check,
    });
    let images = cell.images.iter().map({
        let key = key.clone();
        move |sha256| Line::Images {
            cell: key.clone(),
            sha256: sha256.clone(),
        }
    });
    let pictures = (!cell.pictures.is_empty()).then(|| Line::Pictures {
        cell: key,
        pictures: cell.pictures.values().cloned().collect(),
    });
    let rows = cell.rows.values().cloned().map(Line::Sample);
    [header]
        .into_iter()
        .chain(substitute)
        .chain(rows)
        .chain(check)
        .chain(images)
        .chain(pictures)
}

/// Keeps the file as it was beside it, writes the sound lines, and reads them again until nothing is damaged: a row that was
/// dropped may take the end of its cell with it.
fn repaired(path: &Path, file: &mut File, damaged: &Contents) -> Result<Contents> {
    let mut kept = path.as_os_str().to_owned();
    kept.push(".damaged");
    let kept = PathBuf::from(kept);
    let mut copy =
        File::create_new(&kept).with_context(|| format!("'{}' is there already: move it away", kept.display()))?;
    std::io::copy(&mut File::open(path)?, &mut copy)?;
    console::say(&format!("note: the file as it was is kept as '{}'", kept.display()));
    let mut sound = damaged.sound.clone();
    loop {
        let bytes = std::fs::read(path)?;
        let lines = sound
            .iter()
            .filter_map(|line| bytes.get(line.start as usize..line.end as usize));
        let text: Vec<u8> = lines.flat_map(|line| [line, b"\n"].concat()).collect();
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&text)?;
        let again = contents(path)?;
        if again.damage.is_empty() {
            return Ok(again);
        }
        sound = again.sound;
    }
}

/// Keeps other runs from what is open, a file or a folder, as long as it is; `busy` says what to do where another run has it. Where a file
/// system knows no locks there is none.
///
/// # Errors
/// Where another run has it.
pub fn claim(open: &File, busy: impl FnOnce() -> String) -> Result<()> {
    let start = Instant::now();
    loop {
        match open.try_lock() {
            // A process that was killed just now may still be on its way out.
            Err(TryLockError::WouldBlock) if start.elapsed() < LEAVING => std::thread::sleep(LEAVING / 20),
            Err(TryLockError::WouldBlock) => bail!(busy()),
            Err(TryLockError::Error(_)) | Ok(()) => return Ok(()),
        }
    }
}

/// What to do where another run writes the results file.
fn busy(path: &Path) -> String {
    format!(
        "'{}' is being written by another run: wait for its end, or choose another --out",
        path.display()
    )
}
