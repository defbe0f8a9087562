//! Names, and where their files are looked for.

use std::path::Path;
use std::{env, fs};

use advae_data::idx::encode;
use advae_data::{CIFAR10, DATA_DIR, DEFAULT, DataError, MNIST, load, sample_for, sets};
use tempfile::TempDir;

#[test]
fn an_unknown_name_lists_the_known_ones() {
    assert_eq!(
        load("minst", None).unwrap_err().to_string(),
        "unknown dataset 'minst': known are mnist-1k, mnist-1k-seeds, mnist-test, mnist-train, fashion-mnist-test, \
         fashion-mnist-train, cifar10-1k, cifar10-1k-seeds, cifar10-test, cifar10-train; images of your own go by their path: \
         ./FOLDER, ./FILE.npz, ./FILE.parquet"
    );
}

#[test]
fn every_listed_name_is_known() {
    let empty = TempDir::new().unwrap();
    for set in sets() {
        assert!(!set.about.is_empty());
        let answer = load(set.name, Some(empty.path()));
        match (set.is_embedded(), answer) {
            (true, Ok(dataset)) => assert_eq!(dataset.set, Some(*set)),
            (false, Err(DataError::MissingFile { .. })) => {}
            (_, answer) => panic!("{}: {answer:?}", set.name),
        }
    }
}

#[test]
fn an_embedded_set_is_what_its_value_says() {
    for set in sets().iter().filter(|set| set.is_embedded()) {
        let dataset = load(set.name, None).unwrap();
        let family = set.family;
        assert_eq!(
            (dataset.len(), dataset.shape, dataset.classes, dataset.name.as_str()),
            (set.samples, family.shape, family.classes, set.name)
        );
        assert_eq!(dataset.lossy, set.about.contains("lossy"), "{}", set.name);
        let aside = dataset.attacker_images().unwrap().unwrap();
        assert_eq!((aside.len(), aside.shape), (150, family.shape));
        // Never removed where they are not among the scored ones.
        assert_eq!(dataset.without_attacker_images().unwrap(), dataset);
    }
}

#[test]
fn a_set_of_test_images_is_known_as_one() {
    for set in sets() {
        assert_eq!(set.test, set.about.contains("test"), "{}: {}", set.name, set.about);
        assert_eq!(set.test, !set.name.ends_with("-train"), "{}", set.name);
    }
}

#[test]
fn the_customary_budgets_of_a_family_stand_in_its_value() {
    let [mnist, cifar10] = [&MNIST, &CIFAR10].map(|family| family.conventions);
    assert_eq!((mnist.linf, mnist.l2, mnist.step), (Some(0.3), Some(2.), Some(0.01)));
    assert_eq!(
        (cifar10.linf, cifar10.l2, cifar10.step),
        (Some(8. / 255.), Some(0.5), Some(1. / 255.))
    );
    assert_eq!(
        (mnist.l2_caps, cifar10.l2_caps),
        (&[1.5, 2., 3.][..], &[0.25, 0.5, 1.][..])
    );
}

#[test]
fn a_shape_has_the_embedded_sample_of_its_family() {
    let name = |shape| sample_for(shape).map(|set| set.name);
    assert_eq!(name([1, 28, 28]), Some(DEFAULT));
    assert_eq!(name([3, 32, 32]), Some("cifar10-1k"));
    assert_eq!(name([3, 224, 224]), None);
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
    for set in sets().iter().filter(|set| !set.is_embedded()) {
        match load(set.name, None) {
            Ok(full) => assert_eq!((full.len(), full.shape), (set.samples, set.family.shape)),
            Err(DataError::MissingFile { .. }) => {}
            Err(error) => panic!("{}: {error}", set.name),
        }
    }
}
