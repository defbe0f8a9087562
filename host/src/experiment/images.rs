//! Adversarial images on their way to npz files.

use super::score::Batch;
use crate::results::{CellHeader, Named, Records, claim};
use crate::wire::attack::Perturbed;
use advae_data::Dataset;
use advae_data::npz::Saved;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a saved file says of its images.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedMeta {
    /// The cell they were crafted for.
    pub cell: CellHeader,
}

/// One sample of a file.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    image: Vec<f32>,
    original: Vec<f32>,
    label: u32,
    target: Option<u32>,
    found: Option<bool>,
}

/// Images by cell and sample, kept only where they are to be saved.
#[derive(Default)]
pub struct Images {
    dir: Option<PathBuf>,
    /// Keeps other runs from writing into the folder as long as it is open.
    _lock: Option<File>,
    trouble: Mutex<Option<String>>,
    kept: Mutex<HashMap<String, BTreeMap<u64, Kept>>>,
}

impl Images {
    /// Keeps images for `dir`, those of an interrupted run included; keeps nothing without one.
    ///
    /// # Errors
    /// Where the folder cannot be written or another run writes into it, a file of these cells is there and is not to be gone on
    /// with, or is not what `previous` runs have written.
    pub fn new<'a>(
        dir: Option<&Path>,
        resume: bool,
        cells: impl Iterator<Item = &'a CellHeader>,
        dataset: &Dataset,
        previous: &Records,
    ) -> Result<Self> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder '{}'", dir.display()))?;
        // Before hours of work: whether the folder can be written at all.
        tempfile_in(dir).with_context(|| format!("cannot write into the folder '{}'", dir.display()))?;
        let images = Self {
            dir: Some(dir.into()),
            _lock: Some(locked(dir)?),
            ..Self::default()
        };
        for cell in cells {
            let path = dir.join(file_name(cell));
            if !path.exists() {
                continue;
            }
            ensure!(
                resume,
                "'{}' is there already: add --resume (with --out) to go on with it, or choose another folder",
                path.display()
            );
            let saved = Saved::read(&path)?;
            let known = previous.cell(&cell.key).map(|known| &known.images);
            ensure!(
                known.is_none_or(|known| known.is_empty() || known.contains(&saved.sha256())),
                "'{}' is not what was written for this cell, says the results file: move it away",
                path.display()
            );
            images
                .restore(cell, saved, dataset)
                .with_context(|| format!("'{}'", path.display()))?;
        }
        Ok(images)
    }

    /// Takes the images of a file over, if they are those of this cell.
    fn restore(&self, cell: &CellHeader, saved: Saved, dataset: &Dataset) -> Result<()> {
        let meta: SavedMeta =
            serde_json::from_str(&saved.meta).context("its meta is not of this host: move it away")?;
        ensure!(
            meta.cell.key == cell.key,
            "it holds images of another cell ('{}', not '{}'): move it away",
            meta.cell.key,
            cell.key
        );
        let originals = saved.originals.context("it holds no clean images 'x': move it away")?;
        let len: usize = saved.shape.iter().product();
        let mut images = BTreeMap::new();
        for (i, id) in saved.ids.iter().enumerate() {
            let original = &originals[i * len..(i + 1) * len];
            let place = dataset.ids.iter().position(|other| other == id);
            if let Some(place) = place
                && (dataset.image(place) != original || dataset.labels[place] != saved.labels[i])
            {
                bail!(
                    "its clean image or label of sample {id} is not that of '{}': move it away",
                    dataset.name
                );
            }
            let kept = Kept {
                image: saved.images[i * len..(i + 1) * len].to_vec(),
                original: original.to_vec(),
                label: saved.labels[i],
                target: saved.targets.as_ref().map(|targets| targets[i]),
                found: saved.found.as_ref().map(|found| found[i]),
            };
            images.insert(*id, kept);
        }
        self.lock().entry(cell.key.clone()).or_default().extend(images);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, BTreeMap<u64, Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the image is at hand, or nobody wants it.
    pub fn has(&self, cell: &str, id: u64) -> bool {
        self.dir.is_none() || self.lock().get(cell).is_some_and(|images| images.contains_key(&id))
    }

    /// Keeps a batch: what the attack returned, or the clean image where it found nothing.
    pub fn keep(&self, cell: &str, batch: &Batch, perturbed: &Perturbed) {
        if self.dir.is_none() {
            return;
        }
        let kept = |i: usize| {
            let found = perturbed.found.as_ref().map(|found| found[i]);
            let image = match found {
                Some(false) => batch.x.row(i),
                _ => perturbed.x_adv.row(i),
            };
            Kept {
                image: image.to_vec(),
                original: batch.x.row(i).to_vec(),
                label: batch.y[i],
                target: perturbed.targets.as_ref().map(|targets| targets[i]),
                found,
            }
        };
        let images = batch.ids.iter().enumerate().map(|(i, id)| (*id, kept(i)));
        self.lock().entry(cell.into()).or_default().extend(images);
    }

    /// Why files could not be written, if one could not. The run goes on without it.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the cell's images for its file.
    ///
    /// # Errors
    /// Where what is known of the cell cannot be serialised.
    pub fn take(&self, cell: &CellHeader, shape: [usize; 3]) -> Result<Option<Saved>> {
        let images = self.lock().remove(&cell.key).unwrap_or_default();
        if images.is_empty() {
            return Ok(None);
        }
        let kept = || images.values();
        Ok(Some(Saved {
            images: kept().flat_map(|kept| &kept.image).copied().collect(),
            shape,
            labels: kept().map(|kept| kept.label).collect(),
            ids: images.keys().copied().collect(),
            originals: Some(kept().flat_map(|kept| &kept.original).copied().collect()),
            targets: kept().map(|kept| kept.target).collect(),
            found: kept().map(|kept| kept.found).collect(),
            meta: serde_json::to_string(&SavedMeta { cell: cell.clone() })?,
        }))
    }

    /// Writes the cell's file. Where that fails, [`trouble`](Self::trouble) says so, and the measurements stay.
    pub fn write(&self, cell: &CellHeader, saved: &Saved) {
        let Some(dir) = &self.dir else { return };
        let path = dir.join(file_name(cell));
        if let Err(error) = saved.write(&path) {
            let text = format!(
                "'{}' could not be written ({error}): these images are lost; make room and run the same command with --resume",
                path.display()
            );
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.get_or_insert(text);
        }
    }
}

/// A lock on the folder.
fn locked(dir: &Path) -> Result<File> {
    let folder = File::open(dir).with_context(|| format!("cannot open the folder '{}'", dir.display()))?;
    claim(&folder, || {
        format!(
            "another run saves its images in '{}': wait for its end, or choose another folder",
            dir.display()
        )
    })?;
    Ok(folder)
}

/// Writes and removes a file.
fn tempfile_in(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".advae-{}", std::process::id()));
    std::fs::write(&path, b"advae")?;
    std::fs::remove_file(path)
}

fn file_name(cell: &CellHeader) -> String {
    let short = |named: &Named| {
        let file = named.plugin.rsplit('/').next().unwrap_or_default();
        let weights = named.weights.as_deref().and_then(|path| path.rsplit('/').next());
        let parts = [Some(file), weights].into_iter().flatten().map(String::from);
        parts
            .chain(named.settings.iter().cloned())
            .collect::<Vec<_>>()
            .join("_")
    };
    let purifier = cell.purifier.as_ref().map_or("none".into(), short);
    let [classifier, threat_model, attack] = [&cell.classifier, &cell.threat_model, &cell.attack].map(short);
    let name: String = format!("{classifier}-{purifier}-{threat_model}-{attack}")
        .chars()
        .map(|c| match c {
            c if c.is_ascii_alphanumeric() || "-_.=@".contains(c) => c,
            _ => '_',
        })
        // A file name has 255 bytes at the most; the key tells cells apart.
        .take(200)
        .collect();
    format!("{name}-{}.npz", cell.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Cell;
    use crate::results::tests::header;
    use crate::wire::tensor::Tensor;
    use advae_abi::info::NormKind;

    fn dataset() -> Dataset {
        Dataset::new("d", vec![0., 0.5], vec![0, 1], vec![4, 9], [1, 1, 1], 2).unwrap()
    }

    /// Saves two images of the cell, and returns the file.
    fn save(dir: &Path, cell: &CellHeader) -> PathBuf {
        let dataset = dataset();
        let x = Tensor::new(vec![2, 1, 1, 1], dataset.images.clone()).unwrap();
        let batch = Batch {
            ids: dataset.ids.clone(),
            scoring_ids: vec![1, 2],
            x: x.clone(),
            y: dataset.labels.clone(),
        };
        let perturbed = Perturbed {
            x_adv: Tensor::new(x.shape.clone(), vec![0.25, 0.75]).unwrap(),
            found: Some(vec![true, false]),
            targets: Some(vec![1, 0]),
        };
        let none = Records::default();
        let images = Images::new(Some(dir), false, std::iter::empty(), &dataset, &none).unwrap();
        images.keep(&cell.key, &batch, &perturbed);
        images.write(cell, &images.take(cell, dataset.shape).unwrap().unwrap());
        assert_eq!(images.trouble(), None);
        dir.join(file_name(cell))
    }

    fn resumed(dir: &Path, cell: &CellHeader, previous: &Records) -> Result<Images> {
        Images::new(Some(dir), true, [cell].into_iter(), &dataset(), previous)
    }

    #[test]
    fn a_file_whose_images_were_exchanged_is_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let cell = header("cw", NormKind::L2, None);
        let path = save(dir.path(), &cell);
        let mut saved = Saved::read(&path).unwrap();
        let mut known = Cell::new(cell.clone());
        known.images.insert(saved.sha256());
        let records = Records {
            cells: vec![known],
            ..Records::default()
        };
        drop(resumed(dir.path(), &cell, &records).unwrap());
        saved.images[0] = 0.;
        saved.write(&path).unwrap();
        let error = resumed(dir.path(), &cell, &records).err().unwrap().to_string();
        assert!(error.contains("is not what was written for this cell"), "{error}");
    }

    #[test]
    fn two_runs_do_not_save_into_one_folder() {
        let dir = tempfile::tempdir().unwrap();
        let cell = header("cw", NormKind::L2, None);
        let _first = resumed(dir.path(), &cell, &Records::default()).unwrap();
        let error = resumed(dir.path(), &cell, &Records::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("another run saves its images"), "{error}");
    }

    #[test]
    fn images_are_saved_with_their_targets_and_restored() {
        let dir = tempfile::tempdir().unwrap();
        let cell = header("cw", NormKind::L2, None);
        let saved = Saved::read(&save(dir.path(), &cell)).unwrap();
        assert_eq!(
            (
                saved.images.as_slice(),
                saved.ids.as_slice(),
                saved.targets,
                saved.found
            ),
            (
                [0.25, 0.5].as_slice(),
                [4, 9].as_slice(),
                Some(vec![1, 0]),
                Some(vec![true, false])
            )
        );
        let meta: SavedMeta = serde_json::from_str(&saved.meta).unwrap();
        assert_eq!(meta.cell, cell);
        let again = resumed(dir.path(), &cell, &Records::default()).unwrap();
        assert!(again.has(&cell.key, 9) && !again.has(&cell.key, 10));
    }

    #[test]
    fn a_file_of_an_earlier_run_is_neither_replaced_nor_cut() {
        let dir = tempfile::tempdir().unwrap();
        let cell = header("cw", NormKind::L2, None);
        let path = save(dir.path(), &cell);
        let none = Records::default();
        let first = Images::new(Some(dir.path()), false, [&cell].into_iter(), &dataset(), &none);
        let error = first.err().unwrap().to_string();
        assert!(error.contains("is there already"), "{error}");
        // A smaller run goes on with it: what it does not score stays.
        let again = resumed(dir.path(), &cell, &none).unwrap();
        again.write(&cell, &again.take(&cell, [1, 1, 1]).unwrap().unwrap());
        assert_eq!(Saved::read(&path).unwrap().ids, [4, 9]);
    }

    #[test]
    fn a_file_of_other_images_is_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let (cell, other) = (header("cw", NormKind::L2, None), header("pgd", NormKind::L2, None));
        let path = save(dir.path(), &cell);
        std::fs::rename(&path, dir.path().join(file_name(&other))).unwrap();
        let refused = |cell: &CellHeader, dataset: &Dataset| {
            let cells = [cell].into_iter();
            let error = Images::new(Some(dir.path()), true, cells, dataset, &Records::default());
            format!("{:#}", error.err().unwrap())
        };
        assert!(refused(&other, &dataset()).contains("images of another cell"));
        std::fs::rename(dir.path().join(file_name(&other)), &path).unwrap();
        let mut changed = dataset();
        changed.images[1] = 0.25;
        assert!(refused(&cell, &changed).contains("clean image or label of sample 9"));
    }
}
