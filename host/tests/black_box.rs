//! The black-box threat model through real shared libraries.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn host(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(args)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .env_remove("ADVAE_DATA_DIR")
        .output()
        .unwrap()
}

/// Classifier D alone and behind AdvAE, as JSON.
fn eval(out: &Path, more: &[&str]) -> Value {
    let output = host(
        &[
            &[
                "eval",
                "--classifier",
                "model_d",
                "--purifier",
                "none",
                "--purifier",
                "advae",
            ][..],
            &[
                "--threat-model",
                "black_box:rounds=3",
                "--attack",
                "fgsm",
                "--samples",
                "200",
            ],
            &["--format", "json", "--out", out.to_str().unwrap()],
            more,
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_substitute_is_trained_on_labels_and_its_images_are_scored_on_the_whole_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let report = eval(&out, &[]);
    let [alone, behind] = report["cells"].as_array().unwrap().as_slice() else {
        panic!("{report}")
    };
    for cell in [alone, behind] {
        // 150 seeds, doubled twice.
        assert_eq!(cell["substitute"]["queries"], 600);
        assert_eq!(cell["substitute"]["of"], 200);
        assert!(cell["substitute"]["agreeing"].as_u64().unwrap() > 120, "{cell}");
    }
    let robust = |cell: &Value| cell["robust_accuracy"]["value"].as_f64().unwrap();
    let clean = |cell: &Value| cell["clean_accuracy"]["value"].as_f64().unwrap();
    assert!(
        robust(alone) < clean(alone) - 0.3,
        "the transferred images break D: {alone}"
    );
    assert!(robust(alone) < robust(behind), "{report}");

    // What is there already is not trained again, and says the same.
    let again = eval(&out, &["--resume"]);
    assert_eq!(again["cells"][1]["substitute"], behind["substitute"]);
    assert_eq!(robust(&again["cells"][1]), robust(behind));
}

#[test]
fn a_threat_model_with_bad_settings_is_refused() {
    let output = host(&[
        "eval",
        "--classifier",
        "model_d",
        "--threat-model",
        "black_box:rounds=0",
    ]);
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(errors.contains("rounds is 0: choose a value from 1 to 16"), "{errors}");
}

#[test]
fn a_column_of_a_table_is_measured_once_and_printed_beside_the_paper() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let args = [
        "reproduce",
        "table3",
        "--column",
        "X on D",
        "--samples",
        "12",
        "--out",
        out,
    ];
    let output = host(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = String::from_utf8(output.stdout).unwrap();
    for line in [
        "| X on D | none | ",
        "| X on D | FGSM | ",
        "| X on D | PGD-40 | ",
        "| X on D | CW | ",
    ] {
        assert!(page.contains(line), "{page}");
    }
    assert!(page.contains("| 71.8 |"), "the paper's PGD figure: {page}");
    assert_eq!(
        std::fs::read_to_string(dir.path().join("table3-part.md")).unwrap(),
        page
    );
    let rows = || std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
    let before = rows();
    assert_eq!(host(&args).stdout, page.into_bytes());
    // The second run introduces itself and measures nothing.
    let again = rows();
    assert!(
        again.starts_with(&before) && again.lines().count() == before.lines().count() + 1,
        "{again}"
    );

    let output = host(&["reproduce", "table1", "--column", "nothing", "--out", out]);
    let errors = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(errors.contains("no column has 'nothing' in its title"), "{errors}");
}

#[test]
fn tables_share_the_cells_that_both_have() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    let cells = |table: &str| {
        let column = ["--column", "AdvAE, oblivious", "--samples", "6", "--out", out];
        let output = host(&[["reproduce", table].as_slice(), &column].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rows = std::fs::read_to_string(dir.path().join("rows.jsonl")).unwrap();
        rows.lines().filter(|line| line.contains(r#""type":"cell""#)).count()
    };
    assert_eq!(
        (cells("purifiers"), cells("table1")),
        (3, 8),
        "FGSM and PGD-40 with either step are in both"
    );
}
