//! Adversarial images on their way to npz files.

use crate::attack::Perturbed;
use crate::results::CellHeader;
use crate::score::Batch;
use advae_data::Dataset;
use advae_data::npz::Saved;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// What a saved file says of its images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedMeta {
    /// The cell they were crafted for.
    pub cell: CellHeader,
}

/// Images by cell and sample, kept only where they are to be saved.
#[derive(Default)]
pub struct Images {
    dir: Option<PathBuf>,
    kept: Mutex<HashMap<String, BTreeMap<u64, Vec<f32>>>>,
}

impl Images {
    /// Keeps images for `dir`, those of an interrupted run included; keeps nothing without one.
    ///
    /// # Errors
    /// Where the folder cannot be made or a file of these cells is unreadable.
    pub fn new<'a>(dir: Option<&Path>, resume: bool, cells: impl Iterator<Item = &'a CellHeader>) -> Result<Self> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder '{}'", dir.display()))?;
        let images = Self {
            dir: Some(dir.into()),
            kept: Mutex::default(),
        };
        for cell in cells.filter(|_| resume) {
            let path = dir.join(file_name(cell));
            if path.is_file() {
                images.restore(&cell.key, &Saved::read(&path)?);
            }
        }
        Ok(images)
    }

    fn restore(&self, cell: &str, saved: &Saved) {
        let len = saved.shape.iter().product();
        let images = saved
            .ids
            .iter()
            .copied()
            .zip(saved.images.chunks(len).map(<[f32]>::to_vec));
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(cell.into())
            .or_default()
            .extend(images);
    }

    /// Whether the image is at hand, or nobody wants it.
    pub fn has(&self, cell: &str, id: u64) -> bool {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.dir.is_none() || kept.get(cell).is_some_and(|images| images.contains_key(&id))
    }

    /// Keeps a batch: what the attack returned, or the clean image where it found nothing.
    pub fn keep(&self, cell: &str, batch: &Batch, perturbed: &Perturbed) {
        if self.dir.is_none() {
            return;
        }
        let found = |i: usize| perturbed.found.as_ref().is_none_or(|found| found[i]);
        let image = |i: usize| {
            if found(i) {
                perturbed.x_adv.row(i)
            } else {
                batch.x.row(i)
            }
        };
        let images = batch.ids.iter().enumerate().map(|(i, id)| (*id, image(i).to_vec()));
        self.kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(cell.into())
            .or_default()
            .extend(images);
    }

    /// Writes the cell's file and forgets its images.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn save(&self, cell: &CellHeader, dataset: &Dataset) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let images = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&cell.key)
            .unwrap_or_default();
        let present: Vec<usize> = (0..dataset.len())
            .filter(|i| images.contains_key(&dataset.ids[*i]))
            .collect();
        if present.is_empty() {
            return Ok(());
        }
        let clean = dataset.select(&present);
        let saved = Saved {
            images: clean.ids.iter().flat_map(|id| &images[id]).copied().collect(),
            shape: clean.shape,
            labels: clean.labels,
            ids: clean.ids,
            originals: Some(clean.images),
            targets: None,
            found: None,
            meta: serde_json::to_string(&SavedMeta { cell: cell.clone() })?,
        };
        Ok(saved.write(&dir.join(file_name(cell)))?)
    }
}

fn file_name(cell: &CellHeader) -> String {
    let CellHeader {
        classifier,
        purifier,
        threat_model,
        attack,
        key,
        ..
    } = cell;
    let name = format!("{classifier}-{purifier}-{threat_model}-{attack}-{key}.npz");
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "-_.=@".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::header;
    use crate::tensor::Tensor;
    use advae_abi::info::NormKind;

    #[test]
    fn images_are_saved_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = Dataset::new("d", vec![0., 0.5], vec![0, 1], vec![4, 9], [1, 1, 1], 2).unwrap();
        let cell = header("cw", NormKind::L2, None);
        let x = Tensor::new(vec![2, 1, 1, 1], dataset.images.clone()).unwrap();
        let batch = Batch {
            ids: dataset.ids.clone(),
            x: x.clone(),
            y: dataset.labels.clone(),
        };
        let x_adv = Tensor::new(x.shape.clone(), vec![0.25, 0.75]).unwrap();
        let images = Images::new(Some(dir.path()), false, std::iter::empty()).unwrap();
        images.keep(
            &cell.key,
            &batch,
            &Perturbed {
                x_adv,
                found: Some(vec![true, false]),
                targets: None,
            },
        );
        images.save(&cell, &dataset).unwrap();

        let saved = Saved::read(&dir.path().join(file_name(&cell))).unwrap();
        assert_eq!(
            (saved.images.as_slice(), saved.ids.as_slice()),
            ([0.25, 0.5].as_slice(), [4, 9].as_slice())
        );
        let meta: SavedMeta = serde_json::from_str(&saved.meta).unwrap();
        assert_eq!(meta.cell, cell);
        let again = Images::new(Some(dir.path()), true, [&cell].into_iter()).unwrap();
        assert!(again.has(&cell.key, 9) && !again.has(&cell.key, 10));
    }
}
