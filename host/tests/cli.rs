//! The binary as a person uses it, on plugins that need no candle.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use assert_cmd::Command;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

const CELL: [&str; 6] = [
    "--classifier",
    "plain_linear",
    "--threat-model",
    "plain_white_box",
    "--attack",
    "plain_noise",
];

fn host(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .output()
        .unwrap()
}

fn eval(more: &[&str]) -> Output {
    host(&[&["eval"], &CELL[..], &["--samples", "50"], more].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn refused(output: &Output, says: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", stderr(output));
    assert!(
        stderr(output).starts_with("error: ") && stderr(output).lines().count() == 1,
        "{}",
        stderr(output)
    );
    assert!(stderr(output).contains(says), "no '{says}' in: {}", stderr(output));
}

/// Rows by sample, without what differs from run to run.
fn rows(path: &Path) -> BTreeMap<u64, Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let rows = lines.filter(|line| line["type"] == "sample").map(|mut row| {
        let row_object = row.as_object_mut().unwrap();
        row_object.retain(|field, _| !["at", "crc"].contains(&field.as_str()));
        (row["id"].as_u64().unwrap(), row)
    });
    rows.collect()
}

#[test]
fn the_help() {
    insta::assert_snapshot!("help", stdout(&host(&["--help"])));
    insta::assert_snapshot!("help_eval", stdout(&host(&["eval", "--help"])));
    insta::assert_snapshot!("help_score", stdout(&host(&["score", "--help"])));
    insta::assert_snapshot!("help_purify", stdout(&host(&["purify", "--help"])));
}

#[test]
fn the_list_of_plugins_holds_whole_and_broken_ones() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures::plugin("noise"), dir.path().join("libplain_noise.so")).unwrap();
    std::fs::write(dir.path().join("text.so"), "text").unwrap();
    let plugins = |named: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        let output = command
            .arg("plugins")
            .args(named)
            .env("ADVAE_PLUGIN_PATH", dir.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let text = plugins(&[]);
    assert!(text.contains("attack plain_noise 1.0.0 (contract 1.3.0"), "{text}");
    assert!(
        text.contains("text.so: ") && text.contains("not a shared library"),
        "{text}"
    );
    let text = plugins(&["plain_noise"]);
    assert!(text.contains("attack plain_noise 1.0.0 (contract 1.3.0"), "{text}");
    assert!(text.contains("epsilon = 0.3   radius of the Linf ball"), "{text}");
}

#[test]
fn what_cannot_be_run_is_one_line_and_exit_code_2() {
    refused(&host(&["eval"]), "no classifier to attack: give --classifier");
    refused(&eval(&["--device", "gpu"]), "no device 'gpu': give cpu or cuda:N");
    refused(&eval(&["--epsilon=-1"]), "no budget");
    refused(&eval(&["--epsilon", "-1"]), "-1");
    refused(&eval(&["--out", "/"]), "is a folder: name a file");
    refused(&eval(&["--dataset", "mnist-2k"]), "mnist-1k");
    refused(&eval(&["--attack", "plain_noise:epsilon"]), "write key=value");
    refused(&eval(&["--attack", "plain_noise:steps=3"]), "steps");
    refused(&eval(&["--purifier", "plain_linear"]), "give it with --classifier");
    refused(
        &eval(&["--purifier", "jpeg", "--backward", "exact"]),
        "backward rule 'exact' is not offered: this plugin offers identity, none; without --backward every purifier goes by its own",
    );
    refused(&host(&["score", "nowhere.npz"]), "nowhere.npz");
    let purify = |more: &[&str]| host(&[&["purify", "--purifier", "plain_linear"], more].concat());
    refused(&purify(&["--out", "p.png", "--samples", "0"]), "--samples is 0");
    refused(&purify(&["--out", "p.png"]), "give it with --classifier");
}

#[test]
fn another_rule_than_the_purifiers_own_is_told_a_spreadsheet_too() {
    let with = |more: &[&str]| {
        eval(
            &[
                &[
                    "--purifier",
                    "gaussian_blur",
                    "--threat-model",
                    "white_box",
                    "--format",
                    "csv",
                ],
                more,
            ]
            .concat(),
        )
    };
    let told = "gradients went by a backward rule that is not the purifier's own";
    let own = with(&["--backward", "exact"]);
    assert!(
        stdout(&own).contains(",gaussian_blur,") && !stderr(&own).contains(told),
        "{}",
        stderr(&own)
    );
    let other = with(&["--backward", "identity"]);
    assert!(
        stdout(&other).contains(",gaussian_blur,") && stdout(&other).contains(",cell,identity,"),
        "{}",
        stdout(&other)
    );
    assert!(stderr(&other).contains(told), "{}", stderr(&other));
}

#[test]
fn a_file_holds_the_same_keys_as_the_flags_and_flags_win() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let write = |text: &str| std::fs::write(&path, text).unwrap();
    let config = path.to_str().unwrap();
    write(
        "classifier = \"plain_linear\"\nthreat-model = \"plain_white_box\"\nattack = [\"plain_noise\"]\nsamples = 5\n",
    );
    let report = |more: &[&str]| -> Value {
        let output = host(&[&["eval", "--config", config, "--format", "json"], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(report(&[])["cells"][0]["samples"], 5);
    assert_eq!(report(&["--samples", "7"])["cells"][0]["samples"], 7);
    write("clasifier = \"plain_linear\"\n");
    refused(&host(&["eval", "--config", config]), "unknown field `clasifier`");
}

#[test]
fn results_do_not_depend_on_batches_or_threads() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        let output = eval(&[&["--out", out.to_str().unwrap()], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        rows(&out)
    };
    let one = run("one.jsonl", &["--batch", "1", "--threads", "1"]);
    assert_eq!(one.len(), 50);
    assert_eq!(one, run("many.jsonl", &["--batch", "7", "--threads", "3"]));
    assert_eq!(one, run("whole.jsonl", &["--batch", "64"]));
    assert_ne!(one, run("seed.jsonl", &["--seed", "1"]));
}

#[test]
fn a_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole.jsonl"), dir.path().join("cut.jsonl"));
    assert!(eval(&["--out", whole.to_str().unwrap()]).status.success());
    refused(&eval(&["--out", whole.to_str().unwrap()]), "add --resume");

    let text = std::fs::read_to_string(&whole).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&cut, format!("{}\n{}", lines[..20].join("\n"), &lines[20][..30])).unwrap();
    let output = eval(&["--resume", "--out", cut.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(rows(&cut), rows(&whole));
    let gone_on = std::fs::read_to_string(&cut).unwrap();
    assert!(gone_on.starts_with(&lines[..20].join("\n")));
    let again = eval(&["--resume", "--out", cut.to_str().unwrap(), "--format", "csv"]);
    assert!(
        again.status.success() && stdout(&again).contains("plain_linear,none,plain_white_box,plain_noise,Linf,0.3,50")
    );
    // The run introduces itself, and has nothing to add.
    let again = std::fs::read_to_string(&cut).unwrap();
    assert_eq!(again.lines().count(), gone_on.lines().count() + 1);
}

#[test]
fn saved_images_score_as_they_did() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("images");
    let output = eval(&["--save-adversarial", saved.to_str().unwrap(), "--format", "json"]);
    let before: Value = serde_json::from_slice(&output.stdout).unwrap();
    let file = std::fs::read_dir(&saved).unwrap().next().unwrap().unwrap().path();
    let file = file.to_str().unwrap();
    let score = |more: &[&str]| host(&[&["score", file, "--format", "json"], more].concat());
    let after: Value = serde_json::from_slice(&score(&[]).stdout).unwrap();
    for figure in ["samples", "clean_accuracy", "robust_accuracy", "broken", "l2", "linf"] {
        assert_eq!(before["cells"][0][figure], after["cells"][0][figure], "{figure}");
    }
    let tighter = score(&["--epsilon", "linf=0.1"]);
    refused(&tighter, "were made within Linf 0.3");
}

#[test]
fn a_budget_is_inline_then_a_flag_then_the_datasets() {
    let epsilon = |more: &[&str]| -> Value {
        let output = host(&[&["eval"], &CELL[..4], &["--samples", "3", "--format", "json"], more].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["cells"][0]["epsilon"].clone()
    };
    assert_eq!(epsilon(&["--attack", "plain_noise"]), 0.3);
    assert_eq!(epsilon(&["--attack", "plain_noise", "--epsilon", "0.2"]), 0.2);
    assert_eq!(
        epsilon(&["--attack", "plain_noise:epsilon=0.1", "--epsilon", "0.2"]),
        0.1
    );
}

#[test]
fn a_file_without_results_is_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let empty = dir.path().join("empty.jsonl");
    std::fs::write(&empty, "").unwrap();
    refused(
        &host(&["report", empty.to_str().unwrap()]),
        "holds no results: give a file that eval --out wrote",
    );
    refused(
        &host(&["report", dir.path().join("none").to_str().unwrap()]),
        "give a file that eval --out or reproduce wrote",
    );
}

#[test]
fn a_folder_of_plugins_that_is_none_and_a_file_that_hides_another_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let (own, file) = (dir.path().join("own"), dir.path().join("file.so"));
    std::fs::create_dir(&own).unwrap();
    std::fs::write(&file, "").unwrap();
    std::fs::copy(
        fixtures::dir().join("libplain_linear.so"),
        own.join("libplain_linear.so"),
    )
    .unwrap();
    let with = |folders: &[&Path]| {
        let folders: Vec<String> = folders.iter().map(|dir| dir.display().to_string()).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        let args = [&["eval"], &CELL[..], &["--samples", "3"]].concat();
        command
            .args(args)
            .env("ADVAE_PLUGIN_PATH", folders.join(":"))
            .output()
            .unwrap()
    };
    let told = with(&[&file, Path::new("/nowhere"), &own, fixtures::dir()]);
    assert!(told.status.success(), "{}", stderr(&told));
    for says in [
        "file.so' of $ADVAE_PLUGIN_PATH is no folder",
        "'/nowhere' of $ADVAE_PLUGIN_PATH is no folder",
    ] {
        assert_eq!(stderr(&told).matches(says).count(), 1, "{}", stderr(&told));
    }
    assert!(stderr(&told).contains("which hides"), "{}", stderr(&told));
    let quiet = with(&[fixtures::dir(), fixtures::dir()]);
    assert_eq!(stderr(&quiet), "", "one file twice hides nothing");
}
