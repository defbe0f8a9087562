//! CIFAR-10 (Krizhevsky 2009): small colour photographs.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{missing, within};
use super::{Aside, Content, Conventions, Family, Set, Source};
use crate::choice::aside_of_ten_thousand;
use crate::{DataError, Dataset, cifar_binary, cifar10_1k, hugging_face};

/// CIFAR-10: 50,000 and 10,000 images `[3, 32, 32]` of ten kinds of things.
pub static CIFAR10: Family = Family {
    name: "CIFAR-10",
    shape: [3, 32, 32],
    classes: 10,
    class_names: &[
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ],
    // Budgets of RobustBench; PGD's step of Li et al. 2019.
    conventions: Conventions {
        linf: Some(8. / 255.),
        l2: Some(0.5),
        step: Some(1. / 255.),
        l2_caps: &[0.25, 0.5, 1.],
    },
    sample: Some(&SAMPLE),
    test: &TEST,
    train: &TRAIN,
};

/// Where the batches of the binary version are looked for within a data folder.
const BINARY: &[&str] = &["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", ""];
/// Where parquet files are looked for.
const PARQUET: &[&str] = &["cifar10", "cifar10/plain_text", "plain_text", ""];

pub(super) static SAMPLE: Set = Set {
    name: "cifar10-1k",
    about: "1,000 CIFAR-10 test images, embedded as JPEG (slightly lossy): scored by default by classifiers of their shape",
    samples: cifar10_1k::SCORED,
    test: true,
    family: &CIFAR10,
    source: Source::Embedded(cifar10_1k::scored),
    content: Content::Sha256("57808bbd6056458e95b72365d257fd45fec2233665894df307a9b5aa446b493c"),
    aside: Aside::Embedded {
        images: cifar10_1k::seeds,
        within: false,
    },
};

pub(super) static SEEDS: Set = Set {
    name: "cifar10-1k-seeds",
    about: "150 more CIFAR-10 test images, embedded as JPEG (slightly lossy): seeds of a black-box attacker, never scored",
    samples: cifar10_1k::SEEDS,
    test: true,
    family: &CIFAR10,
    source: Source::Embedded(cifar10_1k::seeds),
    content: Content::Sha256("022e86270e6ea1cf4114e77a4a83c8dea5c522b17611613e711ffb1491cfc2d4"),
    aside: Aside::Embedded {
        images: cifar10_1k::seeds,
        within: false,
    },
};

pub(super) static TEST: Set = Set {
    name: "cifar10-test",
    about: "CIFAR-10 test set, 10,000 images, from the data folder: binary batches, or parquet with PNG or JPEG images",
    samples: 10_000,
    test: true,
    family: &CIFAR10,
    source: Source::Files(test),
    content: Content::Balanced,
    // Of the copy itself: their order differs from copy to copy.
    aside: Aside::Own(aside_of_ten_thousand),
};

pub(super) static TRAIN: Set = Set {
    name: "cifar10-train",
    about: "CIFAR-10 training set, 50,000 images, from the data folder: binary batches, or parquet with PNG or JPEG images",
    samples: 50_000,
    test: false,
    family: &CIFAR10,
    source: Source::Files(train),
    content: Content::Balanced,
    aside: Aside::Embedded {
        images: cifar10_1k::seeds,
        within: false,
    },
};

fn test(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    read(set, data_dir, &["test_batch.bin"], "test")
}

fn train(set: &'static Set, data_dir: &Path) -> Result<(Dataset, PathBuf), DataError> {
    let batches = [
        "data_batch_1.bin",
        "data_batch_2.bin",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin",
    ];
    read(set, data_dir, &batches, "train")
}

/// The binary version where it is, whose pixels are the original ones, else parquet.
fn read(set: &'static Set, data_dir: &Path, batches: &[&str], part: &str) -> Result<(Dataset, PathBuf), DataError> {
    for folder in within(data_dir, BINARY) {
        let paths: Vec<PathBuf> = batches.iter().map(|batch| folder.join(batch)).collect();
        if !paths.iter().any(|path| path.is_file()) {
            continue;
        }
        // Some of them are there: that copy is meant, and what lacks is told.
        if let Some(lacking) = paths.iter().position(|path| !path.is_file()) {
            return Err(missing(set.name, &[folder], &[batches[lacking].to_owned()]));
        }
        return Ok((cifar_binary::load(set.name, &paths)?, folder));
    }
    for folder in within(data_dir, PARQUET) {
        if let Some(shards) = shards(set.name, &folder, part)? {
            let family = set.family;
            let dataset = hugging_face::load(set.name, &shards, Some(family.shape), Some(family.classes))?;
            return Ok((dataset, folder));
        }
    }
    let mut folders = within(data_dir, BINARY);
    folders.extend(within(data_dir, PARQUET));
    folders.sort();
    folders.dedup();
    let mut files: Vec<String> = batches.iter().map(|&batch| batch.to_owned()).collect();
    files.push(format!("{part}-00000-of-00001.parquet"));
    Err(missing(set.name, &folders, &files))
}

/// The files `PART-00000-of-0000N.parquet` and so on of a folder, all N of them; none where there is not the first.
fn shards(name: &str, folder: &Path, part: &str) -> Result<Option<Vec<PathBuf>>, DataError> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(None);
    };
    let first = format!("{part}-00000-of-");
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let count = |name: String| name.strip_prefix(&first)?.strip_suffix(".parquet")?.parse().ok();
    let Some(count) = names.filter_map(count).min() else {
        return Ok(None);
    };
    let file = |i: usize| format!("{part}-{i:05}-of-{count:05}.parquet");
    let lacking = |i: &usize| !folder.join(file(*i)).is_file();
    match (0..count).find(lacking) {
        Some(i) => Err(missing(name, &[folder.to_path_buf()], &[file(i)])),
        None => Ok(Some((0..count).map(|i| folder.join(file(i))).collect())),
    }
}
