//! Datasets through the real binary: what is listed, a user's own images, and what is damaged.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/run.rs"]
mod run;

use run::{refused, report, said, stderr, stdout, text};
use std::fs;
use std::path::Path;
use std::process::Output;
use tempfile::TempDir;

fn host(args: &[&str]) -> Output {
    run::command(&[fixtures::dir()], args).output().unwrap()
}

fn eval(more: &[&str]) -> Output {
    let cell = [
        "eval",
        "--classifier",
        "plain_linear",
        "--threat-model",
        "plain_white_box",
        "--attack",
        "plain_noise",
    ];
    host(&[&cell[..], more].concat())
}

/// A grey PNG of 28x28, all of one value.
fn png(value: u8) -> Vec<u8> {
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, 28, 28);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[value; 28 * 28]).unwrap();
    writer.finish().unwrap();
    file
}

/// A folder `digits` of ten classes with two images each.
fn digits() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for class in 0..10u8 {
        let folder = dir.path().join(format!("digits/{class}"));
        fs::create_dir_all(&folder).unwrap();
        for i in 0..2 {
            fs::write(folder.join(format!("{i}.png")), png(20 * class + i)).unwrap();
        }
    }
    dir
}

#[test]
fn every_dataset_is_listed_with_what_was_found_and_where() {
    let output = host(&["data"]);
    assert!(output.status.success(), "{}", said(&output));
    let list = stdout(&output);
    let entry = |name: &str| {
        let from = list
            .find(&format!("{name}: "))
            .unwrap_or_else(|| panic!("no {name} in:\n{list}"));
        let lines = list[from..].lines().enumerate();
        lines
            .take_while(|(i, line)| *i == 0 || line.starts_with("  "))
            .map(|(_, line)| format!("{line}\n"))
            .collect::<String>()
    };
    insta::assert_snapshot!("data_mnist_1k", entry("mnist-1k"));
    insta::assert_snapshot!("data_cifar10_1k", entry("cifar10-1k"));
    assert!(
        entry("mnist-test").contains("not looked for: give --data-dir or set ADVAE_DATA_DIR"),
        "{list}"
    );
    let empty = tempfile::tempdir().unwrap();
    let output = host(&["data", "--data-dir", text(empty.path())]);
    assert!(output.status.success(), "{}", said(&output));
    let places = format!("looked in '{}'", empty.path().display());
    assert_eq!(stdout(&output).matches(&places).count(), 2, "{}", said(&output)); // CIFAR-10's two
    assert_eq!(stdout(&output).matches("not found: ").count(), 6, "{}", said(&output));
}

#[test]
fn damaged_files_are_told_and_fail_the_list() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("test_batch.bin"), [0; 3073]).unwrap();
    let output = host(&["data", "--data-dir", text(dir.path())]);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(
        stdout(&output).contains("damaged: dataset 'cifar10-test' in '"),
        "{}",
        said(&output)
    );
    refused(
        &host(&["data", "cifar10-test", "--data-dir", text(dir.path())]),
        &["has 1 images, expected 10000"],
    );
    refused(
        &host(&["data", "cifar-10"]),
        &["unknown dataset 'cifar-10'", "cifar10-test"],
    );
    assert_eq!(stderr(&host(&["data", "cifar-10"])).lines().count(), 1);
}

#[test]
fn a_folder_of_a_users_own_images_is_evaluated_without_any_code() {
    let dir = digits();
    let folder = dir.path().join("digits");
    let output = eval(&[
        "--dataset",
        text(&folder),
        "--epsilon",
        "0.1",
        "--samples",
        "20",
        "--format",
        "json",
    ]);
    let cells = &report(&output)["cells"];
    assert_eq!(
        (&cells[0]["dataset"], &cells[0]["samples"]),
        (&"digits/".into(), &20.into())
    );
    assert_eq!(cells[0]["epsilon"], 0.1);
    let listed = host(&["data", text(&folder)]);
    assert!(
        stdout(&listed).contains("20 images of 1x28x28, 10 classes, 2 of each\n"),
        "{}",
        said(&listed)
    );
    assert!(
        stdout(&listed).contains("no customary budgets: give --epsilon"),
        "{}",
        said(&listed)
    );

    refused(
        &eval(&["--dataset", text(&folder)]),
        &["these images have no customary Linf budget: give --epsilon"],
    );
    let image = folder.join("3/1.png");
    fs::write(&image, &png(7)[..50]).unwrap();
    let output = eval(&["--dataset", text(&folder), "--epsilon", "0.1"]);
    refused(
        &output,
        &[&format!("'{}' is a damaged or truncated PNG", image.display())],
    );
    assert_eq!(stderr(&output).lines().count(), 1, "{}", said(&output));
    fs::remove_dir_all(folder.join("3")).unwrap();
    refused(
        &eval(&["--dataset", text(&folder), "--epsilon", "0.1"]),
        &["dataset 'digits/' has [1, 28, 28] of 9: choose two that fit"],
    );
}

#[test]
fn the_default_dataset_is_the_embedded_one_of_the_classifiers_shape() {
    let output = eval(&["--samples", "3", "--format", "json"]);
    assert_eq!(report(&output)["cells"][0]["dataset"], "mnist-1k");
    refused(
        &eval(&["--dataset", "cifar10-1k", "--samples", "3"]),
        &["takes images [1, 28, 28] of 10 classes, dataset 'cifar10-1k' has [3, 32, 32] of 10: choose two that fit"],
    );
}

#[test]
fn images_out_of_jpeg_are_called_lossy_beside_every_figure() {
    let dir = digits();
    // The same pixels as a JPEG: grey, of one value each.
    let folder = dir.path().join("digits");
    let jpeg = |path: &Path| {
        let mut file = vec![];
        let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, 90);
        image::ImageEncoder::write_image(encoder, &[40; 28 * 28], 28, 28, image::ExtendedColorType::L8).unwrap();
        fs::write(path, file).unwrap();
    };
    jpeg(&folder.join("4/2.jpg"));
    let rows = dir.path().join("rows.jsonl");
    let output = eval(&["--dataset", text(&folder), "--epsilon", "0.1", "--out", text(&rows)]);
    let note = "digits/: its images were decoded from JPEG, which is slightly lossy";
    assert!(said(&output).contains(note), "{}", said(&output));
    let again = host(&["report", text(&rows)]);
    assert!(said(&again).contains(note), "{}", said(&again));
}
