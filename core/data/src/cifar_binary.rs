//! CIFAR-10's binary version (`cifar-10-binary.tar.gz`): records of a label and 3,072 bytes, the red, the green and the blue plane.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{DataError, Dataset};

/// Bytes of one record.
const RECORD: usize = 1 + 3 * 32 * 32;
/// Classes of CIFAR-10.
const CLASSES: usize = 10;

/// A dataset from files in this format, one after the other: pixels divided by 255, shape `[3, 32, 32]`, ids the index of the record,
/// counted through all files.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Truncated`] where a file does not end with a record, [`DataError::NoImages`], and
/// [`DataError::Unfit`] for a label that is not in 0..10.
pub fn load(name: &str, paths: &[PathBuf]) -> Result<Dataset, DataError> {
    let (mut images, mut labels) = (vec![], vec![]);
    for path in paths {
        for record in records(path)?.chunks_exact(RECORD) {
            labels.push(u32::from(record[0]));
            images.extend(record[1..].iter().map(|&byte| f32::from(byte) / 255.0));
        }
    }
    let ids = (0..labels.len() as u64).collect();
    Dataset::new(name, images, labels, ids, [3, 32, 32], CLASSES)
}

/// The bytes of whole records with sound labels.
fn records(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = fs::read(path).map_err(|error| DataError::io("read", path, error))?;
    if bytes.is_empty() {
        return Err(DataError::NoImages {
            path: path.to_path_buf(),
        });
    }
    if !bytes.len().is_multiple_of(RECORD) {
        return Err(DataError::Truncated {
            path: path.to_path_buf(),
            found: bytes.len() as u64,
            expected: bytes.len().next_multiple_of(RECORD) as u64,
        });
    }
    let labels = bytes.iter().step_by(RECORD);
    match labels.enumerate().find(|(_, label)| usize::from(**label) >= CLASSES) {
        None => Ok(bytes),
        Some((record, label)) => Err(DataError::unfit(
            format!("'{}'", path.display()),
            format!("has the label {label} in record {record}"),
            format!("0..{CLASSES}"),
            "it is no batch of CIFAR-10's binary version, or damaged: copy or download it again",
        )),
    }
}
