//! Whether a plugin is one that the host can load, and of the kind that is asked for: told from its manifest alone.

use super::elf::Inspected;
use advae_abi::info::{Kind, Manifest};
use advae_abi::{CONTRACT_MAJOR, CONTRACT_MINOR};
use anyhow::{Result, bail, ensure};
use std::path::Path;

impl Inspected {
    /// Refuses a plugin of another contract, and one whose panics cannot be caught.
    ///
    /// # Errors
    /// One line with the remedy.
    pub fn check(&self) -> Result<()> {
        check(&file_name(&self.path), &self.manifest)
    }

    /// Refuses a plugin of another kind.
    ///
    /// # Errors
    /// Where the kind is not `expected`.
    pub fn expect_kind(&self, expected: Kind) -> Result<()> {
        expect_kind(&self.path, &self.manifest, expected)
    }
}

pub(super) fn expect_kind(path: &Path, manifest: &Manifest, expected: Kind) -> Result<()> {
    let kind = manifest.kind;
    ensure!(
        manifest.brings(expected),
        "plugin '{}' is {}, not {}: {}",
        file_name(path),
        kind.with_article(),
        expected.with_article(),
        remedy(kind)
    );
    Ok(())
}

fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Classifier => "give it with --classifier",
        Kind::Purifier => "give it with --purifier",
        Kind::Attack => "give it with --attack",
        Kind::ThreatModel => "give it with --threat-model",
    }
}

/// Name of a file, as it is shown in messages.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn check(file: &str, manifest: &Manifest) -> Result<()> {
    let mut numbers = manifest.contract.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or("0"));
    if major.parse() != Ok(CONTRACT_MAJOR) {
        bail!(
            "plugin '{file}' needs contract {major}.{minor}, this host speaks {CONTRACT_MAJOR}.{CONTRACT_MINOR}: \
             rebuild it with advae-sdk {CONTRACT_MAJOR}.x"
        );
    }
    ensure!(
        manifest.panic == "unwind",
        "plugin '{file}' was built with panic={}, which would end the host at its first panic: \
         rebuild it with panic=unwind",
        manifest.panic
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(contract: &str, panic: &str) -> Manifest {
        Manifest {
            contract: contract.into(),
            kind: Kind::Attack,
            also: vec![],
            name: "pgd".into(),
            version: "0.1.0".into(),
            sdk: "none".into(),
            rustc: "rustc".into(),
            panic: panic.into(),
            cuda: false,
            weight_sets: vec![],
        }
    }

    #[test]
    fn another_major_is_refused_and_any_minor_accepted() {
        let error = check("pgd.so", &manifest("2.0.0", "unwind")).unwrap_err();
        let line = "plugin 'pgd.so' needs contract 2.0, this host speaks 1.3: rebuild it with advae-sdk 1.x";
        assert_eq!(error.to_string(), line);
        assert!(check("pgd.so", &manifest("1.7.0", "unwind")).is_ok());
        assert!(check("pgd.so", &manifest("", "unwind")).is_err());
    }

    #[test]
    fn aborting_on_panic_is_refused() {
        let error = check("pgd.so", &manifest("1.0.0", "abort")).unwrap_err();
        assert!(error.to_string().contains("panic=abort"));
    }
}
