//! IDX files: every way to be wrong has its own message, with both values and the remedy.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use advae_data::idx::{encode, load, read_images, read_labels};
use advae_data::{DataError, Dataset};
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use tempfile::TempDir;

/// A folder with two 2x2 images and their labels.
struct Files {
    dir: TempDir,
    images: Vec<u8>,
    labels: Vec<u8>,
}

impl Files {
    fn new() -> Self {
        let images = encode(&[2, 2, 2], &[0, 51, 102, 255, 1, 2, 3, 4]);
        Self {
            dir: TempDir::new().unwrap(),
            images,
            labels: encode(&[2], &[9, 0]),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self) -> Result<Dataset, DataError> {
        fs::write(self.path("images"), &self.images).unwrap();
        fs::write(self.path("labels"), &self.labels).unwrap();
        load("tiny", &self.path("images"), &self.path("labels"), [2, 2], 10)
    }

    /// The error's message, without the folder's changing name.
    fn message(&self) -> String {
        let dir = format!("{}/", self.dir.path().display());
        self.load().unwrap_err().to_string().replace(&dir, "")
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn a_sound_pair_is_read() {
    let dataset = Files::new().load().unwrap();
    assert_eq!(
        dataset.images,
        [0.0, 0.2, 0.4, 1.0, 1.0 / 255.0, 2.0 / 255.0, 3.0 / 255.0, 4.0 / 255.0]
    );
    assert_eq!((&dataset.labels[..], &dataset.ids[..]), (&[9, 0][..], &[0, 1][..]));
    assert_eq!(
        (dataset.shape, dataset.classes, dataset.name.as_str()),
        ([1, 2, 2], 10, "tiny")
    );
}

#[test]
fn gzip_is_told_by_content_not_by_name() {
    let mut files = Files::new();
    let raw = files.load().unwrap();
    files.images = gzip(&files.images);
    assert_eq!(files.load().unwrap(), raw);
}

#[test]
fn gzip_of_several_members_is_one_file() {
    let mut files = Files::new();
    let raw = files.load().unwrap();
    let (start, rest) = files.images.split_at(9);
    files.images = [gzip(start), gzip(rest)].concat();
    assert_eq!(files.load().unwrap(), raw);
}

#[test]
fn swapped_files() {
    let mut files = Files::new();
    std::mem::swap(&mut files.images, &mut files.labels);
    assert_eq!(
        files.message(),
        "'images' begins with 0x00000801 (IDX labels), expected 0x00000803 (IDX images): \
         the files of images and labels are swapped"
    );
}

#[test]
fn a_web_page() {
    let mut files = Files::new();
    files.labels = b"<html>404".to_vec();
    assert_eq!(
        files.message(),
        "'labels' begins with 0x3c68746d, expected 0x00000801 (IDX labels): \
         this looks like a web page: download the file again"
    );
}

#[test]
fn another_format() {
    let mut files = Files::new();
    files.images = b"\x89PNG and so on".to_vec();
    assert_eq!(
        files.message(),
        "'images' begins with 0x89504e47, expected 0x00000803 (IDX images): take the dataset's own IDX file"
    );
}

#[test]
fn truncated() {
    let mut files = Files::new();
    files.images.pop();
    assert_eq!(
        files.message(),
        "'images' is truncated: it has 23 bytes, expected 24: copy or download it again"
    );
}

#[test]
fn truncated_within_the_header() {
    let mut files = Files::new();
    files.labels.truncate(6);
    assert_eq!(
        files.message(),
        "'labels' is truncated: it has 6 bytes, expected 8: copy or download it again"
    );
}

#[test]
fn empty_file() {
    let mut files = Files::new();
    files.images.clear();
    assert_eq!(
        files.message(),
        "'images' is truncated: it has 0 bytes, expected 16: copy or download it again"
    );
}

#[test]
fn a_header_that_promises_more_than_memory() {
    let mut files = Files::new();
    files.images[4..16].fill(0xff);
    assert_eq!(
        files.message(),
        format!(
            "'images' is truncated: it has 24 bytes, expected {}: copy or download it again",
            u64::MAX
        )
    );
}

#[test]
fn trailing_bytes() {
    let mut files = Files::new();
    files.labels.extend([0, 0, 0]);
    assert_eq!(
        files.message(),
        "'labels' has trailing bytes: it has 13 bytes, its header promises 10: copy or download it again"
    );
}

#[test]
fn gzip_cut_short() {
    let mut files = Files::new();
    files.images = gzip(&files.images);
    files.images.truncate(files.images.len() - 10);
    let message = files.message();
    assert!(
        message.starts_with("'images' has a broken gzip stream after "),
        "{message}"
    );
    assert!(message.ends_with(": copy or download it again"), "{message}");
}

#[test]
fn gzip_damaged() {
    let mut files = Files::new();
    files.images = gzip(&files.images);
    let checksum = files.images.len() - 8;
    files.images[checksum] ^= 1;
    assert!(matches!(files.load(), Err(DataError::Gzip { read: 24, .. })));
}

#[test]
fn counts_differ() {
    let mut files = Files::new();
    files.labels = encode(&[3], &[1, 2, 3]);
    assert_eq!(
        files.message(),
        "'images' has 2 images, 'labels' has 3 labels: take both from the same set"
    );
}

#[test]
fn label_out_of_range() {
    let mut files = Files::new();
    files.labels = encode(&[2], &[9, 10]);
    assert_eq!(
        files.message(),
        "'labels' has the label 10 at index 1, expected 0..10: take the dataset's own label file"
    );
}

#[test]
fn another_image_size() {
    let mut files = Files::new();
    files.images = encode(&[2, 1, 3], &[0; 6]);
    assert_eq!(
        files.message(),
        "'images' has images of 1x3, expected 2x2: take the dataset's own image file"
    );
}

#[test]
fn no_images() {
    let mut files = Files::new();
    files.images = encode(&[0, 2, 2], &[]);
    assert_eq!(
        files.message(),
        "'images' holds 0 images, expected at least 1: copy or download it again"
    );
}

#[test]
fn missing_file() {
    let error = read_images(Path::new("no/such/file")).unwrap_err();
    assert!(error.to_string().starts_with("cannot open 'no/such/file': "), "{error}");
}

#[test]
fn a_folder_is_no_file() {
    let dir = TempDir::new().unwrap();
    assert!(matches!(
        read_labels(dir.path()),
        Err(DataError::Io { action: "read", .. })
    ));
}

proptest! {
    #[test]
    fn what_is_encoded_is_read(bytes in proptest::collection::vec(any::<u8>(), 0..60), packed: bool) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        let (count, pixels) = (bytes.len() / 6, &bytes[..bytes.len() / 6 * 6]);
        let file = encode(&[count, 2, 3], pixels);
        fs::write(&path, if packed { gzip(&file) } else { file }).unwrap();
        let images = read_images(&path).unwrap();
        prop_assert_eq!((images.count, images.size, &images.pixels[..]), (count, [2, 3], pixels));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), start in 0..4_usize) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("file");
        let starts: [&[u8]; 4] = [&[], &[0, 0, 8, 3], &[0, 0, 8, 1], &[0x1f, 0x8b, 8, 0]];
        fs::write(&path, [starts[start], &bytes].concat()).unwrap();
        let _ = (read_images(&path), read_labels(&path));
    }
}
