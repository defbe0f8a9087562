//! The embedded sample: 1,150 of the 10,000 CIFAR-10 test images, chosen once by a seed, as the JPEG files of a public export.
//!
//! JPEG is slightly lossy: figures measured on it are not figures on the official release. 1,000 are scored; 150 more are what a
//! black-box attacker starts from, set aside so that no image is both. `assets/README.md` tells their origin and how the asset is made.

use std::ops::Range;
use std::path::Path;

use crate::choice::{self, ASIDE, SAMPLE_SEED};
use crate::idx::{self, Input};
use crate::pictures::Album;
use crate::sets::CIFAR10;
use crate::{DataError, Dataset};

/// The seed of the choice, that of mnist-1k.
pub const SEED: u64 = SAMPLE_SEED;
/// How many images are scored.
pub const SCORED: usize = choice::SCORED;
/// How many images are set aside for the black-box attacker.
pub const SEEDS: usize = ASIDE;
/// The asset: gzip of what [`pack`] makes.
pub const ASSET: &[u8] = include_bytes!("../assets/cifar10-1k.jpegs.gz");

/// Rows of the export's test file: (scored, seeds), each sorted. They are the first 1,000 and the next 150 of the test set shuffled by
/// [`SEED`].
pub fn choice() -> (Vec<usize>, Vec<usize>) {
    choice::sample(10_000)
}

/// The asset's content made anew from a parquet file with the JPEG test images: four IDX arrays one after the other, labels `[1150]`,
/// rows in the file `[1150]` (32 bits), lengths of the JPEG files `[1150]` (32 bits) and the files themselves, joined; the scored
/// samples first.
///
/// # Errors
/// [`DataError::Io`], and [`DataError::Unfit`] where the file is damaged or has not 10,000 rows.
pub fn pack(test: &Path) -> Result<Vec<u8>, DataError> {
    let rows = crate::hugging_face::rows(test)?;
    if rows.len() != 10_000 {
        return Err(DataError::unfit(
            format!("'{}'", test.display()),
            format!("has {} rows", rows.len()),
            "10000",
            "name the file of CIFAR-10's test images",
        ));
    }
    let (scored, seeds) = choice();
    let chosen: Vec<usize> = scored.into_iter().chain(seeds).collect();
    let labels: Vec<u8> = chosen.iter().map(|&row| rows[row].1 as u8).collect();
    let files: Vec<&[u8]> = chosen.iter().map(|&row| rows[row].0.as_slice()).collect();
    let mut content = idx::encode(&[labels.len()], &labels);
    content.extend(integers(chosen.iter().copied()));
    content.extend(integers(files.iter().map(|file| file.len())));
    let joined = files.concat();
    content.extend(idx::encode(&[joined.len()], &joined));
    Ok(content)
}

/// An IDX array of 32-bit integers.
fn integers(numbers: impl ExactSizeIterator<Item = usize>) -> Vec<u8> {
    let mut array = idx::INTEGERS_MAGIC.to_be_bytes().to_vec();
    array.extend((numbers.len() as u32).to_be_bytes());
    array.extend(numbers.flat_map(|number| (number as u32).to_be_bytes()));
    array
}

pub(crate) fn scored() -> Result<Dataset, DataError> {
    part("cifar10-1k", 0..SCORED)
}

pub(crate) fn seeds() -> Result<Dataset, DataError> {
    part("cifar10-1k-seeds", SCORED..SCORED + SEEDS)
}

fn part(name: &str, range: Range<usize>) -> Result<Dataset, DataError> {
    let mut input = Input::new(Path::new("embedded cifar10-1k"), ASSET)?;
    let (_, labels) = input.array(idx::LABELS)?;
    let (_, rows) = input.array(idx::INTEGERS)?;
    let (_, lengths) = input.array(idx::INTEGERS)?;
    let (_, joined) = input.array(idx::LABELS)?;
    input.end()?;
    let mut rest = joined.as_slice();
    let mut album = Album::new(Some(CIFAR10.shape));
    for (i, length) in idx::numbers(&lengths).enumerate() {
        let (file, more) = rest.split_at(length as usize);
        rest = more;
        if range.contains(&i) {
            album.add(|| format!("embedded image {i} of '{name}'"), file, u32::from(labels[i]))?;
        }
    }
    let ids = idx::numbers(&rows).skip(range.start).take(range.len()).collect();
    let dataset = album.dataset(name, CIFAR10.classes)?;
    Ok(Dataset { ids, ..dataset })
}
