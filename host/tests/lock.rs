//! `lock` and `--locked`: what was locked runs, what is another file is refused before anything is measured.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::path::Path;
use std::process::{Command, Output};

const EVAL: [&str; 8] = [
    "--classifier",
    "plain_linear",
    "--threat-model",
    "plain_white_box",
    "--attack",
    "plain_noise",
    "--samples",
    "10",
];

/// Plugins of its own, so that one of them can be replaced.
fn scene() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["linear", "white_box", "noise"] {
        let file = fixtures::plugin(name);
        std::fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

fn host(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(args)
        .current_dir(dir)
        .env("ADVAE_PLUGIN_PATH", dir)
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    both.concat()
}

/// Another file that does the same.
fn replace_the_classifier(dir: &Path) {
    let path = dir.join("libplain_linear.so");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.push(0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_locked_runs_and_its_results_name_the_lock() {
    let dir = scene();
    let dir = dir.path();
    let locked = host(dir, &[&["lock"], &EVAL[..]].concat());
    assert!(locked.status.success(), "{}", text(&locked));
    assert!(text(&locked).contains("locked in 'advae.lock', for 1 cell: 3 plugins, 0 files, 1 dataset"));
    let output = host(dir, &[&["eval", "--locked", "--out", "r.jsonl"], &EVAL[..]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let run: serde_json::Value = serde_json::from_str(
        std::fs::read_to_string(dir.join("r.jsonl"))
            .unwrap()
            .lines()
            .next()
            .unwrap(),
    )
    .unwrap();
    assert_eq!(run["lock"].as_str().unwrap().len(), 64, "{run}");
    let unlocked = host(dir, &[&["eval", "--out", "u.jsonl"], &EVAL[..]].concat());
    assert!(unlocked.status.success());
    assert!(
        !std::fs::read_to_string(dir.join("u.jsonl"))
            .unwrap()
            .contains("\"lock\"")
    );
}

#[test]
fn another_file_is_refused_before_anything_is_measured() {
    let dir = scene();
    let dir = dir.path();
    assert!(host(dir, &[&["lock"], &EVAL[..]].concat()).status.success());
    replace_the_classifier(dir);
    for more in [&[][..], &["--in-process"]] {
        let output = host(
            dir,
            &[&["eval", "--locked", "--out", "r.jsonl"], more, &EVAL[..]].concat(),
        );
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let said = text(&output);
        assert!(
            said.starts_with("error: 'classifier plain_linear' has the sha256 "),
            "{said}"
        );
        assert!(
            said.contains("put the locked one back, or write the lock anew"),
            "{said}"
        );
        assert!(!dir.join("r.jsonl").exists());
    }
}

#[test]
fn what_is_not_in_the_lock_is_refused() {
    let dir = scene();
    let dir = dir.path();
    assert!(host(dir, &[&["lock"], &EVAL[..]].concat()).status.success());
    let output = host(
        dir,
        &[&["eval", "--locked", "--dataset", "cifar10-1k"], &EVAL[..]].concat(),
    );
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    let missing = host(dir, &[&["eval", "--locked=none.lock"], &EVAL[..]].concat());
    assert!(
        text(&missing).contains("cannot read 'none.lock': write it with advae-host lock"),
        "{}",
        text(&missing)
    );
    let seeds = host(dir, &[&["eval", "--locked", "--seed", "5"], &EVAL[..]].concat());
    assert!(seeds.status.success(), "a seed is no file: {}", text(&seeds));
}

#[test]
fn an_experiment_is_locked_whole() {
    let dir = scene();
    let dir = dir.path();
    let experiment = "[defaults]\nthreat-model = \"plain_white_box\"\nattack = \"plain_noise\"\nsamples = 10\n[[matrix]]\nclassifier = \
                      \"plain_linear\"\nseed = [0, 1]\n";
    std::fs::write(dir.join("e.toml"), experiment).unwrap();
    let locked = host(dir, &["lock", "e.toml", "--lock", "e.lock"]);
    assert!(locked.status.success(), "{}", text(&locked));
    let output = host(dir, &["run", "e.toml", "--locked=e.lock"]);
    assert!(output.status.success(), "{}", text(&output));
    replace_the_classifier(dir);
    let output = host(
        dir,
        &[
            "run",
            "e.toml",
            "--locked=e.lock",
            "--out",
            "other.jsonl",
            "--launcher",
            "local:2",
        ],
    );
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(
        text(&output).contains("'classifier plain_linear' has the sha256"),
        "{}",
        text(&output)
    );
}
