//! The templates of `examples/`: short, built outside the workspace, and giving the figure their first line promises.
#![allow(clippy::unwrap_used)]

#[path = "common/examples.rs"]
mod examples;
#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::process::Command;

/// What a figure may be off by, in percent: one machine rounds otherwise than another.
const TOLERANCE: f64 = 0.3;

/// Runs `eval` on the templates; the exit code, and the cells of the report.
fn eval(args: &[&str]) -> (Option<i32>, Vec<Value>) {
    let path = std::env::join_paths([examples::dir(), plugins::plugin_dir()]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["eval", "--classifier", "my_classifier", "--format", "json"])
        .args(args)
        .env("ADVAE_PLUGIN_PATH", path)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), report["cells"].as_array().unwrap().clone())
}

/// The percentage in the first line of a template.
fn promised(name: &str) -> f64 {
    let source = examples::source(name);
    let line = source.lines().next().unwrap();
    let mut words = line.split(" %").next().unwrap().split(' ');
    words
        .next_back()
        .unwrap()
        .parse()
        .unwrap_or_else(|_| panic!("{name} promises no figure: {line}"))
}

fn check(name: &str, share: &Value) {
    let (measured, promised) = (100. * share["value"].as_f64().unwrap(), promised(name));
    assert!(
        (measured - promised).abs() <= TOLERANCE,
        "{name}: {measured} %, its first line says {promised} %"
    );
}

#[test]
fn templates_are_short() {
    for name in examples::NAMES {
        let lines = examples::source(name).lines().count();
        assert!(lines < 60, "{name} has {lines} lines");
    }
}

#[test]
fn templates_give_what_they_promise() {
    let args = [
        "--purifier",
        "none",
        "--purifier",
        "my_purifier",
        "--attack",
        "my_attack",
    ];
    let (code, cells) = eval(&[&args[..], &["--threat-model", "my_threat_model"]].concat());
    assert_eq!(code, Some(0));
    check("classifier", &cells[0]["clean_accuracy"]);
    check("attack", &cells[0]["robust_accuracy"]);
    check("threat_model", &cells[0]["robust_accuracy"]);
    check("purifier", &cells[1]["clean_accuracy"]);
}

#[test]
fn the_threat_model_grants_no_gradients() {
    let (code, cells) = eval(&[
        "--threat-model",
        "my_threat_model",
        "--attack",
        "fgsm",
        "--samples",
        "10",
    ]);
    assert_eq!(code, Some(2));
    let failed = cells[0]["failed"].as_str().unwrap();
    assert!(failed.contains("does not grant gradients"), "{failed}");
}

#[test]
fn the_doctor_finds_nothing_wrong_with_them() {
    for name in examples::NAMES {
        let file = examples::dir().join(format!("libmy_{name}.so"));
        let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
            .arg("doctor")
            .arg(&file)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("0 warned, 0 failed"), "{said}");
    }
}

#[test]
fn a_new_crate_builds_passes_its_tests_and_the_doctor() {
    let dir = tempfile::tempdir().unwrap();
    let host = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_advae-host"))
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap()
    };
    let sdk = examples::workspace().to_str().unwrap();
    let against = |base: &'static str, tests: [usize; 4]| {
        let kinds = ["classifier", "purifier", "attack", "threat-model"];
        kinds
            .into_iter()
            .zip(tests)
            .map(move |(kind, tests)| (base, kind, tests))
    };
    for (base, kind, tests) in against("--candle", [1, 1, 2, 1]).chain(against("--abi", [1, 2, 2, 1])) {
        let name = format!("own{}_{}", base.replace('-', "_"), kind.replace('-', "_"));
        let output = host(&["new", kind, &name, base, "--sdk", sdk]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.contains("cargo build --release"),
            "{said}"
        );
        let made = dir.path().join(&name);
        let said = examples::done("test", &made);
        assert!(said.contains(&format!("{tests} passed; 0 failed")), "{said}");
        // The templates themselves are built and examined above; one shows that it is the same with what is written.
        if kind == "attack" || base == "--abi" {
            examples::done("build", &made);
            let library = examples::library(&name);
            let examined = host(&["doctor", library.to_str().unwrap()]);
            let said = String::from_utf8_lossy(&examined.stdout);
            assert!(
                examined.status.success() && said.contains("0 warned, 0 failed"),
                "{said}"
            );
        }
        let again = host(&["new", kind, &name]);
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(
            said.contains("is there already: choose another name, or --dir"),
            "{said}"
        );
    }
    for name in ["My_attack", "2fast", "a-b", "", "self"] {
        let output = host(&["new", "attack", name]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(
            said.contains("cannot be the name of a plugin") || said.contains("value is required"),
            "{said}"
        );
    }
}
