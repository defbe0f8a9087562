//! Checkpoints: written whole or not at all, and enough for an exact resume.

use super::schedule::Schedule;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
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
}

/// A checkpoint as it was read.
pub struct Checkpoint {
    /// Where the run stood.
    pub position: Position,
    /// Weights, a safetensors blob.
    pub weights: Vec<u8>,
    /// The optimiser's state.
    pub state: Vec<u8>,
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

    /// Writes a checkpoint: weights and moments under the step's name first, the position that points to them last.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn save(&self, position: &Position, weights: &[u8], state: &[u8]) -> Result<()> {
        let old = self.load().ok().flatten().map(|old| old.position);
        self.write(&weights_name(position), weights)?;
        self.write(&state_name(position), state)?;
        self.write("checkpoint.json", serde_json::to_string_pretty(position)?.as_bytes())?;
        if let Some(old) = old.filter(|old| old.step != position.step) {
            // The old files are of no more use; failing to delete them loses nothing.
            let _ = std::fs::remove_file(self.file(&weights_name(&old)));
            let _ = std::fs::remove_file(self.file(&state_name(&old)));
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
        let (weights, state) = (read(&weights_name(&position))?, read(&state_name(&position))?);
        Ok(Some(Checkpoint {
            position,
            weights,
            state,
        }))
    }
}

fn weights_name(position: &Position) -> String {
    format!("checkpoint-{}.safetensors", position.step)
}

fn state_name(position: &Position) -> String {
    format!("checkpoint-{}.state", position.step)
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
        folder.save(&position(1), b"w1", b"s1").unwrap();
        folder.save(&position(2), b"w2", b"s2").unwrap();
        let found = folder.load().unwrap().unwrap();
        assert_eq!(
            (found.position.step, found.weights, found.state),
            (2, b"w2".to_vec(), b"s2".to_vec())
        );
        assert!(!folder.file("checkpoint-1.safetensors").exists());
        std::fs::remove_dir_all(path).unwrap();
    }
}
