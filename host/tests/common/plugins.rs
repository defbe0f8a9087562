//! The workspace's own plugins. `cargo test` builds no shared libraries, so cargo is asked for them once a test
//! program: everything they are made of is there already.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Folder of the plugins, which is that of the host.
pub fn plugin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_BIN_EXE_advae-host"))
            .parent()
            .expect("a file has a folder");
        let target = dir.parent().expect("a profile's folder lies in the target folder");
        // With the tests' targets, so that features are unified as they were when the tests were built.
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(["build", "--workspace", "--lib", "--tests", "--target-dir"])
            .arg(target);
        cargo
            .args(dir.ends_with("release").then_some("--release"))
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        let output = cargo.output().expect("cargo does not start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir.to_path_buf()
    })
}

/// Path of a plugin: `plugin("model_x")`.
pub fn plugin(name: &str) -> PathBuf {
    plugin_dir().join(format!("lib{name}.so"))
}
