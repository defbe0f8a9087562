//! The invariants of ARCHITECTURE.md: who may depend on whom.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Every package of the workspace, and the packages of the workspace it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("core/abi", &[]),
    ("core/nn", &[]),
    ("core/data", &[]),
    ("core/sdk", &["advae-abi", "advae-nn"]),
    ("plugins/mnist_models", &["advae-sdk"]),
    ("plugins/classifiers/", &["advae-sdk", "mnist_models"]),
    ("plugins/purifiers/", &["advae-sdk", "mnist_models"]),
    ("plugins/attacks/", &["advae-sdk"]),
    ("plugins/threat_models/", &["advae-sdk"]),
    ("host", &["advae-abi", "advae-data"]),
];

struct Package {
    name: String,
    /// Folder within the workspace.
    folder: String,
    crate_types: Vec<String>,
    /// What it depends on when it is built, not when it is tested.
    dependencies: BTreeSet<String>,
}

fn cargo(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "cargo {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn packages() -> BTreeMap<String, Package> {
    let metadata: Value = serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    let root = metadata["workspace_root"].as_str().unwrap();
    let read = |package: &Value| {
        let name = package["name"].as_str().unwrap().to_string();
        let manifest = package["manifest_path"].as_str().unwrap();
        let folder = manifest
            .strip_prefix(root)
            .unwrap()
            .trim_matches('/')
            .trim_end_matches("/Cargo.toml");
        let built = list(&package["dependencies"]).filter(|d| d["kind"] != "dev");
        let dependencies = built.map(|d| d["name"].as_str().unwrap().to_string()).collect();
        let targets = list(&package["targets"]).flat_map(|t| list(&t["crate_types"]));
        let crate_types = targets.map(|t| t.as_str().unwrap().to_string()).collect();
        (
            name.clone(),
            Package {
                name,
                folder: folder.into(),
                crate_types,
                dependencies,
            },
        )
    };
    list(&metadata["packages"]).map(read).collect()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().unwrap().iter()
}

/// Everything a package is built from, by name.
fn tree(package: &str) -> BTreeSet<String> {
    let tree = cargo(&[
        "tree",
        "--package",
        package,
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ]);
    tree.lines()
        .filter_map(|line| line.split(' ').next())
        .map(String::from)
        .collect()
}

#[test]
fn every_arrow_is_in_the_plan() {
    let packages = packages();
    for package in packages.values() {
        let allowed = ARROWS.iter().find(|(folder, _)| {
            package.folder == *folder || (folder.ends_with('/') && package.folder.starts_with(folder))
        });
        let Some((_, allowed)) = allowed else {
            panic!("no arrows are planned for '{}'", package.folder)
        };
        for other in package.dependencies.iter().filter(|name| packages.contains_key(*name)) {
            assert!(
                allowed.contains(&other.as_str()),
                "{} must not depend on {other}",
                package.name
            );
        }
    }
}

#[test]
fn the_contract_and_the_host_know_no_candle_and_no_plugin() {
    let packages = packages();
    for package in ["advae-abi", "advae-data", "advae-host"] {
        for name in tree(package) {
            assert!(!name.contains("candle"), "{package} is built with {name}");
            let plugin = packages
                .get(&name)
                .is_some_and(|other| other.folder.starts_with("plugins/"));
            assert!(!plugin, "{package} is built with the plugin {name}");
        }
    }
}

#[test]
fn every_plugin_is_a_shared_library_and_nothing_else() {
    let packages = packages();
    let plugins: Vec<&Package> = packages
        .values()
        .filter(|package| package.folder.matches('/').count() == 2)
        .collect();
    assert!(plugins.len() >= 12, "{} plugins", plugins.len());
    for plugin in plugins {
        assert_eq!(plugin.crate_types, ["cdylib"], "{}", plugin.name);
    }
}

#[test]
fn abi_stable_stays_inside_the_contract() {
    for package in packages().values().filter(|package| package.name != "advae-abi") {
        assert!(
            !package.dependencies.contains("abi_stable"),
            "{} depends on abi_stable",
            package.name
        );
    }
}
