//! Plugins on the contract alone, built by cargo once a test program: a no-op where nothing has changed.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Folder of the built fixtures: `libplain_linear.so`, `libplain_noise.so`, `libplain_white_box.so`,
/// `libplain_headless.so`, `libplain_probe.so`.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        cargo(&["build", "--manifest-path", &manifest()]);
        target().join("debug")
    })
}

/// The classifier that was built with panic=abort.
pub fn aborting() -> PathBuf {
    let args = ["rustc", "--package", "aborting", "--manifest-path", &manifest()];
    cargo(&[&args[..], &["--", "-C", "panic=abort"]].concat());
    target().join("debug/libplain_aborting.so")
}

/// The classifier that wants the helper from its own folder, and that helper; both in [`dir`].
pub fn beside() -> [PathBuf; 2] {
    let helper = plugin("helper");
    let args = ["rustc", "--package", "beside", "--manifest-path", &manifest(), "--"];
    let search = format!("link-arg=-L{}", dir().display());
    cargo(
        &[
            &args[..],
            &[
                "-C",
                &search,
                "-C",
                "link-arg=-lplain_helper",
                "-C",
                "link-arg=-Wl,-rpath,$ORIGIN",
            ],
        ]
        .concat(),
    );
    [plugin("beside"), helper]
}

/// Path of a built fixture: `plugin("linear")`.
pub fn plugin(name: &str) -> PathBuf {
    dir().join(format!("libplain_{name}.so"))
}

/// Manifest of the fixtures' workspace.
pub fn manifest() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/Cargo.toml").into()
}

/// Where everything that does not need candle is built.
pub fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("fixtures")
}

/// Root of the main workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs cargo in [`target`].
pub fn cargo(args: &[&str]) {
    cargo_with(Command::new(env!("CARGO")).env("CARGO_TARGET_DIR", target()), args);
}

/// Runs a command of cargo's and shows what it said where it fails.
pub fn cargo_with(command: &mut Command, args: &[&str]) {
    let output = command.args(args).output().expect("cargo does not start");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cargo {args:?} failed:\n{said}");
}
