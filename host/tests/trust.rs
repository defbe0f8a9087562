//! Defences that answer otherwise than they are attacked: the host measures not what they would have it measure.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;
#[path = "common/saved.rs"]
mod saved;

use run::{report, said, stderr, stdout, text};
use serde_json::Value;
use std::process::Output;

fn host(args: &[&str]) -> Output {
    run::command(&[fixtures::dir(), plugins::plugin_dir()], args)
        .output()
        .unwrap()
}

fn eval_of(samples: &str, more: &[&str]) -> Output {
    let cell = ["eval", "--threat-model", "plain_white_box", "--attack", "plain_noise"];
    let so_many = ["--samples", samples, "--format", "json"];
    host(&[&cell[..], &so_many, more].concat())
}

fn eval(more: &[&str]) -> Output {
    eval_of("100", more)
}

/// A classifier that the attack breaks nearly always.
const BROKEN: [&str; 7] = [
    "eval",
    "--classifier",
    "model_d",
    "--threat-model",
    "plain_white_box",
    "--attack",
    "fgsm",
];

/// Its defence by the purifier in that mode.
fn purified(samples: &str, mode: &str) -> Output {
    let purifier = format!("plain_purifier:mode={mode}");
    let more = ["--samples", samples, "--format", "json", "--purifier", &purifier];
    host(&[&BROKEN[..], &more].concat())
}

/// The only cell has no figure, and says why.
fn has_no_figure(output: &Output) -> String {
    let report = report(output);
    let cell = &report["cells"][0];
    assert_eq!(cell["robust_accuracy"], Value::Null, "{cell}");
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    assert_eq!(report["worst_cases"], Value::Array(vec![]));
    let reason = cell["failed"].as_str().unwrap_or_else(|| panic!("{report}"));
    assert!(reason.contains("says it is not random"), "{reason}");
    reason.into()
}

#[test]
fn a_purifier_that_answers_by_heart_is_refused() {
    let reason = has_no_figure(&purified("100", "remembers"));
    assert!(reason.contains("logits for an adversarial image differ"), "{reason}");
}

#[test]
fn a_purifier_that_answers_by_heart_is_refused_on_few_samples_too() {
    for samples in ["10", "3", "1"] {
        has_no_figure(&purified(samples, "remembers"));
    }
}

#[test]
fn a_purifier_that_answers_by_heart_except_for_some_ids_is_refused() {
    has_no_figure(&purified("300", "remembers_most"));
}

#[test]
fn a_purifier_that_answers_by_heart_only_when_it_is_scored_after_crafting_is_refused() {
    for samples in ["100", "10"] {
        has_no_figure(&purified(samples, "remembers_once"));
    }
}

#[test]
fn a_purifier_that_answers_by_heart_is_refused_by_score_too() {
    let dir = tempfile::tempdir().unwrap();
    let saves = ["--samples", "20", "--save-adversarial", text(dir.path())];
    let output = host(&[&BROKEN[..], &saves].concat());
    assert!(output.status.success(), "{}", said(&output));
    let file = saved::file(dir.path(), ".npz");
    let score = |purifier: &str| host(&["score", text(&file), "--purifier", purifier]);
    for mode in ["remembers", "remembers_most", "remembers_once"] {
        let output = score(&format!("plain_purifier:mode={mode}"));
        assert_eq!(output.status.code(), Some(2), "{mode}: {}", said(&output));
        assert!(
            stderr(&output).contains("says it is not random"),
            "{mode}: {}",
            said(&output)
        );
        assert!(!stdout(&output).contains("0.0 ["), "a figure: {}", stdout(&output));
    }
    assert!(score("plain_purifier").status.success());
}

#[test]
fn a_sound_purifier_is_measured_on_few_samples_and_many() {
    for samples in ["1", "10", "100"] {
        let output = purified(samples, "sound");
        assert!(output.status.success(), "{}", said(&output));
        assert!(report(&output)["cells"][0]["robust_accuracy"].is_object());
    }
}

#[test]
fn a_classifier_that_says_it_is_not_random_and_is_is_refused() {
    let output = eval(&["--classifier", "plain_linear:mode=restless", "--threads", "1"]);
    let reason = has_no_figure(&output);
    assert!(reason.contains("set random in its info"), "{reason}");
}

#[test]
fn a_classifier_that_depends_on_the_batch_is_told() {
    let output = eval(&["--classifier", "plain_linear:mode=batch"]);
    let warnings = report(&output)["warnings"].to_string();
    assert!(
        warnings.contains("verdicts changed when the host repeated them"),
        "{warnings}"
    );
}

#[test]
fn a_sound_defence_is_repeated_and_nothing_is_said() {
    let output = eval(&["--classifier", "plain_linear"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(report(&output)["warnings"], Value::Array(vec![]));
}
