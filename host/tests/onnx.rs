//! Networks of ONNX files through the real binary.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

/// The purifier `advae` as PyTorch wrote it.
const ADVAE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/advae.onnx");

fn host(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(args)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The samples of a results file with one cell.
fn rows(path: &Path) -> BTreeMap<u64, Value> {
    let samples = lines(path).into_iter().filter(|line| line["type"] == "sample");
    samples.map(|row| (row["id"].as_u64().unwrap(), row)).collect()
}

#[test]
fn attacks_through_an_onnx_file_end_as_through_the_plugin() {
    let dir = tempfile::tempdir().unwrap();
    let run = |purifier: &str, name: &str| {
        let out = dir.path().join(name);
        let output = host(&[
            "eval",
            "--classifier",
            "model_d",
            "--purifier",
            purifier,
            "--attack",
            "pgd:steps=10,step_size=0.06,random_start=false",
            "--threat-model",
            "white_box",
            "--samples",
            "64",
            "--out",
            out.to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{}", text(&output));
        // Nothing says that it runs operator by operator.
        assert!(!text(&output).contains("not fused"), "{}", text(&output));
        rows(&out)
    };
    let (own, file) = (
        run("advae", "own.jsonl"),
        run(&format!("onnx:model={ADVAE}"), "file.jsonl"),
    );
    assert_eq!(own.len(), 64);
    let broken = |rows: &BTreeMap<u64, Value>| rows.values().filter(|row| row["robust"] == false).count();
    assert!(broken(&own) > 5, "the attack must do something");
    for (id, row) in &own {
        for key in ["clean_prediction", "adversarial_prediction", "robust"] {
            assert_eq!(row[key], file[id][key], "sample {id}, {key}");
        }
    }
}

#[test]
fn a_file_that_a_setting_names_is_hashed_and_another_one_is_another_cell() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (dir.path().join("net.onnx"), dir.path().join("results.jsonl"));
    std::fs::copy(ADVAE, &model).unwrap();
    let spec = format!("onnx:model={}", model.display());
    let run = |more: &[&str]| {
        let args = [
            "eval",
            "--classifier",
            "model_d",
            "--purifier",
            &spec,
            "--attack",
            "fgsm",
            "--samples",
            "4",
        ];
        let output = host(
            &[
                &args[..],
                &["--threat-model", "white_box", "--out", out.to_str().unwrap()],
                more,
            ]
            .concat(),
        );
        assert!(output.status.success(), "{}", text(&output));
        let lines = lines(&out);
        let headers = lines.iter().filter(|line| line["type"] == "cell");
        let hashes = headers.map(|h| h["config"]["purifier"]["files"]["model"].as_str().unwrap().to_string());
        hashes.collect::<Vec<String>>()
    };
    let first = run(&[]);
    assert_eq!((first.len(), first[0].len()), (1, 64));
    assert_eq!(run(&["--resume"]), first, "the same file is the same cell");
    // A field that no reader of ONNX knows: another file that computes the same.
    let mut bytes = std::fs::read(&model).unwrap();
    bytes.extend([0xf8, 0x07, 0x01]);
    std::fs::write(&model, bytes).unwrap();
    let both = run(&["--resume"]);
    assert_eq!((both.len(), both[0] == both[1]), (2, false), "{both:?}");
}

#[test]
fn one_file_brings_a_classifier_and_a_purifier() {
    let listed = text(&host(&["plugins", "onnx"]));
    assert!(listed.starts_with("classifier and purifier onnx "), "{listed}");
    let spec = format!("onnx:model={ADVAE}");
    let examined = host(&["doctor", &spec, "--kind", "purifier"]);
    assert!(examined.status.success(), "{}", text(&examined));
    let examined = text(&host(&["doctor", &spec]));
    assert!(
        examined.contains("expected a logit for each of two classes or more"),
        "{examined}"
    );
    let examined = text(&host(&["doctor", "pgd", "--kind", "purifier"]));
    assert!(examined.contains("is an attack, not a purifier"), "{examined}");
}

#[test]
fn what_cannot_be_read_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let junk = dir.path().join("junk.onnx");
    std::fs::write(&junk, "not a model").unwrap();
    for (spec, expected) in [
        ("onnx".to_string(), "no file: name one, onnx:model=FILE.onnx"),
        (
            "onnx:model=/nowhere.onnx".into(),
            "cannot read the file '/nowhere.onnx'",
        ),
        (
            format!("onnx:model={}", junk.display()),
            "it is no ONNX file, or a damaged one",
        ),
        (
            format!("onnx:model={ADVAE},std=0"),
            "std is 0.0: expected numbers between 1e-6 and 1000000.0",
        ),
        (
            format!("onnx:model={ADVAE},mean=[1,2]"),
            "mean has 2 numbers for images of 1 channels",
        ),
        (
            format!("onnx:model={ADVAE},output=y"),
            "no such output 'y': expected one of the file's, output",
        ),
    ] {
        let output = host(&["eval", "--classifier", &spec, "--attack", "fgsm", "--samples", "2"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{spec}: {said}");
        assert_eq!(
            said.lines().filter(|line| line.starts_with("error: ")).count(),
            1,
            "{said}"
        );
        assert!(!said.contains("/proc/"), "{said}");
    }
}
