//! The embedded sample is what its README says.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::io::Read;
use std::{env, path::Path};

use advae_data::mnist_1k::{self, ASSET};
use advae_data::{DATA_DIR, Dataset, load};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

#[test]
fn the_asset_has_its_hashes() {
    assert_eq!(
        sha256(ASSET),
        "406c162e353ba3b3622fe075c3f427aaaf02b86d534f3c176b8e70165d914494"
    );
    assert_eq!(
        sha256(&content()),
        "8d4d3a8c6d545d5899bf774d0ee77b163aa0ab5819883463a3b31deab78a0ce3"
    );
}

#[test]
fn the_ids_are_those_of_the_choice() {
    let (scored, seeds) = mnist_1k::choice();
    let both = [
        load("mnist-1k", None).unwrap().ids,
        load("mnist-1k-seeds", None).unwrap().ids,
    ];
    let chosen = [scored, seeds].map(|part| part.into_iter().map(|index| index as u64).collect::<Vec<_>>());
    assert_eq!(both, chosen);
}

#[test]
fn the_choice_is_pinned() {
    // From another implementation, in Python.
    let (scored, seeds) = mnist_1k::choice();
    assert_eq!(
        (&scored[..4], &scored[996..]),
        (&[8, 10, 12, 29][..], &[9971, 9973, 9987, 9999][..])
    );
    assert_eq!(
        (&seeds[..4], &seeds[146..]),
        (&[33, 98, 123, 143][..], &[9775, 9782, 9828, 9988][..])
    );
    let distinct: HashSet<usize> = scored.into_iter().chain(seeds).collect();
    assert_eq!(distinct.len(), 1150);
}

#[test]
fn the_scored_sample_is_whole() {
    let scored = load("mnist-1k", None).unwrap();
    assert_eq!(
        (scored.name.as_str(), scored.len(), scored.shape, scored.classes),
        ("mnist-1k", 1000, [1, 28, 28], 10)
    );
    assert_eq!(class_counts(&scored), [96, 115, 107, 97, 94, 91, 105, 102, 102, 91]);
    check(&scored);
}

#[test]
fn the_seeds_are_whole() {
    let seeds = load("mnist-1k-seeds", None).unwrap();
    assert_eq!((seeds.len(), seeds.shape, seeds.classes), (150, [1, 28, 28], 10));
    assert_eq!(class_counts(&seeds), [12, 18, 16, 16, 16, 12, 15, 21, 12, 12]);
    check(&seeds);
}

/// Runs where ADVAE_DATA_DIR names a folder with MNIST.
#[test]
fn the_sample_equals_the_full_files() {
    let Some(dir) = env::var_os(DATA_DIR) else { return };
    let test = load("mnist-test", Some(Path::new(&dir))).unwrap();
    let (scored, seeds) = mnist_1k::choice();
    for (name, part) in [("mnist-1k", scored), ("mnist-1k-seeds", seeds)] {
        let embedded = load(name, None).unwrap();
        let selected = test.select(&part);
        assert_eq!(embedded.images, selected.images);
        assert_eq!(embedded.sha256(), selected.sha256());
    }
    assert_eq!(
        test.random_subset(1000, mnist_1k::SEED).sha256(),
        load("mnist-1k", None).unwrap().sha256()
    );
    assert!(mnist_1k::pack(&test) == content());
}

fn check(dataset: &Dataset) {
    assert!(dataset.ids.is_sorted());
    let same = Dataset::new(
        "same",
        dataset.images.clone(),
        dataset.labels.clone(),
        dataset.ids.clone(),
        dataset.shape,
        dataset.classes,
    );
    assert_eq!(same.unwrap().sha256(), dataset.sha256());
}

fn class_counts(dataset: &Dataset) -> Vec<usize> {
    (0..10)
        .map(|class| dataset.labels.iter().filter(|&&label| label == class).count())
        .collect()
}

fn content() -> Vec<u8> {
    let mut content = Vec::new();
    GzDecoder::new(ASSET).read_to_end(&mut content).unwrap();
    content
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
