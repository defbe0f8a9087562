//! A third party's attack appears in `eval` when its file is put on the plugin path, and an attack vanishes with its
//! file. The host's binary stays as it is.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the host, a classifier, a threat model and the attack `cw`.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        std::fs::copy(env!("CARGO_BIN_EXE_advae-host"), home.host()).unwrap();
        for name in ["linear", "white_box"] {
            let file = format!("libplain_{name}.so");
            std::fs::copy(fixtures::plugin(name), home.0.path().join(file)).unwrap();
        }
        std::fs::write(home.cw(), noise_called_cw()).unwrap();
        home
    }

    fn host(&self) -> PathBuf {
        self.0.path().join("advae-host")
    }

    fn cw(&self) -> PathBuf {
        self.0.path().join("libcw.so")
    }

    fn hash(&self) -> Vec<u8> {
        Sha256::digest(std::fs::read(self.host()).unwrap()).to_vec()
    }

    /// The attacks that `eval` runs where none is named.
    fn attacks(&self, plugin_path: &Path) -> Vec<String> {
        let output = Command::new(self.host())
            .args(["eval", "--samples", "3", "--threads", "1", "--format", "json"])
            .args(["--classifier", "plain_linear", "--threat-model", "plain_white_box"])
            .env("ADVAE_PLUGIN_PATH", plugin_path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let cells = report["cells"].as_array().unwrap().iter();
        cells.map(|cell| cell["attack"].as_str().unwrap().to_string()).collect()
    }
}

/// The attack of the fixtures under the name of one of the defaults.
fn noise_called_cw() -> Vec<u8> {
    let mut file = std::fs::read(fixtures::plugin("noise")).unwrap();
    let (from, to) = (br#""name":"plain_noise""#, br#""name":"cw"         "#);
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    file[at..at + to.len()].copy_from_slice(to);
    file
}

#[test]
fn an_attack_appears_with_its_file_and_vanishes_with_it() {
    let (home, third_party) = (Home::new(), tempfile::tempdir().unwrap());
    let before = home.hash();
    assert_eq!(home.attacks(third_party.path()), ["cw"]);

    let theirs = third_party.path().join("libplain_noise.so");
    std::fs::copy(fixtures::plugin("noise"), &theirs).unwrap();
    assert_eq!(home.attacks(third_party.path()), ["cw", "plain_noise"]);

    std::fs::remove_file(home.cw()).unwrap();
    assert_eq!(home.attacks(third_party.path()), ["plain_noise"]);
    assert_eq!(home.hash(), before);
}
