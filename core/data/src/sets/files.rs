//! Files of known sets in a data folder.

use std::path::{Path, PathBuf};

use super::Set;
use crate::{DataError, Dataset, idx};

/// A set from a pair of IDX files whose names begin with `part`, raw or gzip, and the folder that they lie in.
pub(super) fn idx_pair(
    set: &'static Set,
    data_dir: &Path,
    folders: &[&str],
    part: &str,
) -> Result<(Dataset, PathBuf), DataError> {
    let (images, folder) = first(set.name, &within(data_dir, folders), &spellings(part, "images", 3))?;
    // From the same folder: labels of another copy may belong to another dataset.
    let (labels, _) = first(set.name, std::slice::from_ref(&folder), &spellings(part, "labels", 1))?;
    let [_, h, w] = set.family.shape;
    let dataset = idx::load(set.name, &images, &labels, [h, w], set.family.classes)?;
    Ok((dataset, folder))
}

/// These folders of a data folder.
pub(super) fn within(data_dir: &Path, folders: &[&str]) -> Vec<PathBuf> {
    // components: without the slash that joining "" leaves at the end of a message
    let join = |folder: &&str| data_dir.join(folder).components().collect();
    folders.iter().map(join).collect()
}

/// The first of these files that is there, and the folder it lies in.
fn first(name: &str, folders: &[PathBuf], files: &[String]) -> Result<(PathBuf, PathBuf), DataError> {
    for folder in folders {
        let mut paths = files.iter().map(|file| folder.join(file));
        if let Some(path) = paths.find(|path| path.is_file()) {
            return Ok((path, folder.clone()));
        }
    }
    Err(missing(name, folders, files))
}

pub(super) fn missing(name: &str, folders: &[PathBuf], files: &[String]) -> DataError {
    DataError::MissingFile {
        name: name.to_owned(),
        folders: folders.to_vec(),
        files: files.to_vec(),
    }
}

fn spellings(part: &str, kind: &str, dims: usize) -> Vec<String> {
    let spelling = |separator, ending| format!("{part}-{kind}{separator}idx{dims}-ubyte{ending}");
    vec![
        spelling("-", ""),
        spelling("-", ".gz"),
        spelling(".", ""),
        spelling(".", ".gz"),
    ]
}
