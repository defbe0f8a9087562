//! Saved adversarial images: what is written is read, and what is wrong is told.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Write;
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
        targets: Some((0..n as u32).map(|label| label + 1).collect()),
        found: Some((0..n).map(|i| i % 2 == 0).collect()),
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
    fn what_is_written_is_read(n in 1..5_usize, has in any::<[bool; 3]>(), meta: String, value in any::<f32>()) {
        let (_dir, path) = folder();
        let mut before = saved(n);
        before.meta = meta;
        let [originals, targets, found] = has;
        before.originals = before.originals.filter(|_| originals);
        before.targets = before.targets.filter(|_| targets);
        before.found = before.found.filter(|_| found);
        before.images[0] = value;
        before.write(&path).unwrap();
        let after = Saved::read(&path).unwrap();
        let bits = |images: &[f32]| images.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        prop_assert_eq!(bits(&after.images), bits(&before.images));
        prop_assert_eq!(after.sha256(), before.sha256());
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
        problem(|s| *s = Saved {
            images: vec![],
            labels: vec![],
            ids: vec![],
            ..s.clone()
        }),
        "0 labels and images of 3x2x2, expected 1 or more of each"
    );
    assert_eq!(problem(|s| s.targets = Some(vec![1])), "1 targets for 2 labels");
    assert_eq!(problem(|s| s.found = Some(vec![])), "0 values of 'found' for 2 labels");
    assert_eq!(problem(|s| s.ids = vec![7, 7]), "the id 7 occurs twice");
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

/// The archive's own checksums hold values, but not the names of arrays: without its name an optional array is not there.
#[test]
fn no_flipped_bit_changes_what_is_read() {
    let (_dir, path) = folder();
    saved(2).write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, flipped).unwrap();
        match Saved::read(&path) {
            Ok(read) => assert_eq!(read, saved(2), "byte {at}"),
            Err(error) => assert!(error.to_string().contains("x.npz"), "{error}"),
        }
    }
}

#[test]
fn an_array_of_another_file_is_noticed() {
    let (_dir, path) = folder();
    let (mut other, sha256) = (saved(2), saved(2).sha256());
    other.images[3] = 0.25;
    let digest: Vec<u8> = (0..32)
        .map(|i| u8::from_str_radix(&sha256[2 * i..2 * i + 2], 16).unwrap())
        .collect();
    let write = |digest: Option<&[u8]>| {
        let mut npz = writer(&path);
        let shape = (2, 3, 2, 2);
        npz.add_array("x_adv", &Array4::from_shape_vec(shape, other.images.clone()).unwrap())
            .unwrap();
        npz.add_array("x", &Array4::<f32>::from_elem(shape, 0.5)).unwrap();
        npz.add_array("y", &Array1::from(vec![0_i64, 1])).unwrap();
        npz.add_array("ids", &Array1::from(vec![0_i64, 1_000_000_007])).unwrap();
        npz.add_array("targets", &Array1::from(vec![1_i64, 2])).unwrap();
        npz.add_array("found", &Array1::from(vec![true, false])).unwrap();
        npz.add_array("meta", &Array1::from(other.meta.clone().into_bytes()))
            .unwrap();
        if let Some(digest) = digest {
            npz.add_array("sha256", &Array1::from(digest.to_vec())).unwrap();
        }
        npz.finish().unwrap();
    };
    write(Some(&digest));
    assert_eq!(
        message(&path),
        format!(
            "the arrays of 'x.npz' have sha256 {}, but it says {sha256}: it is damaged or was changed: write or copy it \
             again, or leave out its array 'sha256' if the change is meant",
            other.sha256()
        )
    );
    write(None);
    assert_eq!(Saved::read(&path).unwrap(), other);
}

/// An npy file with this header, said to be `len` long, and `values` bytes of zeros.
fn npy(version: u8, len: u32, header: &str, values: usize) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    match version {
        1 => bytes.extend((len as u16).to_le_bytes()),
        _ => bytes.extend(len.to_le_bytes()),
    }
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + values, 0);
    bytes
}

#[test]
fn an_array_that_promises_more_than_there_is_makes_no_room_for_it() {
    let (_dir, path) = folder();
    let told = |npy: Vec<u8>| {
        let mut zip = zip::ZipWriter::new(File::create(&path).unwrap());
        zip.start_file("x_adv.npy", zip::write::SimpleFileOptions::default())
            .unwrap();
        zip.write_all(&npy).unwrap();
        zip.finish().unwrap();
        message(&path)
    };
    let header = |shape: &str| format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n");
    let whole = |shape: &str, values| npy(1, header(shape).len() as u32, &header(shape), values);
    assert_eq!(
        told(whole("(100000000000, 1, 28, 28)", 64)),
        "array 'x_adv' of 'x.npz' has the shape [100000000000, 1, 28, 28], but 64 bytes of values: it is cut short or \
         damaged: write or copy it again"
    );
    let overflow = told(whole("(4294967296, 4294967296, 4294967296, 1)", 64));
    assert!(overflow.contains("but 64 bytes of values"), "{overflow}");
    for (version, len) in [(2, u32::MAX), (3, 1 << 31), (1, 60_000)] {
        let message = told(npy(version, len, &header("(1, 1, 4, 4)"), 64));
        assert!(message.starts_with("cannot read 'x.npz' as npz: "), "{message}");
    }
    for shape in ["(0, 1, 28, 28)", "(0, 1000000, 1000000, 1)", "(2, 0, 28, 28)"] {
        let message = told(whole(shape, 0));
        assert!(
            message.ends_with("expected [N, C, H, W], each 1 or more: save it with that shape"),
            "{message}"
        );
    }
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
fn an_id_that_occurs_twice() {
    assert_eq!(
        told(vec![1, 2], vec![7, 7], |_| {}),
        "array 'ids' of 'x.npz' has the value 7 at index 1, expected every id once: score the file's parts as files of \
         their own"
    );
}

#[test]
fn targets_and_what_was_found_are_one_per_sample() {
    let targets = |npz: &mut NpzWriter<File>| npz.add_array("targets", &Array1::from(vec![3_i64])).unwrap();
    assert_eq!(
        told(vec![1, 2], vec![1, 2], targets),
        "array 'targets' of 'x.npz' has the shape [1], expected [2]: save it with that shape"
    );
    let negative = |npz: &mut NpzWriter<File>| npz.add_array("targets", &Array1::from(vec![3_i64, -1])).unwrap();
    assert_eq!(
        told(vec![1, 2], vec![1, 2], negative),
        "array 'targets' of 'x.npz' has the value -1 at index 1, expected a label in 0..2^32"
    );
    let found = |npz: &mut NpzWriter<File>| npz.add_array("found", &Array1::from(vec![1_i64, 0])).unwrap();
    assert_eq!(
        told(vec![1, 2], vec![1, 2], found),
        "array 'found' of 'x.npz' has the type '<i8', expected bool: save it as .astype('bool')"
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
