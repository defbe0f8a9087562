//! Which datasets there are, by name, and where their files lie.

use std::env;
use std::path::{Path, PathBuf};

use crate::{DataError, Dataset, idx, mnist_1k};

/// The environment variable that names the data folder where none is given.
pub const DATA_DIR: &str = "ADVAE_DATA_DIR";

/// Loads a dataset by its name (see [`names`]).
///
/// Those read from files are looked for in `data_dir`, or in the folder [`DATA_DIR`] names where that is `None`: MNIST
/// in its subfolders `mnist` and `MNIST/raw` or in the folder itself, Fashion-MNIST in `fashion-mnist` and
/// `FashionMNIST/raw`. A file may be raw or gzip, and spelled `t10k-images-idx3-ubyte` or `t10k-images.idx3-ubyte`,
/// with or without `.gz`. The content must be the named dataset's: other IDX files are read with [`idx::load`].
///
/// # Errors
/// [`DataError::UnknownDataset`], [`DataError::NoDataDir`], [`DataError::NotAFolder`], [`DataError::MissingFile`],
/// [`DataError::OtherContent`], and what [`idx::load`] answers.
pub fn load(name: &str, data_dir: Option<&Path>) -> Result<Dataset, DataError> {
    match name {
        "mnist-1k" => mnist_1k::scored(),
        "mnist-1k-seeds" => mnist_1k::seeds(),
        "mnist-test" => MNIST_TEST.load(name, data_dir),
        "mnist-train" => MNIST_TRAIN.load(name, data_dir),
        "fashion-mnist-test" => FASHION_TEST.load(name, data_dir),
        "fashion-mnist-train" => FASHION_TRAIN.load(name, data_dir),
        _ => Err(unknown(name)),
    }
}

/// The names [`load`] knows, and what each is.
pub fn names() -> &'static [(&'static str, &'static str)] {
    NAMES
}

/// Whether the named dataset holds test images: those of its set that models are evaluated on and must not be trained on.
pub fn is_test_set(name: &str) -> bool {
    matches!(
        name,
        "mnist-1k" | "mnist-1k-seeds" | "mnist-test" | "fashion-mnist-test"
    )
}

const NAMES: &[(&str, &str)] = &[
    (
        "mnist-1k",
        "1,000 MNIST test images, embedded: the sample that is scored by default",
    ),
    (
        "mnist-1k-seeds",
        "150 more MNIST test images, embedded: seeds of a black-box attacker, never scored",
    ),
    ("mnist-test", "MNIST test set, 10,000 images, from the data folder"),
    ("mnist-train", "MNIST training set, 60,000 images, from the data folder"),
    (
        "fashion-mnist-test",
        "Fashion-MNIST test set, 10,000 images, from the data folder",
    ),
    (
        "fashion-mnist-train",
        "Fashion-MNIST training set, 60,000 images, from the data folder",
    ),
];

/// A pair of IDX files with 28x28 images of ten classes.
struct Files {
    /// Where to look within the data folder, the most specific first.
    folders: &'static [&'static str],
    /// How the file names begin.
    part: &'static str,
    /// [`Dataset::sha256`] of the whole.
    sha256: &'static str,
}

const MNIST: &[&str] = &["mnist", "MNIST/raw", ""];
const FASHION: &[&str] = &["fashion-mnist", "FashionMNIST/raw"];

const MNIST_TEST: Files = Files {
    folders: MNIST,
    part: "t10k",
    sha256: "43e748cf0cd338105059023e9512b5b041b5a64d27241ee1846169deb6387a90",
};
const MNIST_TRAIN: Files = Files {
    folders: MNIST,
    part: "train",
    sha256: "8cb4f26daedd9a6b26c777d52098ff994b88ca1fb8ea403bf361f654c2646ca3",
};
const FASHION_TEST: Files = Files {
    folders: FASHION,
    part: "t10k",
    sha256: "d8f9087de15ec096e43416de19daeff46b17b1a34d0567537fce4d2f379c6e41",
};
const FASHION_TRAIN: Files = Files {
    folders: FASHION,
    part: "train",
    sha256: "6ff61d99da4fedc19e091151b88bf03f42d8cbcd24186c0d727dfd0c5d913ca1",
};

impl Files {
    fn load(&self, name: &str, data_dir: Option<&Path>) -> Result<Dataset, DataError> {
        let data_dir = data_folder(name, data_dir)?;
        // components: without the slash that joining "" leaves at the end of a message
        let folders: Vec<PathBuf> = self
            .folders
            .iter()
            .map(|folder| data_dir.join(folder).components().collect())
            .collect();
        let (images, folder) = find(name, &folders, &spellings(self.part, "images", 3))?;
        // From the same folder: labels of another copy may belong to another dataset.
        let (labels, _) = find(name, std::slice::from_ref(&folder), &spellings(self.part, "labels", 1))?;
        let dataset = idx::load(name, &images, &labels, [28, 28], 10)?;
        let (found, expected) = (dataset.sha256(), self.sha256.to_owned());
        if found != expected {
            return Err(DataError::OtherContent {
                name: name.to_owned(),
                folder,
                found,
                expected,
            });
        }
        Ok(dataset)
    }
}

/// The file, and the folder it lies in.
fn find(name: &str, folders: &[PathBuf], files: &[String]) -> Result<(PathBuf, PathBuf), DataError> {
    for folder in folders {
        let mut paths = files.iter().map(|file| folder.join(file));
        if let Some(path) = paths.find(|path| path.is_file()) {
            return Ok((path, folder.clone()));
        }
    }
    Err(DataError::MissingFile {
        name: name.to_owned(),
        folders: folders.to_vec(),
        files: files.to_vec(),
    })
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
    let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    DataError::UnknownDataset {
        name: name.to_owned(),
        known: known.join(", "),
    }
}
