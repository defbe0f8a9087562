//! The folder of a run: one writer, files written whole or not at all, checksums over every checkpoint.

use super::position::Position;
use crate::plugin::hex;
use crate::terminal::console;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The recipe of the run.
pub const RECIPE: &str = "recipe.toml";
/// A JSON line an epoch.
pub const LOG: &str = "log.jsonl";
/// The weights that come out.
pub const WEIGHTS: &str = "weights.safetensors";
/// The position, and the names and checksums of the other files of the checkpoint.
const CHECKPOINT: &str = "checkpoint.json";
/// Locked by the process that trains into the folder. It stays when the run ends: removing it could let two runs in.
const LOCK: &str = "train.lock";
/// Written and removed again, to try the disk.
const TRIAL: &str = "trial";

/// A checkpoint as it was read.
pub struct Checkpoint {
    /// Where the run stood.
    pub position: Position,
    /// Weights, a safetensors blob.
    pub weights: Vec<u8>,
    /// The optimiser's state.
    pub state: Vec<u8>,
    /// Running mean of the weights; empty without one.
    pub average: Vec<u8>,
}

/// The content of `checkpoint.json`.
#[derive(Serialize, Deserialize)]
struct Index {
    position: Position,
    /// Name and sha256 of each file of the checkpoint.
    files: BTreeMap<String, String>,
}

/// The folder of a run, held by one process.
pub struct Folder {
    path: PathBuf,
    /// Whether a run has used the folder before.
    used: bool,
    /// Held until the folder is dropped.
    _lock: File,
}

impl Folder {
    /// Refuses a folder that a new run, or a resumed one, must not write into. Writes nothing.
    ///
    /// # Errors
    /// If it holds a run and `resume` is not given, or files that a run would overwrite and no checkpoint that explains them.
    pub fn refuse(path: &Path, resume: bool) -> Result<()> {
        refuse(path, resume, path.join(LOCK).exists())
    }

    /// Opens the folder, or makes it, for this process alone.
    ///
    /// # Errors
    /// If it cannot be made or written, or another process trains into it.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder '{}'", path.display()))?;
        let used = path.join(LOCK).exists();
        let lock = OpenOptions::new().create(true).append(true).open(path.join(LOCK));
        let lock = lock.with_context(|| format!("cannot write into '{}': choose another --out", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!(
                "another process trains into '{}': wait for its end, or choose another --out",
                path.display()
            ),
            Err(TryLockError::Error(error)) => console::say(&format!(
                "warning: files in '{}' cannot be locked ({error}): see to it that no other run trains into it",
                path.display()
            )),
        }
        Ok(Self {
            path: path.to_path_buf(),
            used,
            _lock: lock,
        })
    }

    /// As [`refuse`](Self::refuse), while the folder is held.
    ///
    /// # Errors
    /// As there.
    pub fn check(&self, resume: bool) -> Result<()> {
        refuse(&self.path, resume, self.used)
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Tries the disk with a file of that many bytes.
    ///
    /// # Errors
    /// If it cannot be written, such as on a full disk.
    pub fn try_disk(&self, bytes: usize) -> Result<()> {
        let path = self.file(&part(TRIAL));
        let written = write_synced(&path, &vec![0; bytes]);
        // What was written of it must not stay, whether or not it went well.
        let _ = std::fs::remove_file(&path);
        written.with_context(|| {
            let shown = self.path.display();
            format!(
                "a checkpoint of {bytes} bytes cannot be written into '{shown}': make room, or choose another --out"
            )
        })
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = self.file(&part(name));
        let write = || {
            write_synced(&temporary, bytes)?;
            std::fs::rename(&temporary, self.file(name))
        };
        write().with_context(|| format!("cannot write '{}'", self.file(name).display()))
    }

    /// Writes a checkpoint: weights, moments and the weights' mean, if there is one, under the step's name first, the position
    /// that points to them last.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, position: &Position, weights: &[u8], state: &[u8], average: &[u8]) -> Result<()> {
        let mut files = BTreeMap::new();
        for (name, bytes) in file_names(position).into_iter().zip([weights, state, average]) {
            if !bytes.is_empty() {
                self.write(&name, bytes)?;
                files.insert(name, hex(&Sha256::digest(bytes)));
            }
        }
        let index = Index {
            position: position.clone(),
            files,
        };
        self.write(CHECKPOINT, seal(&serde_json::to_string_pretty(&index)?).as_bytes())?;
        self.tidy(&index);
        Ok(())
    }

    /// The last checkpoint, with weights and moments.
    ///
    /// # Errors
    /// If a file is missing or is not what was written.
    pub fn load(&self) -> Result<Option<Checkpoint>> {
        let Some(index) = self.index()? else { return Ok(None) };
        let [weights, state, average] = file_names(&index.position).map(|name| self.read(&index, &name));
        Ok(Some(Checkpoint {
            weights: weights?,
            state: state?,
            average: average?,
            position: index.position,
        }))
    }

    fn index(&self) -> Result<Option<Index>> {
        let path = self.file(CHECKPOINT);
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
        let damaged = || {
            let shown = path.display();
            format!("'{shown}' is damaged, or of another version of advae: {REMEDY}")
        };
        let body = String::from_utf8(text).ok().and_then(|text| unseal(&text));
        let body = body.with_context(damaged)?;
        serde_json::from_str(&body).with_context(damaged).map(Some)
    }

    /// A file of the checkpoint; empty if the checkpoint has none of that name.
    fn read(&self, index: &Index, name: &str) -> Result<Vec<u8>> {
        let Some(expected) = index.files.get(name) else {
            return Ok(vec![]);
        };
        let path = self.file(name);
        let shown = path.display();
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read '{shown}' of the checkpoint: {REMEDY}"))?;
        let found = hex(&Sha256::digest(&bytes));
        ensure!(
            found == *expected,
            "'{shown}' is damaged: its sha256 is {found}, the checkpoint was written with {expected}: {REMEDY}"
        );
        Ok(bytes)
    }

    /// Removes what a killed run left behind: checkpoints that `checkpoint.json` does not point to, and files half written. A folder
    /// without a `checkpoint.json` that no run has used before is left as it is.
    ///
    /// # Errors
    /// If `checkpoint.json` is not readable.
    pub fn remove_strays(&self) -> Result<()> {
        match self.index()? {
            Some(index) => self.tidy(&index),
            None if self.used => self.remove(|name| is_checkpoint(name) || is_part(name)),
            None => {}
        }
        Ok(())
    }

    fn tidy(&self, index: &Index) {
        self.remove(|name| is_part(name) || is_checkpoint(name) && !index.files.contains_key(name));
    }

    /// Removes files by name; failing to loses nothing.
    fn remove(&self, stray: impl Fn(&str) -> bool) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file())) {
            if entry.file_name().to_str().is_some_and(&stray) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// What to do about a damaged checkpoint.
const REMEDY: &str = "restore it from a copy, or train anew into another folder";

fn refuse(path: &Path, resume: bool, used: bool) -> Result<()> {
    let shown = path.display();
    if path.join(CHECKPOINT).exists() {
        ensure!(
            resume,
            "'{shown}' holds a run already: add --resume to go on with it, or choose another --out"
        );
        return Ok(());
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    // Checkpoints in a folder that a run has used are what is left of one that was killed.
    let foreign = |name: &String| [WEIGHTS, LOG, RECIPE].contains(&name.as_str()) || !used && is_checkpoint(name);
    if let Some(name) = names.filter(foreign).min() {
        bail!(
            "'{shown}' holds '{name}' but no {CHECKPOINT}: training would overwrite it: move it away, or choose another --out"
        );
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The name of a file while it is written.
fn part(name: &str) -> String {
    format!("{name}.part")
}

const ENDS: [&str; 3] = ["safetensors", "state", "average"];

/// Files of weights, moments and the weights' mean.
fn file_names(position: &Position) -> [String; 3] {
    ENDS.map(|end| format!("checkpoint-{}.{end}", position.step))
}

fn is_checkpoint(name: &str) -> bool {
    let step = name.strip_prefix("checkpoint-").and_then(|rest| rest.split_once('.'));
    step.is_some_and(|(step, end)| {
        !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit()) && ENDS.contains(&end)
    })
}

fn is_part(name: &str) -> bool {
    let whole = name.strip_suffix(".part");
    whole.is_some_and(|name| [CHECKPOINT, RECIPE, WEIGHTS, TRIAL].contains(&name) || is_checkpoint(name))
}

/// The JSON object with the sha256 of its text as the last member.
fn seal(object: &str) -> String {
    let body = object.strip_suffix("\n}").unwrap_or(object);
    format!("{body}{SEAL}{}\"\n}}\n", hex(&Sha256::digest(object.as_bytes())))
}

/// The object without its checksum; absent if the checksum is not that of the text.
fn unseal(text: &str) -> Option<String> {
    let (body, sum) = text.rsplit_once(SEAL)?;
    let object = format!("{body}\n}}");
    (sum == format!("{}\"\n}}\n", hex(&Sha256::digest(object.as_bytes())))).then_some(object)
}

const SEAL: &str = ",\n  \"sha256\": \"";

#[cfg(test)]
mod tests {
    use super::super::position::Sums;
    use super::super::schedule::Schedule;
    use super::*;
    use tempfile::TempDir;

    fn position(step: u64) -> Position {
        Position {
            epoch: 1,
            batch: 2,
            step,
            schedule: Schedule::new(0.1),
            sums: Sums::default(),
            recipe: "r".into(),
        }
    }

    fn open() -> (TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    fn names(folder: &Folder) -> Vec<String> {
        let entries = std::fs::read_dir(&folder.path).unwrap().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_last_checkpoint_is_found_and_older_ones_are_removed() {
        let (_dir, folder) = open();
        assert!(folder.load().unwrap().is_none());
        folder.save(&position(1), b"w1", b"s1", b"a1").unwrap();
        folder.save(&position(2), b"w2", b"s2", b"a2").unwrap();
        let found = folder.load().unwrap().unwrap();
        let files = [found.weights, found.state, found.average];
        assert_eq!(
            (found.position.step, files),
            (2, [b"w2", b"s2", b"a2"].map(|b| b.to_vec()))
        );
        folder.save(&position(3), b"w3", b"s3", b"").unwrap();
        assert!(folder.load().unwrap().unwrap().average.is_empty());
        assert_eq!(
            names(&folder),
            [
                "checkpoint-3.safetensors",
                "checkpoint-3.state",
                "checkpoint.json",
                "train.lock"
            ]
        );
    }

    #[test]
    fn every_flipped_bit_of_a_checkpoint_is_noticed() {
        let (_dir, folder) = open();
        folder.save(&position(1), b"weights", b"state", b"average").unwrap();
        assert!(folder.load().unwrap().is_some());
        for name in names(&folder).iter().filter(|name| *name != LOCK) {
            let (path, whole) = (folder.file(name), std::fs::read(folder.file(name)).unwrap());
            for bit in 0..8 * whole.len() {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                std::fs::write(&path, flipped).unwrap();
                let error = format!("{:#}", folder.load().err().unwrap());
                assert!(
                    error.contains(&format!("{name}' is damaged")) && error.contains(REMEDY),
                    "{error}"
                );
            }
            std::fs::remove_file(&path).unwrap();
            let answer = folder.load();
            assert!(name == CHECKPOINT || format!("{:#}", answer.err().unwrap()).contains(name));
            std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
            assert!(folder.load().is_err(), "{name} was cut off");
            std::fs::write(&path, whole).unwrap();
        }
        assert!(folder.load().unwrap().is_some());
    }

    #[test]
    fn only_what_a_killed_run_left_is_removed() {
        let (_dir, folder) = open();
        let others = [
            "checkpoint-best.safetensors",
            "checkpoint-1.txt",
            "notes.part",
            "checkpoint-.state",
        ];
        let strays = [
            "checkpoint-1.safetensors",
            "checkpoint-7.state.part",
            "weights.safetensors.part",
            "trial.part",
        ];
        let whole = [CHECKPOINT, "checkpoint-2.safetensors", "checkpoint-2.state", LOCK];
        folder.save(&position(2), b"w2", b"s2", b"").unwrap();
        for name in others.iter().chain(&strays) {
            std::fs::write(folder.file(name), "x").unwrap();
        }
        std::fs::create_dir(folder.file("checkpoint-3.state")).unwrap();
        folder.remove_strays().unwrap();
        let mut left = [&others[..], &whole[..], &["checkpoint-3.state"]].concat();
        left.sort_unstable();
        assert_eq!(names(&folder), left);
    }

    #[test]
    fn files_that_no_run_explains_are_never_touched() {
        for name in [WEIGHTS, LOG, RECIPE, "checkpoint-1.safetensors"] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), "mine").unwrap();
            for resume in [false, true] {
                let error = Folder::refuse(dir.path(), resume).unwrap_err().to_string();
                assert!(error.contains(name) && error.contains("move it away"), "{error}");
            }
            let folder = Folder::open(dir.path()).unwrap();
            assert!(folder.check(false).is_err());
            folder.remove_strays().unwrap();
            assert_eq!(std::fs::read(dir.path().join(name)).unwrap(), b"mine");
        }
    }

    #[test]
    fn a_run_that_was_killed_before_its_first_checkpoint_leaves_no_stray() {
        let (dir, folder) = open();
        drop(folder);
        std::fs::write(dir.path().join("checkpoint-1.safetensors"), "x").unwrap();
        Folder::refuse(dir.path(), false).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        folder.remove_strays().unwrap();
        assert_eq!(names(&folder), [LOCK]);
    }

    #[test]
    fn a_folder_has_one_writer() {
        let (dir, folder) = open();
        let error = Folder::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("another process trains into"), "{error}");
        drop(folder);
        assert!(Folder::open(dir.path()).is_ok());
    }

    #[test]
    fn the_disk_is_tried_and_nothing_of_it_stays() {
        let (_dir, folder) = open();
        folder.try_disk(1000).unwrap();
        assert_eq!(names(&folder), [LOCK]);
        let gone = Folder {
            path: folder.file("gone"),
            ..folder
        };
        let error = gone.try_disk(1000).unwrap_err().to_string();
        assert!(error.contains("1000 bytes") && error.contains("make room"), "{error}");
    }
}
