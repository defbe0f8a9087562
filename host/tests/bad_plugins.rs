//! Bad plugins: each gives one clear line and exit code 2, and costs no result that is already there.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const SAMPLES: usize = 20;

/// A folder with a results file that holds one good cell.
struct Scene {
    dir: TempDir,
}

/// What a bad plugin is to lead to.
struct Expected<'a> {
    /// What the one line says.
    says: &'a [&'a str],
    /// Rows in the results file in the end.
    rows: usize,
}

impl Scene {
    fn new() -> Self {
        let scene = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let output = scene.eval(&[]);
        assert!(output.status.success(), "the good cell: {}", said(&output));
        assert_eq!(scene.rows(), SAMPLES);
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.display().to_string()
    }

    /// The good cell, and what `more` adds to it.
    fn eval(&self, more: &[&str]) -> Output {
        let out = self.path("results.jsonl").display().to_string();
        let samples = SAMPLES.to_string();
        let good = [
            "--classifier",
            "plain_linear",
            "--threat-model",
            "plain_white_box",
            "--attack",
            "plain_noise",
        ];
        Command::new(env!("CARGO_BIN_EXE_advae-host"))
            .arg("eval")
            .args(good)
            .args(["--samples", &samples, "--threads", "2", "--resume", "--out", &out])
            .args(more)
            .env("ADVAE_PLUGIN_PATH", fixtures::dir())
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap()
    }

    /// Sample rows of the results file, every line of which must be readable.
    fn rows(&self) -> usize {
        let text = std::fs::read_to_string(self.path("results.jsonl")).unwrap();
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter(|line| line["type"] == "sample").count()
    }

    fn check(&self, more: &[&str], expected: &Expected) {
        let output = self.eval(more);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {}", said(&output));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = stderr.lines().collect();
        assert_eq!(lines.len(), 1, "{more:?}: {}", said(&output));
        for part in expected.says {
            assert!(lines[0].contains(part), "{more:?}: no '{part}' in: {}", lines[0]);
        }
        assert_eq!(self.rows(), expected.rows, "{more:?}: {}", said(&output));
    }

    /// A classifier that does not even load.
    fn refused(&self, classifier: &str, says: &[&str]) {
        self.check(&["--classifier", classifier], &Expected { says, rows: SAMPLES });
    }
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

fn linear() -> Vec<u8> {
    std::fs::read(fixtures::plugin("linear")).unwrap()
}

#[test]
fn a_truncated_file() {
    let (scene, whole) = (Scene::new(), linear());
    for length in [whole.len() - 1, whole.len() / 2, 200, 10] {
        let path = scene.write("truncated.so", &whole[..length]);
        scene.refused(&path, &["truncated.so"]);
    }
}

#[test]
fn a_text_file() {
    let scene = Scene::new();
    let path = scene.write("text.so", "#!/bin/sh\nexit 0\n");
    scene.refused(&path, &["text.so", "shared library"]);
}

#[test]
fn another_major_of_the_contract() {
    let (scene, mut file) = (Scene::new(), linear());
    let (from, to) = (br#""contract":"1.3.0""#, br#""contract":"2.0.0""#);
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    file[at..at + to.len()].copy_from_slice(to);
    let path = scene.write("newer.so", file);
    scene.refused(
        &path,
        &["plugin 'newer.so' needs contract 2.0, this host speaks 1.3: rebuild it with advae-sdk 1.x"],
    );
}

#[test]
fn a_missing_symbol() {
    Scene::new().refused(
        "plain_headless",
        &["libplain_headless.so", "symbol", "is missing", "export_plugin!"],
    );
}

#[test]
fn panic_abort() {
    let path = fixtures::aborting();
    Scene::new().refused(
        &path.to_string_lossy(),
        &["libplain_aborting.so", "panic=abort", "panic=unwind"],
    );
}

#[test]
fn a_panicking_constructor() {
    let says = [
        "classifier 'plain_linear'",
        "plugin panicked: the constructor of a fixture",
    ];
    Scene::new().refused("plain_linear:mode=panicking_constructor", &says);
}

#[test]
fn an_unknown_setting() {
    Scene::new().refused(
        "plain_linear:mood=bad",
        &["classifier 'plain_linear'", "'mood'", "mode"],
    );
}

#[test]
fn a_panicking_forward() {
    let says = [
        "mode=panicking_forward",
        "plugin panicked: the forward pass of a fixture",
    ];
    Scene::new().refused("plain_linear:mode=panicking_forward", &says);
}

#[test]
fn an_output_that_is_nan() {
    Scene::new().refused("plain_linear:mode=nan", &["mode=nan", "its output for sample", "NaN"]);
}

#[test]
fn an_output_of_another_shape() {
    Scene::new().refused(
        "plain_linear:mode=wrong_shape",
        &["mode=wrong_shape", "an output has shape", "expected"],
    );
}

#[test]
fn an_attack_that_exceeds_epsilon() {
    let expected = Expected {
        says: &["mode=over_budget", "refused", "over the budget 0.3"],
        rows: 2 * SAMPLES,
    };
    Scene::new().check(&["--attack", "plain_noise:mode=over_budget"], &expected);
}

#[test]
fn an_attack_that_leaves_the_bounds() {
    let expected = Expected {
        says: &["mode=out_of_bounds", "refused", "outside [0, 1]"],
        rows: 2 * SAMPLES,
    };
    Scene::new().check(&["--attack", "plain_noise:mode=out_of_bounds"], &expected);
}

#[test]
fn an_attack_that_returns_another_shape() {
    let expected = Expected {
        says: &["mode=other_shape", "returned images of shape"],
        rows: SAMPLES,
    };
    Scene::new().check(&["--attack", "plain_noise:mode=other_shape"], &expected);
}

#[test]
fn an_attack_that_swallows_an_error_of_the_oracle() {
    let expected = Expected {
        says: &["mode=swallow", "the oracle was asked about 1 images"],
        rows: SAMPLES,
    };
    Scene::new().check(&["--attack", "plain_noise:mode=swallow"], &expected);
}

#[test]
fn an_attack_that_panics() {
    let expected = Expected {
        says: &["mode=panic", "plugin panicked: the attack of a fixture"],
        rows: SAMPLES,
    };
    Scene::new().check(&["--attack", "plain_noise:mode=panic"], &expected);
}

#[test]
fn a_cuda_device_asked_of_a_build_for_the_cpu() {
    let says = [
        "classifier 'plain_linear'",
        "device 'cuda:0' asked of a build for the cpu: use --device cpu",
    ];
    Scene::new().check(
        &["--device", "cuda:0"],
        &Expected {
            says: &says,
            rows: SAMPLES,
        },
    );
}

#[test]
fn a_plugin_of_another_kind() {
    let path = fixtures::plugin("noise").display().to_string();
    Scene::new().refused(
        &path,
        &["'libplain_noise.so' is an attack, not a classifier: give it with --attack"],
    );
}

#[test]
fn a_file_that_is_not_there() {
    assert!(!Path::new("/nowhere.so").exists());
    Scene::new().refused("nowhere.so", &["libnowhere.so", "ADVAE_PLUGIN_PATH"]);
}
