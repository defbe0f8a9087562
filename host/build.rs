//! Records the commit that the host is built from.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the host is made of, from the root of the checkout.
const SOURCES: [&str; 6] = [
    "host/src",
    "host/Cargo.toml",
    "host/build.rs",
    "core/abi",
    "core/data",
    "Cargo.lock",
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Another commit is no reason to compile the host anew while it is worked on: then it tells the commit at which its sources
    // were last compiled. A release build looks at every commit.
    let mut watched: Vec<PathBuf> = SOURCES.iter().map(|path| root.join(path)).collect();
    if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        watched.extend(refs(&root));
    }
    for path in watched.iter().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
    println!(
        "cargo::rustc-env=ADVAE_COMMIT={}",
        commit(&root).unwrap_or_else(|| "unknown".into())
    );
}

/// The commit, if `root` is the root of a checkout: a repository around an unpacked archive says nothing of it.
fn commit(root: &Path) -> Option<String> {
    let top = PathBuf::from(git(root, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let described = git(root, &["describe", "--always"])?;
    let changed = git(root, &[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(if changed.is_empty() {
        described
    } else {
        described + "-dirty"
    })
}

/// Files that change with the checked out commit.
fn refs(root: &Path) -> Vec<PathBuf> {
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let names = ["HEAD".to_string(), "packed-refs".into()].into_iter().chain(branch);
    let path = |name: String| Some(root.join(git(root, &["rev-parse", "--git-path", &name])?));
    names.filter_map(path).collect()
}

fn git(root: &Path, args: &[&str]) -> Option<String> {
    // `status` would write the index, which others may be at work with.
    let output = Command::new("git")
        .env("GIT_OPTIONAL_LOCKS", "0")
        .arg("-C")
        .arg(root)
        .args(args)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}
