//! The files of an experiment's parts.

use crate::commands::merge;
use crate::experiment::Shard;
use crate::terminal::exit::EXIT_FAILED;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How the line begins that tells of an evaluation which could not be begun.
pub const NOT_BEGUN: &str = "error: evaluation ";

/// How often a part that is lost is begun, in all.
pub const TRIES: usize = 3;

/// The results file of one part: `e.jsonl` has `e.2-of-8.jsonl`.
pub fn shard_file(out: &Path, shard: Shard) -> PathBuf {
    let end = out
        .extension()
        .map_or("jsonl".into(), |end| end.to_string_lossy().into_owned());
    out.with_extension(format!("{}-of-{}.{end}", shard.index, shard.count))
}

/// The parts of an experiment with this results file.
pub struct Parts<'a> {
    out: &'a Path,
    count: usize,
}

impl<'a> Parts<'a> {
    /// So many parts.
    pub fn new(out: &'a Path, count: usize) -> Self {
        Self { out, count }
    }

    fn file(&self, index: usize) -> PathBuf {
        let count = self.count;
        shard_file(self.out, Shard { index, count })
    }

    /// Where a task writes its exit code.
    fn code(&self, index: usize) -> PathBuf {
        self.file(index).with_extension("code")
    }

    fn log(&self, index: usize) -> PathBuf {
        self.file(index).with_extension("log")
    }

    /// Removes what the parts of an earlier run have said.
    pub fn forget_logs(&self) {
        for index in 1..=self.count {
            let _ = std::fs::remove_file(self.log(index));
        }
    }

    /// Evaluations that could not be begun, as the parts have said it, each once.
    pub fn complaints(&self) -> Vec<String> {
        let mut all: Vec<String> = vec![];
        for index in 1..=self.count {
            let said = std::fs::read_to_string(self.log(index)).unwrap_or_default();
            for line in said.lines().filter(|line| line.starts_with(NOT_BEGUN)) {
                if !all.iter().any(|known| known == line) {
                    all.push(line.into());
                }
            }
        }
        all
    }

    /// Removes exit codes of an earlier run.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn forget_codes(&self, parts: &[usize]) -> Result<()> {
        for index in parts {
            let code = self.code(*index);
            if code.is_file() {
                std::fs::remove_file(&code).with_context(|| format!("cannot remove '{}'", code.display()))?;
            }
        }
        Ok(())
    }

    /// Parts that have not ended by themselves: no exit code, or that of a process that was killed. A part that failed has said why, in its
    /// rows or its log, and would fail again. A network file system may show the last files late.
    pub fn lost(&self, parts: &[usize], patience: Duration) -> Vec<usize> {
        let start = Instant::now();
        let code = |index: &usize| std::fs::read_to_string(self.code(*index)).ok();
        loop {
            if parts.iter().all(|index| code(index).is_some()) || start.elapsed() > patience {
                let ended = |index: &usize| code(index).and_then(|code| code.trim().parse().ok());
                let lost = parts.iter().copied();
                return lost
                    .filter(|index| !matches!(ended(index), Some(0 | EXIT_FAILED)))
                    .collect();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Joins the parts' files, and what the results file holds already, into the results file. The parts stay: they are what a stopped run
    /// goes on from.
    ///
    /// # Errors
    /// Where a file cannot be read or written, or files contradict each other.
    pub fn join(&self) -> Result<()> {
        let parts = (1..=self.count).map(|index| self.file(index));
        let files: Vec<PathBuf> = [self.out.to_path_buf()]
            .into_iter()
            .chain(parts)
            .filter(|file| file.is_file())
            .collect();
        ensure!(
            !files.is_empty(),
            "no part of '{}' has written anything",
            self.out.display()
        );
        let joined = merge::joined(&files)?;
        let new = self.out.with_extension("joining");
        // One of an earlier run that was killed while it joined.
        let _ = std::fs::remove_file(&new);
        merge::write(&joined, &new)?;
        std::fs::rename(&new, self.out).with_context(|| format!("cannot write '{}'", self.out.display()))
    }
}
