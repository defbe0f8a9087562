//! Saved adversarial images: what is written is read, and what is wrong is told.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use advae_data::DataError;
use advae_data::npz::Saved;
use ndarray::{Array1, Array4, ShapeBuilder};
use ndarray_npy::NpzWriter;
use proptest::prelude::*;
use tempfile::TempDir;

fn saved(n: usize) -> Saved {
    Saved {
        images: (0..n * 12).map(|value| value as f32 / 7.0 - 1.0).collect(),
        shape: [3, 2, 2],
        labels: (0..n as u32).collect(),
        ids: (0..n as u64).map(|id| id * 1_000_000_007).collect(),
        originals: Some(vec![0.5; n * 12]),
        meta: r#"{"attack": "pgd", "ε": 0.3}"#.to_owned(),
    }
}

fn folder() -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.npz");
    (dir, path)
}

/// The error's message, without the folder's changing name.
fn message(path: &Path) -> String {
    let dir = format!("{}/", path.parent().unwrap().display());
    Saved::read(path).unwrap_err().to_string().replace(&dir, "")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_is_written_is_read(n in 0..5_usize, originals: bool, meta: String, value in any::<f32>()) {
        let (_dir, path) = folder();
        let mut before = saved(n);
        before.meta = meta;
        if !originals {
            before.originals = None;
        }
        if let Some(first) = before.images.first_mut() {
            *first = value;
        }
        before.write(&path).unwrap();
        let after = Saved::read(&path).unwrap();
        let bits = |images: &[f32]| images.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&after.images), bits(&before.images));
        prop_assert_eq!(Saved { images: vec![], ..after }, Saved { images: vec![], ..before });
    }
}

#[test]
fn nothing_is_left_beside_the_file() {
    let (dir, path) = folder();
    saved(1).write(&path).unwrap();
    saved(2).write(&path).unwrap();
    assert_eq!(Saved::read(&path).unwrap(), saved(2));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_failed_write_leaves_what_was_there() {
    let (dir, path) = folder();
    fs::create_dir(&path).unwrap();
    fs::write(path.join("kept"), "").unwrap();
    let error = saved(1).write(&path).unwrap_err();
    assert!(matches!(error, DataError::Io { action: "write", .. }), "{error}");
    assert!(path.join("kept").exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_not_there() {
    let error = saved(1)
        .write(Path::new("no/such/folder/x.npz"))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("cannot write 'no/such/folder/x.npz': "), "{error}");
}

#[test]
fn lengths_that_disagree_are_not_written() {
    let (dir, path) = folder();
    let problem = |change: fn(&mut Saved)| {
        let mut wrong = saved(2);
        change(&mut wrong);
        match wrong.write(&path) {
            Err(DataError::Invalid { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        problem(|s| s.images.truncate(5)),
        "5 pixel values for 2 labels and images of 3x2x2, expected 24"
    );
    assert_eq!(
        problem(|s| s.originals = Some(vec![])),
        "0 pixel values of clean images, expected 24"
    );
    assert_eq!(problem(|s| s.ids.push(1)), "3 ids for 2 labels");
    assert_eq!(
        problem(|s| s.ids[0] = u64::MAX),
        "the id 18446744073709551615 does not fit, expected one below 2^63"
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn truncated() {
    let (_dir, path) = folder();
    saved(3).write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    for len in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..len]).unwrap();
        let message = message(&path);
        assert!(message.starts_with("cannot read 'x.npz' as npz: "), "{message}");
        assert!(
            message.ends_with("cut short or damaged: write or copy it again"),
            "{message}"
        );
    }
}

#[test]
fn a_flipped_byte_is_noticed() {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    npz.add_array("x_adv", &Array4::<f32>::zeros((1, 1, 28, 28))).unwrap();
    npz.add_array("y", &Array1::<i64>::zeros(1)).unwrap();
    npz.add_array("ids", &Array1::<i64>::zeros(1)).unwrap();
    npz.finish().unwrap();
    assert!(Saved::read(&path).is_ok());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1; // within x_adv, stored as it is
    fs::write(&path, bytes).unwrap();
    assert!(
        message(&path).starts_with("cannot read 'x.npz' as npz: "),
        "{}",
        message(&path)
    );
}

#[test]
fn missing() {
    assert!(matches!(
        Saved::read(Path::new("no/such.npz")),
        Err(DataError::Io { action: "open", .. })
    ));
}

fn writer(path: &Path) -> NpzWriter<File> {
    NpzWriter::new(File::create(path).unwrap())
}

#[test]
fn only_the_three_arrays_are_needed_in_any_order() {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    let images = Array4::from_shape_fn((2, 1, 2, 3).f(), |(n, _, h, w)| (100 * n + 10 * h + w) as f32);
    npz.add_array("ids", &Array1::from(vec![4_i64, 5])).unwrap();
    npz.add_array("y", &Array1::from(vec![1_i64, 2])).unwrap();
    npz.add_array("x_adv", &images).unwrap();
    npz.finish().unwrap();
    let read = Saved::read(&path).unwrap();
    assert_eq!(
        read.images,
        [
            0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 100.0, 101.0, 102.0, 110.0, 111.0, 112.0
        ]
    );
    assert_eq!((read.shape, read.originals, read.meta.as_str()), ([1, 2, 3], None, ""));
    assert_eq!((read.labels, read.ids), (vec![1, 2], vec![4, 5]));
}

/// What is said of a file with these labels and ids, and two images of 1x1x1.
fn told(y: Vec<i64>, ids: Vec<i64>, more: fn(&mut NpzWriter<File>)) -> String {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    npz.add_array("x_adv", &Array4::<f32>::zeros((2, 1, 1, 1))).unwrap();
    npz.add_array("y", &Array1::from(y)).unwrap();
    npz.add_array("ids", &Array1::from(ids)).unwrap();
    more(&mut npz);
    npz.finish().unwrap();
    message(&path)
}

#[test]
fn a_missing_array_lists_those_there() {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    npz.add_array("x_adv", &Array4::<f32>::zeros((1, 1, 1, 1))).unwrap();
    npz.add_array("labels", &Array1::<i64>::zeros(1)).unwrap();
    npz.finish().unwrap();
    assert_eq!(
        message(&path),
        "'x.npz' has no array 'y', it has x_adv, labels: save it with numpy.savez(path, x_adv=..., y=..., ids=...)"
    );
}

#[test]
fn another_type() {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    npz.add_array("x_adv", &Array4::<f64>::zeros((1, 1, 1, 1))).unwrap();
    npz.finish().unwrap();
    assert_eq!(
        message(&path),
        "array 'x_adv' of 'x.npz' has the type '<f8', expected float32: save it as .astype('float32')"
    );
}

#[test]
fn another_rank() {
    let (_dir, path) = folder();
    let mut npz = writer(&path);
    npz.add_array("x_adv", &Array1::<f32>::zeros(784)).unwrap();
    npz.finish().unwrap();
    assert_eq!(
        message(&path),
        "array 'x_adv' of 'x.npz' has the shape [784], expected [N, C, H, W]: save it with that shape"
    );
}

#[test]
fn another_count() {
    assert_eq!(
        told(vec![1, 2, 3], vec![1, 2], |_| {}),
        "array 'y' of 'x.npz' has the shape [3], expected [2]: save it with that shape"
    );
    let clean = |npz: &mut NpzWriter<File>| npz.add_array("x", &Array4::<f32>::zeros((1, 1, 1, 1))).unwrap();
    assert_eq!(
        told(vec![1, 2], vec![1, 2], clean),
        "array 'x' of 'x.npz' has the shape [1, 1, 1, 1], expected [2, 1, 1, 1]: save it with that shape"
    );
}

#[test]
fn values_out_of_range() {
    assert_eq!(
        told(vec![1, -2], vec![1, 2], |_| {}),
        "array 'y' of 'x.npz' has the value -2 at index 1, expected a label in 0..2^32"
    );
    assert_eq!(
        told(vec![1, 2], vec![-1, 2], |_| {}),
        "array 'ids' of 'x.npz' has the value -1 at index 0, expected an id of 0 or more"
    );
    let meta = |npz: &mut NpzWriter<File>| npz.add_array("meta", &Array1::from(b"{\xff}".to_vec())).unwrap();
    assert_eq!(
        told(vec![1, 2], vec![1, 2], meta),
        "array 'meta' of 'x.npz' has the value 0xff at index 1, expected text in UTF-8"
    );
}
