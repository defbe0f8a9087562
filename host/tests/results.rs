//! Results files through the real binary: what is kept, what is refused, and that a report needs nothing else.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A host that finds fixtures and the workspace's plugins. 80 columns leave the measured times out of its tables.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    let path = format!("{}:{}", fixtures::dir().display(), plugins::plugin_dir().display());
    command
        .args(args)
        .env("ADVAE_PLUGIN_PATH", path)
        .env("COLUMNS", "80")
        .env_remove("ADVAE_DATA_DIR");
    command
}

fn host(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn fixture(more: &[&str]) -> Output {
    fixture_of("20", more)
}

/// The same over so many samples.
fn fixture_of(samples: &str, more: &[&str]) -> Output {
    let cell = [
        "eval",
        "--classifier",
        "plain_linear",
        "--threat-model",
        "plain_white_box",
    ];
    let attack = ["--attack", "plain_noise", "--samples", samples];
    host(&[&cell[..], &attack, more].concat())
}

/// Cells with warnings: gradients that are zero, a rule that is not the purifier's own.
const WARNED: [&str; 16] = [
    "eval",
    "--classifier",
    "model_d",
    "--purifier",
    "gaussian_blur",
    "--backward",
    "none",
    "--attack",
    "pgd:steps=10",
    "--attack",
    "fgsm",
    "--samples",
    "40",
    "--batch",
    "2",
    "--threads=1",
];

/// Starts the run, and gives it back once its file has that many lines.
fn started(out: &Path, lines: usize, more: &[&str]) -> Child {
    let args = [&WARNED[..], &["--out", text(out)], more].concat();
    let mut run = command(&args);
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while std::fs::read_to_string(out).unwrap_or_default().lines().count() < lines {
        assert!(start.elapsed() < Duration::from_secs(120), "the run does not get on");
        std::thread::sleep(Duration::from_millis(2));
    }
    child
}

#[test]
fn the_report_of_an_interrupted_and_resumed_run_is_that_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = host(&WARNED);
    assert!(undisturbed.status.success(), "{}", stderr(&undisturbed));
    let expected = stdout(&undisturbed);
    assert!(expected.contains("of the input gradients are zero"), "{expected}");

    let out = dir.path().join("results.jsonl");
    let mut killed = started(&out, 8, &[]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let lines = std::fs::read_to_string(&out).unwrap().lines().count();
    let stopped = started(&out, lines + 8, &["--resume"]);
    let pid = stopped.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let stopped = stopped.wait_with_output().unwrap();
    assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
    let kept = rows(&out);
    assert!(
        stderr(&stopped).contains(&format!("stopped: {kept} rows are in")),
        "{}",
        stderr(&stopped)
    );
    assert!((1..160).contains(&kept));

    let resumed = host(&[&WARNED[..], &["--resume", "--out", text(&out)]].concat());
    assert_eq!(stdout(&resumed), expected);
    let report = host(&["report", text(&out)]);
    assert_eq!(stdout(&report), expected);
    assert_eq!(report.status.code(), Some(0));
}

/// Sample lines of a file.
fn rows(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.contains("\"type\":\"sample\"")).count()
}

#[test]
fn a_report_prints_every_format_from_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    for (format, says) in [
        ("table", "plain_linear: mnist-1k, 20 samples, seed 0"),
        ("markdown", "| plain_linear |"),
        ("csv", "plain_linear,none,"),
        ("json", "\"worst_cases\""),
    ] {
        let _ = std::fs::remove_file(&out);
        let printed = stdout(&fixture(&["--format", format, "--out", text(&out)]));
        assert!(printed.contains(says), "{printed}");
        let again = host(&["report", text(&out), "--format", format]);
        let timeless = |text: &str| match format {
            "table" => text.to_string(),
            _ => text
                .lines()
                .filter(|line| !line.contains("plain_linear") && !line.contains("second"))
                .collect(),
        };
        assert_eq!(timeless(&stdout(&again)), timeless(&printed));
    }
    let missing = host(&["report", "nowhere.jsonl"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("nowhere.jsonl"));
}

#[test]
fn a_flipped_digit_is_named_with_its_line_and_repaired_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let expected = stdout(&fixture(&["--out", text(&out)]));
    let sound = std::fs::read_to_string(&out).unwrap();
    let damaged = sound.replacen("\"robust\":true", "\"robust\":false", 1);
    assert_ne!(sound, damaged);
    std::fs::write(&out, &damaged).unwrap();
    for refused in [
        host(&["report", text(&out)]),
        fixture(&["--resume", "--out", text(&out)]),
    ] {
        assert_eq!(refused.status.code(), Some(2));
        let said = stderr(&refused);
        assert!(
            said.contains("line ") && said.contains("damaged") && said.contains("--repair"),
            "{said}"
        );
    }
    assert_eq!(std::fs::read_to_string(&out).unwrap(), damaged);
    let repaired = fixture(&["--resume", "--repair", "--out", text(&out)]);
    assert_eq!(stdout(&repaired), expected, "{}", stderr(&repaired));
    assert_eq!(stdout(&host(&["report", text(&out)])), expected);
}

#[test]
fn a_larger_resumed_run_writes_its_number_of_samples() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    fixture(&["--out", text(&out)]);
    fixture_of("30", &["--resume", "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&host(&["report", text(&out), "--format", "json"]).stdout).unwrap();
    assert_eq!(report["cells"][0]["samples"], 30);
    assert_eq!(report["unfinished"], Value::Array(vec![]));
}

#[test]
fn a_file_that_is_not_ours_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (notes, link) = (dir.path().join("notes"), dir.path().join("link"));
    std::fs::write(&notes, "my only copy").unwrap();
    std::os::unix::fs::symlink(&notes, &link).unwrap();
    for path in [&notes, &link] {
        let refused = fixture(&["--resume", "--out", text(path)]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(
            stderr(&refused).contains("first line is not that of a results file"),
            "{}",
            stderr(&refused)
        );
    }
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "my only copy");
    for path in ["/dev/full", "/dev/null"] {
        let refused = fixture(&["--resume", "--out", path]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains("no regular file"), "{}", stderr(&refused));
    }
}

#[test]
fn a_cell_named_twice_is_measured_and_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let output = fixture(&["--attack", "plain_noise", "--format", "json", "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["cells"].as_array().unwrap().len(), 1);
    assert_eq!(report["worst_cases"].as_array().unwrap().len(), 1);
    assert_eq!(rows(&out), 20);
    assert!(stderr(&output).contains("named twice"), "{}", stderr(&output));
}

#[test]
fn a_failed_cell_has_no_figure() {
    let output = fixture(&["--attack", "plain_noise:mode=panic", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = &report["cells"][1];
    assert!(failed["failed"].as_str().unwrap().contains("panicked"));
    assert_eq!(
        (&failed["robust_accuracy"], &failed["clean_accuracy"]),
        (&Value::Null, &Value::Null)
    );
}

/// Saves adversarial images, and returns the file of the first cell.
fn saved(dir: &Path, more: &[&str]) -> PathBuf {
    let output = fixture(&[&["--save-adversarial", text(dir)], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.remove(0)
}

#[test]
fn saved_images_are_not_replaced_by_a_smaller_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = saved(dir.path(), &[]);
    let before = std::fs::read(&file).unwrap();
    let refused = fixture_of("5", &["--save-adversarial", text(dir.path())]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("is there already"), "{}", stderr(&refused));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn images_scored_on_another_defence_are_called_a_transfer_and_from_what() {
    let dir = tempfile::tempdir().unwrap();
    let file = saved(dir.path(), &[]);
    let own: Value = serde_json::from_slice(&host(&["score", text(&file), "--format", "json"]).stdout).unwrap();
    assert_eq!(own["cells"][0]["threat_model"], "plain_white_box");
    let args = ["score", text(&file), "--purifier", "gaussian_blur"];
    let other = host(&args);
    let said = stdout(&other);
    assert!(
        said.contains("a transfer: the images were crafted on plain_linear, plain_white_box"),
        "{said}"
    );
    assert!(!said.contains("white_box  "), "{said}");
}

#[test]
fn logits_are_never_written_over_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, logits) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("logits"));
    let file = saved(&a, &[]);
    std::fs::create_dir_all(&b).unwrap();
    let copy = b.join(file.file_name().unwrap());
    std::fs::copy(&file, &copy).unwrap();
    let both = host(&["score", text(&file), text(&copy), "--logits", text(&logits)]);
    assert_eq!(both.status.code(), Some(2));
    assert!(stderr(&both).contains("would both be"), "{}", stderr(&both));
    assert!(
        host(&["score", text(&file), "--logits", text(&logits)])
            .status
            .success()
    );
    let again = host(&["score", text(&file), "--logits", text(&logits)]);
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));
}
