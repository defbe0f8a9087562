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
    ("plugins/models/", &["advae-sdk"]),
    (
        "plugins/classifiers/",
        &[
            "advae-sdk",
            "mnist_models",
            "cifar10_models",
            "onnx_models",
            "python_models",
        ],
    ),
    ("plugins/purifiers/", &["advae-sdk", "mnist_models", "cifar10_models"]),
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
        .filter(|package| !package.folder.starts_with("plugins/models/"))
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

/// The folders of `host/src`, from the top down: `use` never goes up.
const FLOORS: [&str; 10] = [
    "commands",
    "audit",
    "training",
    "experiment",
    "report",
    "results",
    "wire",
    "plugin",
    "isolation",
    "terminal",
];
/// Arrows that go down and are not in the plan all the same: what an experiment is knows nothing of how it is shown.
const FORBIDDEN: [(&str, &str); 2] = [("experiment", "report"), ("training", "report")];

/// A source file of the host: its folder, its module within it (`mod` for the folder's own), and its code without tests.
struct Source {
    folder: String,
    module: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    for floor in FLOORS {
        let mut folders = vec![root.join(floor)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let inside = path.strip_prefix(root.join(floor)).unwrap().with_extension("");
                    let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_string();
                    files.push(Source {
                        folder: floor.into(),
                        module: inside.to_str().unwrap().replace('/', "::"),
                        code,
                    });
                }
            }
        }
    }
    assert!(files.len() > 50, "{} files", files.len());
    files
}

/// The first parts of all paths that follow `prefix` in the code; those within braces, too.
fn named(code: &str, prefix: &str) -> Vec<String> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join(" ");
    code.split(prefix).skip(1).flat_map(first_parts).collect()
}

/// Of `{a::{b, c}, d}` or `a::b` the parts `a` and `d`.
fn first_parts(path: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(inside) = path.strip_prefix('{') else {
        return vec![word(path)];
    };
    let (mut depth, mut parts, mut from) = (1, vec![], 0);
    for (at, c) in inside.char_indices() {
        depth += match c {
            '{' => 1,
            '}' => -1,
            _ => 0,
        };
        if depth == 0 || (depth == 1 && c == ',') {
            parts.push(word(&inside[from..at]));
            from = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    parts
}

#[test]
fn a_path_is_read_with_its_braces() {
    assert_eq!(named("use super::{a::{b, c}, d};", "super::"), ["a", "d"]);
    assert_eq!(named("use super::{\n    a::B,\n    c,\n};", "super::"), ["a", "c", ""]);
    assert_eq!(named("crate::wire::x(); // no\n// crate::no", "crate::"), ["wire"]);
}

#[test]
fn use_goes_only_down_between_the_folders_of_the_host() {
    let floor = |folder: &str| FLOORS.iter().position(|other| *other == folder);
    for source in sources() {
        for other in named(&source.code, "crate::") {
            let Some(below) = floor(&other) else { continue };
            let allowed =
                floor(&source.folder) <= Some(below) && !FORBIDDEN.contains(&(source.folder.as_str(), other.as_str()));
            assert!(allowed, "{}/{} must not use {other}", source.folder, source.module);
        }
    }
}

/// The file that a name within a part of a folder (`` or `doctor::`) is of: its own, that of the folder it names, or, where the name is an
/// item, the one that speaks for the part itself.
fn file_of(files: &[Source], part: &str, name: &str) -> String {
    let candidates = [format!("{part}{name}"), format!("{part}{name}::mod")];
    let is_file = |module: &String| files.iter().any(|file| file.module == *module);
    candidates.into_iter().find(is_file).unwrap_or(format!("{part}mod"))
}

/// Which files of its folder a file uses.
fn uses(source: &Source, folder: &str, files: &[Source]) -> BTreeSet<String> {
    let part_of = |module: &str| {
        module
            .rsplit_once("::")
            .map_or(String::new(), |(part, _)| format!("{part}::"))
    };
    let speaks = source.module == "mod" || source.module.ends_with("::mod");
    let part = part_of(&source.module);
    let mut used: Vec<String> = vec![];
    // `super` of a file that speaks for its folder is the folder above.
    let above = if speaks {
        part_of(part.trim_end_matches("::"))
    } else {
        part.clone()
    };
    if source.module != "mod" {
        let names = named(&source.code, "super::").into_iter();
        used.extend(
            names
                .filter(|name| !name.is_empty())
                .map(|name| file_of(files, &above, &name)),
        );
    }
    for name in named(&source.code, &format!("crate::{folder}::")) {
        used.push(file_of(files, "", &name));
    }
    if speaks {
        // It names its files without a prefix; what it passes on with `pub use` it does not use.
        let lines = source
            .code
            .lines()
            .filter(|line| !line.trim_start().starts_with("pub use"));
        let code: String = lines.collect::<Vec<_>>().join("\n");
        for file in files {
            let Some(name) = file.module.strip_prefix(&part) else {
                continue;
            };
            let name = name.strip_suffix("::mod").unwrap_or(name);
            let direct = !name.is_empty() && !name.contains("::");
            let before = |at: usize| code[..at].chars().next_back();
            let path = format!("{name}::");
            let own = |(at, _): (usize, &str)| !before(at).is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':');
            if direct && code.match_indices(&path).any(own) {
                used.push(file.module.clone());
            }
        }
    }
    used.into_iter().filter(|name| *name != source.module).collect()
}

#[test]
fn no_two_files_of_a_folder_use_each_other_in_a_circle() {
    for folder in FLOORS {
        let files: Vec<Source> = sources().into_iter().filter(|source| source.folder == folder).collect();
        let mut edges: BTreeMap<String, BTreeSet<String>> = files
            .iter()
            .map(|source| (source.module.clone(), uses(source, folder, &files)))
            .collect();
        // Files that use nothing that is left are in no circle: what remains in the end is.
        while let Some(leaf) = edges
            .iter()
            .find(|(_, uses)| uses.is_empty())
            .map(|(name, _)| name.clone())
        {
            edges.remove(&leaf);
            edges.values_mut().for_each(|uses| uses.retain(|used| *used != leaf));
        }
        assert!(edges.is_empty(), "a circle in {folder}, or what uses one: {edges:?}");
    }
}

#[test]
fn no_name_or_shape_of_a_dataset_stands_where_a_dataset_is_measured() {
    for source in sources() {
        if !["experiment", "report", "results", "wire"].contains(&source.folder.as_str()) {
            continue;
        }
        let lines = source.code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            let lower = line.to_lowercase();
            for fact in ["mnist", "cifar", "28, 28", "32, 32"] {
                assert!(!lower.contains(fact), "{}/{}: {line}", source.folder, source.module);
            }
        }
    }
}

/// The licences that `deny.toml` allows, and nothing but the registry: what `cargo deny` asks, of every build.
#[test]
fn every_dependency_is_licensed_as_allowed_and_comes_from_the_registry() {
    let deny = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml")).unwrap();
    let deny: toml::Table = deny.parse().unwrap();
    let allowed: Vec<&str> = (deny["licenses"]["allow"].as_array().unwrap().iter())
        .map(|licence| licence.as_str().unwrap())
        .collect();
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let rustc = String::from_utf8(rustc.stdout).unwrap();
    let host = rustc
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .unwrap()
        .to_string();
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--locked",
        "--filter-platform",
        &host,
    ]))
    .unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        assert!(
            fits(licence, &allowed),
            "{name} is licensed as '{licence}': not in deny.toml"
        );
        let source = package["source"].as_str();
        assert!(
            source.is_none_or(|source| source.starts_with("registry+")),
            "{name} comes from {source:?}"
        );
    }
}

/// Whether every part of an SPDX expression that is joined by AND has an allowed choice.
fn fits(licence: &str, allowed: &[&str]) -> bool {
    let plain = licence.replace(['(', ')'], "").replace('/', " OR ");
    let choice = |part: &str| part.split(" OR ").any(|one| allowed.contains(&one.trim()));
    plain.split(" AND ").all(choice)
}

#[test]
fn expressions_of_licences_are_read() {
    let fits = |licence| fits(licence, &["MIT", "Unicode-3.0"]);
    assert!(
        fits("MIT") && fits("GPL-3.0 OR MIT") && fits("(MIT OR Apache-2.0) AND Unicode-3.0") && fits("Apache-2.0/MIT")
    );
    assert!(!fits("GPL-3.0") && !fits("MIT AND GPL-3.0") && !fits(""));
}
