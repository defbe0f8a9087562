//! The embedded sample is what its README says.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;
use std::fs;
use std::io::Read;

use advae_data::cifar10_1k::{self, ASSET};
use advae_data::{Dataset, load};
use common::{SCHEMA, jpeg, photo, write_parquet};
use flate2::read::GzDecoder;
use sha2::{Digest, Sha256};

#[test]
fn the_asset_has_its_hashes() {
    let mut content = Vec::new();
    GzDecoder::new(ASSET).read_to_end(&mut content).unwrap();
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/assets/README.md")).unwrap();
    for (bytes, what) in [(ASSET, "the file"), (&content, "its content")] {
        let line = format!("| `{}` | {what}, ", sha256(bytes));
        assert!(readme.contains(&line), "no {line}");
    }
}

#[test]
fn its_two_parts_share_no_image_and_are_the_choices() {
    let (scored, seeds) = cifar10_1k::choice();
    let parts = ["cifar10-1k", "cifar10-1k-seeds"].map(|name| load(name, None).unwrap());
    for (part, rows) in parts.iter().zip([scored, seeds]) {
        let rows: Vec<u64> = rows.into_iter().map(|row| row as u64).collect();
        assert_eq!(part.ids, rows);
        assert!(part.lossy);
    }
    let images: HashSet<Vec<u32>> = parts.iter().flat_map(bits).collect();
    assert_eq!(images.len(), 1150);
    assert_eq!(class_counts(&parts[0]), [108, 98, 95, 106, 94, 105, 106, 94, 96, 98]);
    assert_eq!(class_counts(&parts[1]), [10, 11, 12, 19, 13, 23, 13, 15, 18, 16]);
}

#[test]
fn a_sample_is_packed_from_the_rows_of_a_parquet_file_and_from_no_other_number_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test.parquet");
    let file = jpeg([32, 32, 3], &photo(1));
    let rows: Vec<_> = (0..10_000).map(|row| (Some(file.clone()), row % 10)).collect();
    write_parquet(&path, SCHEMA, &rows);
    let content = cifar10_1k::pack(&path).unwrap();
    assert_eq!(content.len(), 3 * 8 + 1150 * (1 + 4 + 4) + 8 + 1150 * file.len());
    assert!(content.ends_with(&file));
    write_parquet(&path, SCHEMA, &rows[..9999]);
    let message = cifar10_1k::pack(&path).unwrap_err().to_string();
    assert!(message.contains("has 9999 rows, expected 10000: "), "{message}");
}

fn bits(part: &Dataset) -> impl Iterator<Item = Vec<u32>> {
    (0..part.len()).map(|i| part.image(i).iter().map(|pixel| pixel.to_bits()).collect())
}

fn class_counts(dataset: &Dataset) -> Vec<usize> {
    (0..10)
        .map(|class| dataset.labels.iter().filter(|&&label| label == class).count())
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
