//! CIFAR-10 from its binary batches and from parquet files, whole and damaged.

// clippy.toml exempts the tests, but not their helpers.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use advae_data::{CIFAR10, DataError, Dataset, cifar_binary, load};
use common::{SCHEMA, jpeg, photo, png, write_parquet};
use tempfile::TempDir;

/// A record of a label and three planes, each of one value.
fn record(label: u8, planes: [u8; 3]) -> Vec<u8> {
    let mut record = vec![label];
    planes.iter().for_each(|plane| record.extend([*plane; 1024]));
    record
}

/// Ten thousand records whose classes are equally frequent, each with its index in its pixels.
fn balanced() -> Vec<u8> {
    let record = |i: usize| record((i % 10) as u8, [(i % 256) as u8, (i / 256) as u8, 7]);
    (0..10_000).flat_map(record).collect()
}

fn written(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

/// The message of an error, without the folder's changing name.
fn without(dir: &TempDir, error: DataError) -> String {
    error.to_string().replace(&dir.path().display().to_string(), "DIR")
}

fn refused(dir: &TempDir, name: &str) -> String {
    without(dir, load(name, Some(dir.path())).unwrap_err())
}

#[test]
fn batches_are_read_plane_by_plane_one_after_the_other() {
    let dir = written(&[
        ("1.bin", &[record(3, [255, 0, 51]), record(9, [0, 0, 0])].concat()),
        ("2.bin", &record(0, [51, 102, 255])),
    ]);
    let paths: Vec<PathBuf> = ["1.bin", "2.bin"].iter().map(|name| dir.path().join(name)).collect();
    let data = cifar_binary::load("c", &paths).unwrap();
    assert_eq!((data.shape, data.classes, data.lossy), ([3, 32, 32], 10, false));
    assert_eq!((&data.labels[..], &data.ids[..]), (&[3, 9, 0][..], &[0, 1, 2][..]));
    let planes = |i: usize| [0, 1024, 2048].map(|at| data.image(i)[at]);
    assert_eq!((planes(0), planes(2)), ([1., 0., 0.2], [0.2, 0.4, 1.]));
    assert!(data.image(2)[1024..2048].iter().all(|pixel| *pixel == 0.4));
}

#[test]
fn a_damaged_batch_is_one_clear_line() {
    let message = |bytes: &[u8]| {
        let dir = written(&[("b.bin", bytes)]);
        let error = cifar_binary::load("c", &[dir.path().join("b.bin")]).unwrap_err();
        without(&dir, error)
    };
    assert_eq!(
        message(&record(1, [0; 3])[..3000]),
        "'DIR/b.bin' is truncated: it has 3000 bytes, expected 3073: copy or download it again"
    );
    assert_eq!(
        message(&[record(1, [0; 3]), record(10, [0; 3])].concat()),
        "'DIR/b.bin' has the label 10 in record 1, expected 0..10: it is no batch of CIFAR-10's binary version, or damaged: copy or \
         download it again"
    );
    assert_eq!(
        message(&[]),
        "'DIR/b.bin' holds 0 images, expected at least 1: copy or download it again"
    );
}

#[test]
fn the_test_set_is_found_in_its_folders_and_knows_its_conventions() {
    let batch = balanced();
    for folder in ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10", "."] {
        let dir = written(&[(&format!("{folder}/test_batch.bin"), &batch)]);
        let test = load("cifar10-test", Some(dir.path())).unwrap();
        assert_eq!(
            (test.len(), test.shape, test.name.as_str()),
            (10_000, [3, 32, 32], "cifar10-test")
        );
        assert_eq!(test.conventions(), &CIFAR10.conventions);
        assert!(!test.lossy);
        assert!(test.set.unwrap().test);
    }
}

#[test]
fn the_attackers_images_are_the_copys_own_and_are_not_scored() {
    let dir = written(&[("test_batch.bin", &balanced())]);
    let test = load("cifar10-test", Some(dir.path())).unwrap();
    let aside = test.attacker_images().unwrap().unwrap();
    let scored = test.without_attacker_images().unwrap();
    assert_eq!((aside.len(), scored.len()), (150, 9850));
    assert!(aside.ids.iter().all(|id| !scored.ids.contains(id)));
    let first = aside.ids[0] as usize;
    assert_eq!(aside.image(0), test.image(first));
    // They are the same as in the embedded sample, where the order is that of its export.
    assert_eq!(aside.ids, load("cifar10-1k-seeds", None).unwrap().ids);
    assert!(scored.take(10).attacker_images().unwrap().is_none());
}

#[test]
fn what_is_not_the_whole_set_does_not_pass_under_its_name() {
    let whole = balanced();
    let part = written(&[("test_batch.bin", &whole[..9_999 * 3073])]);
    assert_eq!(
        refused(&part, "cifar10-test"),
        "dataset 'cifar10-test' in 'DIR' has 9999 images, expected 10000: the files are incomplete or of another dataset: copy or \
         download them again"
    );
    let mut other = whole;
    other[5 * 3073] = 6;
    let other = written(&[("test_batch.bin", &other)]);
    let message = refused(&other, "cifar10-test");
    assert!(
        message.contains("has 999 images of class 5 (dog), expected 1000: "),
        "{message}"
    );
}

#[test]
fn a_training_batch_that_lacks_is_named() {
    let one = record(0, [0; 3]);
    let dir = written(&[("cifar10/data_batch_1.bin", &one), ("cifar10/data_batch_3.bin", &one)]);
    let message = refused(&dir, "cifar10-train");
    assert!(
        message.starts_with("dataset 'cifar10-train' lacks a file: looked in 'DIR/cifar10' for data_batch_2.bin: "),
        "{message}"
    );
    let empty = TempDir::new().unwrap();
    let message = refused(&empty, "cifar10-test");
    assert_eq!(
        message,
        "dataset 'cifar10-test' lacks a file: looked in 'DIR', 'DIR/cifar-10-batches-bin', 'DIR/cifar10', \
         'DIR/cifar10/cifar-10-batches-bin', 'DIR/cifar10/plain_text', 'DIR/plain_text' for test_batch.bin, \
         test-00000-of-00001.parquet: put it there, or correct --data-dir or ADVAE_DATA_DIR"
    );
}

/// A folder with a parquet file of these rows, and the file's path.
fn parquet(rows: &[(Option<Vec<u8>>, i64)]) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    write_parquet(&path, SCHEMA, rows);
    (dir, path)
}

fn own(path: &Path) -> Result<Dataset, DataError> {
    load(path.to_str().unwrap(), None)
}

#[test]
fn parquet_with_png_images_is_exact_and_with_jpeg_images_lossy() {
    let pictures: Vec<Vec<u8>> = (0..5).map(photo).collect();
    let png = |pixels: &Vec<u8>| Some(png([32, 32, 3], pixels));
    let (_dir, path) = parquet(&[0, 1, 2, 3, 4].map(|i| (png(&pictures[i]), (4 - i) as i64)));
    let exact = own(&path).unwrap();
    assert_eq!(
        (exact.len(), exact.shape, exact.classes, exact.lossy),
        (5, [3, 32, 32], 5, false)
    );
    assert_eq!(
        (&exact.labels[..], &exact.ids[..]),
        (&[4, 3, 2, 1, 0][..], &[0, 1, 2, 3, 4][..])
    );
    assert!(exact.open_classes && exact.name == "x.parquet" && exact.set.is_none());
    for (i, pixels) in pictures.iter().enumerate() {
        for (at, value) in exact.image(i).iter().enumerate() {
            let (channel, place) = (at / 1024, at % 1024);
            assert_eq!(*value, f32::from(pixels[place * 3 + channel]) / 255.);
        }
    }
    let rows = pictures.iter().map(|pixels| (Some(jpeg([32, 32, 3], pixels)), 0));
    let (_dir, path) = parquet(&rows.collect::<Vec<_>>());
    let lossy = own(&path).unwrap();
    assert!(lossy.lossy && lossy.images != exact.images);
    let worst = lossy
        .images
        .iter()
        .zip(&exact.images)
        .fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(worst < 0.25, "{worst}");
    let mean = lossy
        .images
        .iter()
        .zip(&exact.images)
        .map(|(a, b)| (a - b).abs())
        .sum::<f32>()
        / 5.
        / 3072.;
    assert!(mean < 0.03, "{mean}");
}

#[test]
fn a_whole_test_set_may_come_in_several_parquet_files() {
    let files: Vec<Vec<u8>> = (0..10).map(|class| png([32, 32, 3], &photo(class))).collect();
    let rows: Vec<_> = (0..10_000)
        .map(|i| (Some(files[i % 10].clone()), (i % 10) as i64))
        .collect();
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("cifar10/plain_text");
    fs::create_dir_all(&folder).unwrap();
    write_parquet(&folder.join("test-00000-of-00002.parquet"), SCHEMA, &rows[..6000]);
    let message = refused(&dir, "cifar10-test");
    assert!(message.contains("test-00001-of-00002.parquet"), "{message}");
    write_parquet(&folder.join("test-00001-of-00002.parquet"), SCHEMA, &rows[6000..]);
    let test = load("cifar10-test", Some(dir.path())).unwrap();
    assert_eq!((test.len(), test.labels[6001], test.ids[9999]), (10_000, 1, 9999));
    assert_eq!(test.image(6003), test.image(3));
}

#[test]
fn rows_that_are_no_samples_are_told_by_their_number() {
    let good = || (Some(png([32, 32, 3], &photo(0))), 1);
    let message = |bad: (Option<Vec<u8>>, i64)| {
        let (dir, path) = parquet(&[good(), good(), bad]);
        without(&dir, own(&path).unwrap_err())
    };
    assert_eq!(
        message((None, 1)),
        "'DIR/x.parquet' row 2 has no image bytes in 'img', expected a PNG or JPEG file in its field 'bytes': write the dataset with \
         its images embedded"
    );
    assert_eq!(
        message((Some(b"RIFF....WEBP".to_vec()), 1)),
        "'DIR/x.parquet' row 2 begins with the bytes 52 49 46 46, expected a PNG or JPEG image: convert the image, or take the file away"
    );
    let message_of_label = message((good().0, -3));
    assert!(
        message_of_label.contains("row 2 has the label -3, expected 0.."),
        "{message_of_label}"
    );
    assert_eq!(
        message((Some(png([32, 31, 3], &photo(0)[..32 * 31 * 3])), 1)),
        "'DIR/x.parquet' row 2 is an image of 32x31 RGB, expected 32x32 RGB as all of them: bring all images to one size and kind"
    );
    let cut = |file: Vec<u8>| message((Some(file[..file.len() - 40].to_vec()), 1));
    let png_cut = cut(png([32, 32, 3], &photo(0)));
    assert!(png_cut.contains("row 2 is a damaged or truncated PNG ("), "{png_cut}");
    let jpeg_cut = cut(jpeg([32, 32, 3], &photo(0)));
    assert!(
        jpeg_cut.contains("row 2 is a damaged or truncated JPEG ("),
        "{jpeg_cut}"
    );
}

#[test]
fn a_label_that_is_no_class_of_the_set_is_told() {
    let dir = TempDir::new().unwrap();
    let rows = [(Some(png([32, 32, 3], &photo(0))), 10)];
    write_parquet(&dir.path().join("test-00000-of-00001.parquet"), SCHEMA, &rows);
    let message = refused(&dir, "cifar10-test");
    assert_eq!(
        message,
        "'DIR/test-00000-of-00001.parquet' row 0 has the label 10, expected 0..10: the file is of another dataset or damaged: copy or \
         download it again"
    );
}

#[test]
fn a_table_of_something_else_is_told_by_its_columns() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.parquet");
    let schema = SCHEMA.replace("img", "photo");
    write_parquet(&path, &schema, &[(Some(vec![1]), 0)]);
    assert_eq!(
        without(&dir, own(&path).unwrap_err()),
        "'DIR/x.parquet' has the columns photo, label, expected 'img' or 'image', and 'label': name the columns so, as Hugging Face's \
         image datasets do"
    );
}

#[test]
fn a_damaged_parquet_file_is_an_error_wherever_it_is_damaged() {
    let rows: Vec<_> = (0..6).map(|i| (Some(png([32, 32, 3], &photo(i))), i as i64)).collect();
    let (dir, path) = parquet(&rows);
    let whole = fs::read(&path).unwrap();
    let sound = own(&path).unwrap();
    for cut in (0..whole.len()).step_by(whole.len() / 60) {
        fs::write(&path, &whole[..cut]).unwrap();
        let message = without(&dir, own(&path).unwrap_err());
        assert!(
            message.starts_with("'DIR/x.parquet' cannot be read ("),
            "{cut}: {message}"
        );
        assert!(
            message.ends_with("expected a whole parquet file: copy or download it again"),
            "{cut}: {message}"
        );
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    // A changed byte is an error, or changes nothing that is read (names, statistics), or shows in what is read; it is no panic.
    let mut errors = 0;
    for at in (0..whole.len()).step_by(whole.len() / 400) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x55;
        fs::write(&path, bytes).unwrap();
        match own(&path) {
            Ok(read) => assert_eq!(read.shape, sound.shape),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 100, "{errors}");
}
