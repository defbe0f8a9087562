//! The report as a page, through the real binary.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use std::path::Path;
use std::process::{Command, Output};

fn host(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(args)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .output()
        .unwrap()
}

fn eval(dir: &Path, more: &[&str]) -> Output {
    let (out, page) = (dir.join("results.jsonl"), dir.join("page.html"));
    let args = [
        "eval",
        "--classifier",
        "model_d",
        "--purifier",
        "advae",
        "--attack",
        "fgsm",
        "--attack",
        "ddn:steps=5",
    ];
    let files = [
        "--samples",
        "12",
        "--out",
        out.to_str().unwrap(),
        "--report",
        page.to_str().unwrap(),
    ];
    host(&[&args[..], &files, more].concat())
}

#[test]
fn a_page_holds_everything_and_is_the_same_from_the_saved_results() {
    let dir = tempfile::tempdir().unwrap();
    let output = eval(dir.path(), &["--epsilon", "linf=0.1:0.3:0.1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(dir.path().join("page.html")).unwrap();
    for part in [
        "<title>Robustness of model_d + advae</title>",
        "Accuracy against the Linf budget",
        "Accuracy against the L2 distance",
        "data:image/png;base64,iVBOR",
        "<th scope=\"col\">purified</th>",
        "id=\"confusion\"",
        // Images of the classifier alone, scored behind the purifier.
        "id=\"transfer\"",
        "advae-host eval --classifier model_d --purifier advae",
    ] {
        assert!(page.contains(part), "{part}");
    }
    // Nothing is asked of anybody else.
    for foreign in ["http://", "https://", "src=\"/", "@import"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // Eight samples a cell: two attacks, one of them with three budgets, under two threat models.
    assert_eq!(page.matches("alt=\"clean image of a ").count(), 8 * 4 * 2);
    let results = dir.path().join("results.jsonl");
    let again = host(&["report", results.to_str().unwrap(), "--format", "html"]);
    assert_eq!(String::from_utf8(again.stdout).unwrap(), page);
}

#[test]
fn a_page_that_is_there_is_not_overwritten_and_nothing_is_measured_before_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("page.html"), "mine").unwrap();
    let output = eval(dir.path(), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said.contains("is there already: choose another file, or move it away"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(dir.path().join("page.html")).unwrap(), "mine");
    assert!(!dir.path().join("results.jsonl").exists());
}

#[test]
fn names_from_outside_cannot_become_part_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("<img src=x onerror=alert(1)>.safetensors");
    std::fs::copy(
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../plugins/classifiers/model_d/weights/clean.safetensors"
        ),
        &weights,
    )
    .unwrap();
    let spec = format!("model_d@{}", weights.display());
    let page = dir.path().join("page.html");
    let args = [
        "eval",
        "--classifier",
        &spec,
        "--attack",
        "fgsm",
        "--samples",
        "2",
        "--epsilon",
        "0.1:0.2:0.1",
    ];
    let output = host(&[&args[..], &["--report", page.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("onerror=alert(1)&gt;"), "the name is shown");
    assert!(!page.contains("<img src=x"), "and is text alone");
}

#[test]
fn pdflatex_accepts_the_tables_where_it_is_installed() {
    if let Err(error) = Command::new("pdflatex").arg("--version").output() {
        eprintln!("not tried: pdflatex cannot be started ({error})");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = eval(dir.path(), &["--pictures", "0"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = dir.path().join("results.jsonl");
    let tables = host(&["report", results.to_str().unwrap(), "--format", "latex"]);
    let tables = String::from_utf8(tables.stdout).unwrap();
    let document = format!(
        "\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{tables}\\end{{document}}\n"
    );
    std::fs::write(dir.path().join("tables.tex"), document).unwrap();
    let typeset = Command::new("pdflatex")
        .args(["-interaction=nonstopmode", "-halt-on-error", "tables.tex"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&typeset.stdout);
    assert!(typeset.status.success(), "{said}");
    assert!(dir.path().join("tables.pdf").is_file());
}
