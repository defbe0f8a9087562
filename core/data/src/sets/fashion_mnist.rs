//! Fashion-MNIST (Xiao et al. 2017): pieces of clothing, in MNIST's format.

use std::path::{Path, PathBuf};

use super::files::idx_pair;
use super::{Aside, Content, Family, Set, Source, mnist};
use crate::choice::aside_of_ten_thousand;
use crate::{DataError, Dataset};

/// Fashion-MNIST: 60,000 and 10,000 images `[1, 28, 28]` of ten kinds of clothing.
pub static FASHION_MNIST: Family = Family {
    name: "Fashion-MNIST",
    shape: [1, 28, 28],
    classes: 10,
    class_names: &[
        "T-shirt",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ],
    conventions: mnist::CONVENTIONS,
    sample: None,
    test: &TEST,
    train: &TRAIN,
};

/// Where its files are looked for within a data folder, the most specific first. Not in the folder itself: the names are MNIST's.
const FOLDERS: &[&str] = &["fashion-mnist", "FashionMNIST/raw"];

pub(super) static TEST: Set = Set {
    name: "fashion-mnist-test",
    about: "Fashion-MNIST test set, 10,000 images, from the data folder",
    samples: 10_000,
    test: true,
    family: &FASHION_MNIST,
    source: Source::Files(test),
    content: Content::Sha256("d8f9087de15ec096e43416de19daeff46b17b1a34d0567537fce4d2f379c6e41"),
    aside: Aside::Own(aside_of_ten_thousand),
};

pub(super) static TRAIN: Set = Set {
    name: "fashion-mnist-train",
    about: "Fashion-MNIST training set, 60,000 images, from the data folder",
    samples: 60_000,
    test: false,
    family: &FASHION_MNIST,
    source: Source::Files(train),
    content: Content::Sha256("6ff61d99da4fedc19e091151b88bf03f42d8cbcd24186c0d727dfd0c5d913ca1"),
    aside: Aside::Nothing,
};

fn test(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    idx_pair(set, data_dir, FOLDERS, "t10k")
}

fn train(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    idx_pair(set, data_dir, FOLDERS, "train")
}
