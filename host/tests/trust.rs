//! Defences that answer otherwise than they are attacked: what the host measures is not what they would have it measure.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use serde_json::Value;
use std::process::{Command, Output};

fn eval(more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["eval", "--threat-model", "plain_white_box", "--attack", "plain_noise"])
        .args(["--samples", "100", "--format", "json"])
        .args(more)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

fn report(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"))
}

#[test]
fn a_purifier_that_answers_by_heart_is_refused() {
    let output = eval(&[
        "--classifier",
        "plain_linear",
        "--purifier",
        "plain_purifier:mode=remembers",
    ]);
    assert_eq!(output.status.code(), Some(2));
    let cell = &report(&output)["cells"][0];
    let reason = cell["failed"].as_str().unwrap();
    assert!(reason.contains("logits for an adversarial image differ"), "{reason}");
    assert_eq!(cell["robust_accuracy"], Value::Null);
}

#[test]
fn a_classifier_that_says_it_is_not_random_and_is_is_refused() {
    let output = eval(&["--classifier", "plain_linear:mode=restless", "--threads", "1"]);
    assert_eq!(output.status.code(), Some(2));
    let reason = report(&output)["cells"][0]["failed"].to_string();
    assert!(
        reason.contains("says it is not random") && reason.contains("set random in its info"),
        "{reason}"
    );
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
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(report(&output)["warnings"], Value::Array(vec![]));
}
