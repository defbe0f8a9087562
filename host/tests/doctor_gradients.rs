//! `doctor` on gradients of candle's own operators, of which some have none.
#![allow(clippy::unwrap_used)]

#[path = "common/examples.rs"]
mod examples;

use std::process::Command;

/// Exit code, and the checklist, for a classifier with a gate.
fn doctor(settings: &str) -> (Option<i32>, String) {
    let file = examples::candle_fixture("gated");
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .arg("doctor")
        .arg(format!("{}{settings}", file.display()))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn line<'a>(said: &'a str, check: &str) -> &'a str {
    let line = said
        .lines()
        .find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(check)));
    line.unwrap_or_else(|| panic!("no '{check}' in:\n{said}"))
}

#[test]
fn a_gate_without_its_gradient_fails_and_the_right_one_passes() {
    for sharpness in [1, 4, 16] {
        let (code, said) = doctor(&format!(":sharpness={sharpness}"));
        assert_eq!(code, Some(0), "{said}");
        assert!(line(&said, "gradient, exact").starts_with("pass"), "{said}");
        let (code, said) = doctor(&format!(":candle=true,sharpness={sharpness}"));
        assert_eq!(code, Some(2), "{said}");
        let line = line(&said, "gradient, exact");
        assert!(
            line.starts_with("FAIL") && line.contains("candle's softmax_last_dim"),
            "{line}"
        );
    }
}

#[test]
fn untrained_weights_are_told() {
    let (_, said) = doctor("");
    assert!(
        line(&said, "untrained")
            .starts_with("warn  untrained              its weights are a seeded initialisation (init:0)"),
        "{said}"
    );
}
