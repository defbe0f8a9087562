//! `reproduce` through the real binary: what its page says of itself, and that a page is never lost.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;

use run::{refused, said, stdout};
use std::path::Path;
use std::process::{Command, Output};

fn host(folder: &Path, args: &[&str]) -> Output {
    let mut host = run::command(&[plugins::plugin_dir()], args);
    host.current_dir(folder).output().unwrap()
}

fn git(folder: &Path, args: &[&str]) -> String {
    let name = ["-c", "user.name=a", "-c", "user.email=a@b.c"];
    let output = Command::new("git")
        .args(name)
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    stdout(&output).trim().into()
}

/// One column of a table.
const COLUMN: [&str; 6] = ["reproduce", "table3", "--out", "results", "--column", "X on D"];

#[test]
fn a_page_names_the_hosts_commit_wherever_it_is_run() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path();
    git(elsewhere, &["init", "--quiet"]);
    git(
        elsewhere,
        &["commit", "--quiet", "--allow-empty", "--message", "another repository"],
    );
    let other = git(elsewhere, &["rev-parse", "--short", "HEAD"]);
    let version = stdout(&host(elsewhere, &["--version"]));
    let commit = version
        .trim()
        .split_once("(commit ")
        .unwrap()
        .1
        .trim_end_matches(')')
        .to_string();
    assert_ne!(commit, other);

    // The page of the whole table is there already; one of its columns does not replace it.
    let whole = elsewhere.join("results/table3.md");
    std::fs::create_dir(elsewhere.join("results")).unwrap();
    std::fs::write(&whole, "measured for a week\n").unwrap();
    let output = host(elsewhere, &[&COLUMN[..], &["--samples", "2"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(elsewhere.join("results/table3-part.md")).unwrap();
    assert!(page.contains(&format!(" at {commit}, on ")), "no {commit} in:\n{page}");
    assert!(!page.contains(&other), "{page}");
    assert_eq!(std::fs::read_to_string(&whole).unwrap(), "measured for a week\n");
}

#[test]
fn no_samples_are_refused_and_a_page_that_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let pages = ["table3.md", "table3-part.md"].map(|name| dir.path().join("results").join(name));
    for table in [&COLUMN[..], &COLUMN[..4]] {
        let none = [table, &["--samples", "0"]].concat();
        refused(&host(dir.path(), &none), &["--samples is 0"]);
        assert!(pages.iter().all(|page| !page.exists()), "a page of nothing");
    }
    std::fs::create_dir_all(dir.path().join("results")).unwrap();
    for page in &pages {
        std::fs::write(page, "measured for a week\n").unwrap();
    }
    for table in [&COLUMN[..], &COLUMN[..4]] {
        let none = [table, &["--samples", "0"]].concat();
        refused(&host(dir.path(), &none), &["--samples is 0"]);
    }
    for page in &pages {
        assert_eq!(std::fs::read_to_string(page).unwrap(), "measured for a week\n");
    }
}
