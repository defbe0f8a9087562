//! MNIST (LeCun, Cortes and Burges): handwritten digits.

use std::path::{Path, PathBuf};

use super::files::idx_pair;
use super::{Aside, Content, Conventions, Family, Set, Source};
use crate::{DataError, Dataset, mnist_1k};

/// MNIST: 60,000 and 10,000 images `[1, 28, 28]` of ten digits.
pub static MNIST: Family = Family {
    name: "MNIST",
    shape: [1, 28, 28],
    classes: 10,
    class_names: &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"],
    conventions: CONVENTIONS,
    sample: Some(&SAMPLE),
    test: &TEST,
    train: &TRAIN,
};

/// Budgets of Madry et al. 2018; PGD's step of Li et al. 2019.
pub(super) const CONVENTIONS: Conventions = Conventions {
    linf: Some(0.3),
    l2: Some(2.),
    step: Some(0.01),
    l2_caps: &[1.5, 2., 3.],
};

/// Where its files are looked for within a data folder, the most specific first.
const FOLDERS: &[&str] = &["mnist", "MNIST/raw", ""];

pub(super) static SAMPLE: Set = Set {
    name: "mnist-1k",
    about: "1,000 MNIST test images, embedded: the sample that is scored by default",
    samples: mnist_1k::SCORED,
    test: true,
    family: &MNIST,
    source: Source::Embedded(mnist_1k::scored),
    content: Content::Sha256("1b52bb40647aa02bfe3cf9ab2a8fac36952a06048d07fee53df461de35644268"),
    aside: Aside::Embedded {
        images: mnist_1k::seeds,
        within: false,
    },
};

pub(super) static SEEDS: Set = Set {
    name: "mnist-1k-seeds",
    about: "150 more MNIST test images, embedded: seeds of a black-box attacker, never scored",
    samples: mnist_1k::SEEDS,
    test: true,
    family: &MNIST,
    source: Source::Embedded(mnist_1k::seeds),
    content: Content::Sha256("8a4bf457362b24b12ae279e4e976ea45cee31db4da5acbae1e2494dcd5f5dee2"),
    aside: Aside::Embedded {
        images: mnist_1k::seeds,
        within: false,
    },
};

pub(super) static TEST: Set = Set {
    name: "mnist-test",
    about: "MNIST test set, 10,000 images, from the data folder",
    samples: 10_000,
    test: true,
    family: &MNIST,
    source: Source::Files(test),
    content: Content::Sha256("43e748cf0cd338105059023e9512b5b041b5a64d27241ee1846169deb6387a90"),
    aside: Aside::Embedded {
        images: mnist_1k::seeds,
        within: true,
    },
};

pub(super) static TRAIN: Set = Set {
    name: "mnist-train",
    about: "MNIST training set, 60,000 images, from the data folder",
    samples: 60_000,
    test: false,
    family: &MNIST,
    source: Source::Files(train),
    content: Content::Sha256("8cb4f26daedd9a6b26c777d52098ff994b88ca1fb8ea403bf361f654c2646ca3"),
    aside: Aside::Embedded {
        images: mnist_1k::seeds,
        within: false,
    },
};

fn test(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    idx_pair(set, data_dir, FOLDERS, "t10k")
}

fn train(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    idx_pair(set, data_dir, FOLDERS, "train")
}
