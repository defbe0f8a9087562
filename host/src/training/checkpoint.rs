//! Checkpoints: written whole or not at all, and enough for an exact resume.

use super::schedule::Schedule;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where a run stands. Everything random is keyed by seed, epoch and step, so this is all there is to remember beside
/// weights and moments.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Position {
    /// Epoch in progress.
    pub epoch: usize,
    /// Next batch within the epoch.
    pub batch: usize,
    /// Steps taken in all.
    pub step: u64,
    /// Rate, plateau and best.
    pub schedule: Schedule,
    /// Sums of the epoch so far.
    pub sums: Sums,
    /// Hash of the recipe: another recipe cannot resume this run.
    pub recipe: String,
}

/// Sums over the batches of an epoch.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Loss times images.
    pub loss: f64,
    /// Images.
    pub images: usize,
    /// Correct among the images that were trained on.
    pub correct: usize,
    /// Images that were trained on (clean and adversarial).
    pub seen: usize,
    /// Seconds.
    pub seconds: f64,
    /// What an objective of the plugin's own measured, by name: the sum over images, and their number.
    #[serde(default)]
    pub own: BTreeMap<String, (f64, usize)>,
}

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

/// The folder of a run.
pub struct Folder(PathBuf);

impl Folder {
    /// Opens or makes it.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make the folder '{}'", path.display()))?;
        Ok(Self(path.to_path_buf()))
    }

    /// A file of the run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file whole or not at all.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let temporary = self.file(&format!("{name}.part"));
        let write = || {
            std::fs::write(&temporary, bytes)?;
            std::fs::rename(&temporary, self.file(name))
        };
        write().with_context(|| format!("cannot write '{}'", self.file(name).display()))
    }

    /// Writes a checkpoint: weights, moments and the weights' mean, if there is one, under the step's name first, the position
    /// that points to them last.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn save(&self, position: &Position, weights: &[u8], state: &[u8], average: &[u8]) -> Result<()> {
        let old = self.load().ok().flatten().map(|old| old.position);
        for (name, bytes) in file_names(position).iter().zip([weights, state, average]) {
            if !bytes.is_empty() {
                self.write(name, bytes)?;
            }
        }
        self.write("checkpoint.json", serde_json::to_string_pretty(position)?.as_bytes())?;
        if let Some(old) = old.filter(|old| old.step != position.step) {
            // The old files are of no more use; failing to delete them loses nothing.
            file_names(&old).iter().for_each(|name| {
                let _ = std::fs::remove_file(self.file(name));
            });
        }
        Ok(())
    }

    /// The last checkpoint, with weights and moments.
    ///
    /// # Errors
    /// Where it is not readable.
    pub fn load(&self) -> Result<Option<Checkpoint>> {
        let path = self.file("checkpoint.json");
        if !path.exists() {
            return Ok(None);
        }
        let read = |name: &str| {
            let path = self.file(name);
            std::fs::read(&path).with_context(|| format!("cannot read '{}'", path.display()))
        };
        let position: Position = serde_json::from_slice(&read("checkpoint.json")?)
            .with_context(|| format!("'{}' is not readable: remove it to start anew", path.display()))?;
        let [weights, state, average] = file_names(&position);
        let average = match self.file(&average).exists() {
            true => read(&average)?,
            false => vec![],
        };
        Ok(Some(Checkpoint {
            weights: read(&weights)?,
            state: read(&state)?,
            average,
            position,
        }))
    }
}

/// Files of weights, moments and the weights' mean.
fn file_names(position: &Position) -> [String; 3] {
    ["safetensors", "state", "average"].map(|end| format!("checkpoint-{}.{end}", position.step))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_last_checkpoint_is_found_and_older_ones_are_removed() {
        let path = std::env::temp_dir().join(format!("advae-checkpoint-{}", std::process::id()));
        let folder = Folder::open(&path).unwrap();
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
        assert!(!folder.file("checkpoint-1.safetensors").exists());
        std::fs::remove_dir_all(path).unwrap();
    }
}
