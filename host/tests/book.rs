//! The book says what is so: its pages are there, its links lead somewhere, and its commands run.
//!
//! A block of shell commands is run as it stands, all blocks of a page in one folder. `<!-- not run: WHY -->` above a block says why it is not.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data");
/// What the pages call files that a reader has.
const FILES: [(&str, &str); 3] = [
    ("net.onnx", "host/tests/data/linear.onnx"),
    ("denoiser.onnx", "host/tests/data/advae.onnx"),
    (
        "net.safetensors",
        "plugins/classifiers/model_x/weights/clean.safetensors",
    ),
];

/// The pages, in the order of the summary.
fn pages() -> Vec<PathBuf> {
    let summary = std::fs::read_to_string(Path::new(DOCS).join("SUMMARY.md")).unwrap();
    let paths = summary.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
    paths.map(|path| Path::new(DOCS).join(path)).collect()
}

/// A page's blocks of shell commands, those that are not run left out.
fn commands(page: &str) -> Vec<String> {
    let mut lines = page.lines();
    let (mut blocks, mut before) = (vec![], "");
    while let Some(line) = lines.next() {
        if line == "```sh" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if !before.starts_with("<!-- not run: ") {
                blocks.push(block.join("\n"));
            }
        }
        before = line;
    }
    blocks
}

/// Files that a page shows: blocks of TOML whose first line is their name, `# sweep.toml`.
fn shown(page: &str) -> Vec<(String, String)> {
    let blocks = page
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let named = |block: &str| {
        let name = block.lines().next()?.strip_prefix("# ")?;
        name.ends_with(".toml").then(|| (name.to_string(), block.to_string()))
    };
    blocks.filter_map(named).collect()
}

/// Images of ten classes: a folder of a user's.
fn photos(dir: &Path) {
    for class in 0..10u8 {
        let dir = dir.join("photos").join(class.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let mut encoder = png::Encoder::new(std::fs::File::create(dir.join("a.png")).unwrap(), 28, 28);
        encoder.set_color(png::ColorType::Grayscale);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&[20 * class; 28 * 28])
            .unwrap();
    }
}

/// Runs a page's commands. Gives what went wrong.
fn run(page: &Path) -> Option<String> {
    let text = std::fs::read_to_string(page).unwrap();
    let blocks = commands(&text);
    let dir = tempfile::tempdir().unwrap();
    for (name, block) in shown(&text) {
        std::fs::write(dir.path().join(name), block).unwrap();
    }
    for (name, file) in FILES {
        std::fs::copy(Path::new(DATA).join("../../..").join(file), dir.path().join(name)).unwrap();
    }
    photos(dir.path());
    let host = Path::new(env!("CARGO_BIN_EXE_advae-host")).parent().unwrap();
    let path = format!("{}:{}", host.display(), std::env::var("PATH").unwrap());
    let failed = blocks.iter().find_map(|block| {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", block])
            .current_dir(dir.path())
            .env("PATH", &path)
            .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
            .env_remove("ADVAE_DATA_DIR")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then(|| format!("{}:\n{block}\n{said}", page.display()))
    })?;
    Some(failed)
}

#[test]
fn every_command_runs_as_written() {
    let pages = pages();
    let count: usize = pages
        .iter()
        .map(|page| commands(&std::fs::read_to_string(page).unwrap()).len())
        .sum();
    assert!(count >= 12, "{count} blocks of commands");
    let next = Mutex::new(pages.iter());
    let failed = Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(page) = { next.lock().unwrap().next() } {
                    failed.lock().unwrap().extend(run(page));
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_page_is_in_the_summary_and_every_link_leads_somewhere() {
    let pages = pages();
    let in_folder = |dir: &str| {
        let entries = std::fs::read_dir(Path::new(DOCS).join(dir)).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let written = [in_folder("."), in_folder("results")].concat();
    for page in written
        .iter()
        .filter(|path| path.extension().is_some_and(|end| end == "md"))
    {
        let known = pages
            .iter()
            .any(|known| known.canonicalize().unwrap() == page.canonicalize().unwrap());
        assert!(
            known || page.ends_with("SUMMARY.md"),
            "{} is in no chapter",
            page.display()
        );
    }
    for page in &pages {
        let text = std::fs::read_to_string(page).unwrap();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            let file = link.split('#').next().unwrap();
            let there = file.contains("://") || page.parent().unwrap().join(file).exists();
            assert!(there, "{}: the link '{link}' leads nowhere", page.display());
        }
        for file in text
            .split("{{#include ")
            .skip(1)
            .map(|rest| rest.split("}}").next().unwrap())
        {
            assert!(
                page.parent().unwrap().join(file).exists(),
                "{}: no file '{file}'",
                page.display()
            );
        }
    }
}

#[test]
fn an_unmarked_block_is_run_and_a_marked_one_is_not() {
    let page = "```sh\na\nb\n```\n\n<!-- not run: hours -->\n```sh\nc\n```\n```text\nd\n```\n";
    assert_eq!(commands(page), ["a\nb"]);
}
