//! Names, and where their files are looked for.

use std::path::Path;
use std::{env, fs};

use advae_data::idx::encode;
use advae_data::{DATA_DIR, DataError, is_test_set, load, names};
use tempfile::TempDir;

#[test]
fn an_unknown_name_lists_the_known_ones() {
    assert_eq!(
        load("minst", None).unwrap_err().to_string(),
        "unknown dataset 'minst': known are mnist-1k, mnist-1k-seeds, mnist-test, mnist-train, fashion-mnist-test, \
         fashion-mnist-train"
    );
}

#[test]
fn every_listed_name_is_known() {
    let empty = TempDir::new().unwrap();
    for (name, about) in names() {
        assert!(!about.is_empty());
        let answer = load(name, Some(empty.path()));
        assert!(
            matches!(answer, Ok(_) | Err(DataError::MissingFile { .. })),
            "{name}: {answer:?}"
        );
    }
}

#[test]
fn a_dataset_of_test_images_is_known_as_one() {
    for (name, about) in names() {
        assert_eq!(is_test_set(name), about.contains("test"), "{name}: {about}");
    }
    assert!(!is_test_set("mnist-train") && is_test_set("mnist-1k"));
}

#[test]
fn a_missing_file_lists_what_was_looked_for() {
    let dir = TempDir::new().unwrap();
    let message = load("mnist-test", Some(dir.path())).unwrap_err().to_string();
    let message = message.replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(
        message,
        "dataset 'mnist-test' lacks a file: looked in 'DIR/mnist', 'DIR/MNIST/raw', 'DIR' for \
         t10k-images-idx3-ubyte, t10k-images-idx3-ubyte.gz, t10k-images.idx3-ubyte, t10k-images.idx3-ubyte.gz: \
         put it there, or correct --data-dir or ADVAE_DATA_DIR"
    );
}

#[test]
fn labels_are_taken_from_the_folder_of_the_images() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("mnist")).unwrap();
    fs::write(dir.path().join("mnist/t10k-images.idx3-ubyte.gz"), []).unwrap();
    fs::write(dir.path().join("t10k-labels-idx1-ubyte"), []).unwrap();
    match load("mnist-test", Some(dir.path())) {
        Err(DataError::MissingFile { folders, files, .. }) => {
            assert_eq!(folders, [dir.path().join("mnist")]);
            assert!(files.contains(&"t10k-labels-idx1-ubyte".to_owned()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn other_content_does_not_pass_under_the_name() {
    let dir = TempDir::new().unwrap();
    fs::write(
        dir.path().join("t10k-images-idx3-ubyte"),
        encode(&[1, 28, 28], &[0; 784]),
    )
    .unwrap();
    fs::write(dir.path().join("t10k-labels-idx1-ubyte"), encode(&[1], &[3])).unwrap();
    let message = load("mnist-test", Some(dir.path())).unwrap_err().to_string();
    assert!(
        message.contains("are not mnist-test: their content has sha256 "),
        "{message}"
    );
    assert!(message.ends_with("correct --data-dir or ADVAE_DATA_DIR"), "{message}");
}

#[test]
fn a_folder_that_is_not_there() {
    assert_eq!(
        load("mnist-train", Some(Path::new("no/such/folder")))
            .unwrap_err()
            .to_string(),
        "data folder 'no/such/folder' of dataset 'mnist-train' is not a folder: correct --data-dir or ADVAE_DATA_DIR"
    );
}

#[test]
fn no_folder_given() {
    if env::var_os(DATA_DIR).is_some() {
        return; // the variable is the fallback: nothing is missing
    }
    assert_eq!(
        load("mnist-test", None).unwrap_err().to_string(),
        "dataset 'mnist-test' is read from files and no folder was given: pass --data-dir or set ADVAE_DATA_DIR"
    );
}

/// Runs where ADVAE_DATA_DIR names a folder; loads what lies there.
#[test]
fn the_full_sets() {
    if env::var_os(DATA_DIR).is_none() {
        return;
    }
    for (name, n) in [
        ("mnist-test", 10_000),
        ("mnist-train", 60_000),
        ("fashion-mnist-test", 10_000),
        ("fashion-mnist-train", 60_000),
    ] {
        match load(name, None) {
            Ok(full) => assert_eq!((full.len(), full.shape), (n, [1, 28, 28])),
            Err(DataError::MissingFile { .. }) => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }
}
