//! What a threat model prepares before an attack: once a pipeline, and interruptible.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/run.rs"]
mod run;

use run::{interrupt, outcome, piped, report, said, stderr, text, until};
use std::path::Path;
use std::process::Command;

/// Two attacks on the classifier under a threat model in that mode.
fn eval(threat_model: &str, more: &[&str]) -> Command {
    let cell = ["eval", "--classifier", "plain_linear", "--threat-model", threat_model];
    let attacks = ["--attack", "plain_noise", "--attack", "plain_noise:epsilon=0.1"];
    let run = ["--samples", "10", "--threads", "2", "--format", "json"];
    run::command(&[fixtures::dir()], &[&cell[..], &attacks, &run, more].concat())
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

#[test]
fn a_substitute_is_prepared_once_for_all_attacks_on_a_pipeline() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    for mode in ["substitute", "sound"] {
        let _ = std::fs::remove_file(&log);
        let threat_model = format!("plain_white_box:mode={mode},log={}", text(&log));
        let alone = eval(&threat_model, &[]).output().unwrap();
        assert!(alone.status.success(), "{}", said(&alone));
        let report = report(&alone);
        assert_eq!(report["cells"].as_array().unwrap().len(), 2);
        assert_eq!(
            report["cells"][1]["substitute"].is_object(),
            mode == "substitute",
            "{report}"
        );
        assert_eq!(lines(&log), 1, "{mode}: two attacks on one pipeline");
    }
    // Another pipeline has its own.
    std::fs::remove_file(&log).unwrap();
    let threat_model = format!("plain_white_box:mode=substitute,log={}", text(&log));
    let purifiers = ["--purifier", "none", "--purifier", "plain_purifier"];
    let two = eval(&threat_model, &purifiers).output().unwrap();
    assert!(two.status.success(), "{}", said(&two));
    assert_eq!(report(&two)["cells"].as_array().unwrap().len(), 4);
    assert_eq!(lines(&log), 2);
}

#[test]
fn ctrl_c_while_a_substitute_is_trained_is_no_failure_and_the_run_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let (log, out) = (dir.path().join("log"), dir.path().join("rows"));
    let threat_model = format!("plain_white_box:mode=trains_for_long,log={}", text(&log));
    let file = ["--out", text(&out)];
    let child = piped(&mut eval(&threat_model, &file));
    until("the training begins", || lines(&log) == 1);
    interrupt(&child);
    let stopped = outcome(child);
    assert_eq!(stopped.status.code(), Some(130), "{}", said(&stopped));
    assert!(
        stderr(&stopped).contains("stopped: 0 rows are in"),
        "{}",
        said(&stopped)
    );
    let written = std::fs::read_to_string(&out).unwrap();
    assert!(
        written.contains(r#""type":"cell""#) && !written.contains("failed"),
        "{written}"
    );

    let resumed = outcome(piped(&mut eval(&threat_model, &[&file[..], &["--resume"]].concat())));
    assert!(resumed.status.success(), "{}", said(&resumed));
    assert_eq!(lines(&log), 2);
    for cell in report(&resumed)["cells"].as_array().unwrap() {
        assert_eq!((&cell["samples"], &cell["substitute"]["of"]), (&10.into(), &10.into()));
    }
}
