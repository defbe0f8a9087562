//! The embedded sample: 1,150 of the 10,000 MNIST test images, chosen once by a seed.
//!
//! 1,000 are scored; 150 more are what a black-box attacker starts from (Papernot et al. 2017), set aside so that no
//! image is both. `assets/README.md` tells their origin and licence, and how the asset is made.

use std::path::Path;

use crate::choice::{self, ASIDE, SAMPLE_SEED};
use crate::idx::{self, Input};
use crate::{DataError, Dataset};

/// The seed of the choice. No other was tried.
pub const SEED: u64 = SAMPLE_SEED;
/// How many images are scored.
pub const SCORED: usize = choice::SCORED;
/// How many images are set aside for the black-box attacker.
pub const SEEDS: usize = ASIDE;
/// The asset: gzip of what [`pack`] makes.
pub const ASSET: &[u8] = include_bytes!("../assets/mnist-1k.idx.gz");

/// Indices into the MNIST test set: (scored, seeds), each sorted. They are the first 1,000 and the next 150 of the
/// test set shuffled by [`SEED`].
pub fn choice() -> (Vec<usize>, Vec<usize>) {
    choice::sample(10_000)
}

/// The asset's content made anew from the MNIST test set: three IDX arrays one after the other, images
/// `[1150, 28, 28]`, labels `[1150]` and ids `[1150]` (32 bits), the scored samples first.
///
/// # Panics
/// If `test` has fewer than 10,000 samples.
pub fn pack(test: &Dataset) -> Vec<u8> {
    let (scored, seeds) = choice();
    let sample = test.select(&[scored, seeds].concat());
    // Exact: every pixel is a byte divided by 255.
    let pixels: Vec<u8> = sample
        .images
        .iter()
        .map(|pixel| (pixel * 255.0).round() as u8)
        .collect();
    let labels: Vec<u8> = sample.labels.iter().map(|&label| label as u8).collect();
    let mut content = idx::encode(&[sample.len(), 28, 28], &pixels);
    content.extend(idx::encode(&[sample.len()], &labels));
    content.extend(idx::INTEGERS_MAGIC.to_be_bytes());
    content.extend((sample.len() as u32).to_be_bytes());
    content.extend(sample.ids.iter().flat_map(|&id| (id as u32).to_be_bytes()));
    content
}

pub(crate) fn scored() -> Result<Dataset, DataError> {
    part("mnist-1k", 0..SCORED)
}

pub(crate) fn seeds() -> Result<Dataset, DataError> {
    part("mnist-1k-seeds", SCORED..SCORED + SEEDS)
}

fn part(name: &str, range: std::ops::Range<usize>) -> Result<Dataset, DataError> {
    let mut input = Input::new(Path::new("embedded mnist-1k"), ASSET)?;
    let ([_, rows, cols], pixels) = input.array(idx::IMAGES)?;
    let (_, labels) = input.array(idx::LABELS)?;
    let (_, ids) = input.array(idx::INTEGERS)?;
    input.end()?;
    let ids: Vec<u64> = idx::numbers(&ids).collect();
    let image = rows * cols;
    Ok(idx::dataset(
        name,
        &pixels[range.start * image..range.end * image],
        &labels[range.clone()],
        ids[range].to_vec(),
        [rows, cols],
        10,
    ))
}
