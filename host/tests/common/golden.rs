//! Copies of the contract with a method fewer or more, and the fixture plugins built against them.

use super::fixtures::{cargo_with, target, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

const PLUGINS: [&str; 3] = ["linear", "noise", "white_box"];

/// Builds the fixture plugins as `lib{prefix}_linear.so` and so on, against a contract in which `edit` changed the
/// files of `src` that it is given by name. Returns the folder.
pub fn build(prefix: &str, edit: impl Fn(&str, String) -> String) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("golden").join(prefix);
    let fixtures = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    write(&root.join("Cargo.toml"), &manifest(fixtures));
    write(&root.join("Cargo.lock"), &read(&fixtures.join("Cargo.lock")));
    copy(&workspace().join("core/abi"), &root.join("abi"), &edit);
    copy(&fixtures.join("plain"), &root.join("plain"), &|_, text| text);
    for plugin in PLUGINS {
        let rename =
            |_: &str, text: String| text.replace(&format!("\"plain_{plugin}\""), &format!("\"{prefix}_{plugin}\""));
        copy(&fixtures.join(plugin), &root.join(plugin), &rename);
    }
    let manifest = root.join("Cargo.toml").display().to_string();
    let mut cargo = Command::new(env!("CARGO"));
    cargo_with(
        cargo.env("CARGO_TARGET_DIR", target()),
        &["build", "--manifest-path", &manifest],
    );
    target().join("debug")
}

/// The main workspace's manifest with the members of this one, and the profiles of the fixtures', so that what they
/// have in common is built once.
fn manifest(fixtures: &Path) -> String {
    let parse = |path: &Path| read(path).parse::<toml::Table>().unwrap();
    let mut manifest = parse(&workspace().join("Cargo.toml"));
    manifest["profile"] = parse(&fixtures.join("Cargo.toml"))["profile"].clone();
    let space = manifest["workspace"].as_table_mut().unwrap();
    space.remove("exclude");
    let members = ["abi", "plain"].into_iter().chain(PLUGINS).map(toml::Value::from);
    space.insert("members".into(), members.collect::<Vec<_>>().into());
    let own = |path: &str| toml::Value::Table([("path".to_string(), path.into())].into_iter().collect());
    let dependencies = space["dependencies"].as_table_mut().unwrap();
    dependencies.insert("advae-abi".into(), own("abi"));
    dependencies.insert("plain".into(), own("plain"));
    space["package"]
        .as_table_mut()
        .unwrap()
        .insert("publish".into(), false.into());
    manifest.to_string()
}

fn copy(from: &Path, to: &Path, edit: &dyn Fn(&str, String) -> String) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        match path.is_dir() {
            true => copy(&path, &to.join(&name), edit),
            false => write(&to.join(&name), &edit(&name, read(&path))),
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("'{}': {e}", path.display()))
}

/// Leaves a file alone that is as it should be, so that cargo has nothing to do.
fn write(path: &Path, text: &str) {
    if std::fs::read_to_string(path).is_ok_and(|old| old == text) {
        return;
    }
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}
