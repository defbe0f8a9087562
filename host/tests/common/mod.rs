//! The workspace's own plugins, built once a test program.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Folder of `libmodel_x.so`, `libadvae.so`, `libpgd.so` and all the others: the one the host was built into, with the
/// profile of the tests, so that only what is missing is built.
pub fn plugin_dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_BIN_EXE_advae-host")).parent().expect("a file has a folder");
        let target = dir.parent().expect("a profile's folder lies in the target's");
        let profile = dir.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
        let profile = if profile == "debug" { "dev" } else { profile };
        let output = Command::new(env!("CARGO"))
            .args(["build", "--workspace", "--lib", "--profile", profile])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .env("CARGO_TARGET_DIR", target)
            .output()
            .expect("cargo does not start");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir.to_path_buf()
    })
}
