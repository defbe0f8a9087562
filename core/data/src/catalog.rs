//! Datasets by name or path, and where their files are looked for.

use std::env;
use std::path::{Path, PathBuf};

use crate::sets::{SETS, Set, Source, folder, own_npz};
use crate::{DataError, Dataset, hugging_face};

/// The environment variable that names the data folder where none is given.
pub const DATA_DIR: &str = "ADVAE_DATA_DIR";

/// The embedded sample that is taken where nobody names a dataset and none fits better ([`sample_for`](crate::sample_for)).
pub const DEFAULT: &str = "mnist-1k";

/// A dataset, and where it was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The dataset.
    pub dataset: Dataset,
    /// The folder or file that it was read from; none for what is embedded.
    pub at: Option<PathBuf>,
}

/// Loads a dataset by its name (see [`sets()`]), or a user's own by its path.
///
/// Those read from files are looked for in `data_dir`, or in the folder [`DATA_DIR`] names where that is `None`: MNIST
/// in its subfolders `mnist` and `MNIST/raw` or in the folder itself, Fashion-MNIST in `fashion-mnist` and
/// `FashionMNIST/raw`. A file may be raw or gzip, and spelled `t10k-images-idx3-ubyte` or `t10k-images.idx3-ubyte`,
/// with or without `.gz`. CIFAR-10 is looked for as the batches of its binary version (`test_batch.bin`) in `cifar-10-batches-bin`,
/// `cifar10/cifar-10-batches-bin`, `cifar10` and the folder itself, then as parquet files (`test-00000-of-00001.parquet`) in `cifar10`,
/// `cifar10/plain_text`, `plain_text` and the folder itself. The content must be the named dataset's: other IDX files are read with
/// [`idx::load`](crate::idx::load).
///
/// A name with a slash in it, or one that ends in `.npz` or `.parquet`, is a path: of a folder of images (`DIR/<class>/*.png`, `.jpg` or
/// `.jpeg`, the classes numbered in the order of their names), of an npz file with `images` (uint8, or float32 in [0, 1]) and `labels`,
/// or of a parquet file with a column `img` or `image` of PNG or JPEG files and a column `label`. Such a dataset is named after the last
/// part of its path, a folder with a slash behind it.
///
/// # Errors
/// [`DataError::UnknownDataset`], [`DataError::NoDataDir`], [`DataError::NotAFolder`], [`DataError::MissingFile`],
/// [`DataError::OtherContent`], and what the format's reader answers: [`DataError::Unfit`] or one of those that
/// [`idx::load`](crate::idx::load) and [`npz`](crate::npz) name.
pub fn load(name: &str, data_dir: Option<&Path>) -> Result<Dataset, DataError> {
    Ok(find(name, data_dir)?.dataset)
}

/// As [`load`], and says where the dataset was found.
///
/// # Errors
/// As [`load`].
pub fn find(name: &str, data_dir: Option<&Path>) -> Result<Found, DataError> {
    match SETS.iter().find(|set| set.name == name) {
        Some(set) => set.find(data_dir),
        None if is_path(name) => own(Path::new(name)),
        None => Err(unknown(name)),
    }
}

/// The sets that [`load`] knows by name.
pub fn sets() -> &'static [&'static Set] {
    &SETS
}

impl Set {
    /// Loads the set, from `data_dir` or else the folder that [`DATA_DIR`] names if it is not embedded.
    ///
    /// # Errors
    /// As [`load`].
    pub fn find(&'static self, data_dir: Option<&Path>) -> Result<Found, DataError> {
        match self.source {
            Source::Embedded(read) => Ok(Found {
                dataset: read()?.of(self),
                at: None,
            }),
            Source::Files(read) => {
                let (dataset, folder) = read(self, &data_folder(self.name, data_dir)?)?;
                self.check(&dataset, &folder)?;
                Ok(Found {
                    dataset: dataset.of(self),
                    at: Some(folder),
                })
            }
        }
    }
}

/// Whether a name is a path: names of the known sets are never files of the current folder.
fn is_path(name: &str) -> bool {
    name.contains('/') || [".npz", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

/// A user's own images.
fn own(path: &Path) -> Result<Found, DataError> {
    let metadata = path.metadata().map_err(|error| DataError::io("open", path, error))?;
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let last = resolved.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let ends = |ending: &str| last.to_ascii_lowercase().ends_with(ending);
    let dataset = if metadata.is_dir() {
        folder::load(&format!("{last}/"), path)
    } else if ends(".npz") {
        own_npz::load(&last, path)
    } else if ends(".parquet") {
        hugging_face::load(&last, &[path.to_path_buf()], None, None)
    } else {
        Err(DataError::unfit(
            format!("'{}'", path.display()),
            "is no dataset by its name",
            "a folder of images, FILE.npz or FILE.parquet",
            "name one of these",
        ))
    };
    Ok(Found {
        dataset: dataset?,
        at: Some(path.to_path_buf()),
    })
}

fn data_folder(name: &str, given: Option<&Path>) -> Result<PathBuf, DataError> {
    let from_env = || {
        env::var_os(DATA_DIR)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = given.map(Path::to_path_buf).or_else(from_env);
    let path = path.ok_or_else(|| DataError::NoDataDir { name: name.to_owned() })?;
    if path.is_dir() {
        Ok(path)
    } else {
        Err(DataError::NotAFolder {
            name: name.to_owned(),
            path,
        })
    }
}

fn unknown(name: &str) -> DataError {
    let known: Vec<&str> = SETS.iter().map(|set| set.name).collect();
    DataError::UnknownDataset {
        name: name.to_owned(),
        known: known.join(", "),
    }
}
