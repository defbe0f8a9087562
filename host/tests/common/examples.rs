//! The template crates of `examples/`, built as a third party builds them: outside the workspace.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The templates.
pub const NAMES: [&str; 4] = ["classifier", "purifier", "attack", "threat_model"];

/// Folder of `libmy_classifier.so` and the others, built once a test program: candle takes minutes the first time.
pub fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        NAMES.iter().for_each(|name| build(&examples().join(name)));
        target().join("debug")
    })
}

/// The template's only file.
pub fn source(name: &str) -> String {
    std::fs::read_to_string(examples().join(name).join("src/lib.rs")).expect("a template has a src/lib.rs")
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("examples")
}

/// Folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn examples() -> PathBuf {
    workspace().join("examples")
}

/// Path of the library of a crate in `fixtures` that needs candle, built likewise: `candle_fixture("gated")`.
pub fn candle_fixture(name: &str) -> PathBuf {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    build(&Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).join(name));
    target().join("debug").join(format!("lib{name}.so"))
}

/// What cargo says where it succeeds with a crate that was written elsewhere, with the versions of the workspace's lock file.
pub fn done(command: &str, crate_dir: &Path) -> String {
    std::fs::copy(workspace().join("Cargo.lock"), crate_dir.join("Cargo.lock")).expect("a file can be copied");
    let output = cargo(command, crate_dir);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// The library of a crate that was built so.
pub fn library(name: &str) -> PathBuf {
    target().join("debug").join(format!("lib{name}.so"))
}

fn cargo(command: &str, dir: &Path) -> std::process::Output {
    Command::new(env!("CARGO"))
        .args([command, "--target-dir"])
        .arg(target())
        .current_dir(dir)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .output()
        .expect("cargo does not start")
}

/// Builds a copy of a crate with the versions of the workspace's lock file.
fn build(from: &Path) {
    let name = from.file_name().unwrap_or_default();
    let to = target().join("sources").join(name);
    std::fs::create_dir_all(to.join("src")).expect("the target folder can be written");
    for entry in std::fs::read_dir(from.join("src"))
        .expect("a template has a folder src")
        .flatten()
    {
        std::fs::copy(entry.path(), to.join("src").join(entry.file_name())).expect("a file can be copied");
    }
    let manifest = std::fs::read_to_string(from.join("Cargo.toml")).expect("a template has a manifest");
    let mut manifest: toml::Table = manifest.parse().expect("a manifest is TOML");
    let sdk = workspace().join("core/sdk").canonicalize().expect("the sdk is there");
    manifest["dependencies"]["advae-sdk"]["path"] = sdk.display().to_string().into();
    std::fs::write(to.join("Cargo.toml"), manifest.to_string()).expect("a manifest can be written");
    std::fs::copy(workspace().join("Cargo.lock"), to.join("Cargo.lock")).expect("a file can be copied");
    let output = cargo("build", &to);
    assert!(
        output.status.success(),
        "{}: {}",
        from.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}
