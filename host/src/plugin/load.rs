//! Loading: file checks, manifest, dlopen, layout check, description.

use super::elf::{Inspected, inspect};
use super::fenv;
use super::find::find;
use advae_abi::info::{Description, Kind, Manifest};
use advae_abi::load::{HEADER_SYMBOL, root_from_header};
use advae_abi::{CONTRACT_MAJOR, CONTRACT_MINOR, RootRef};
use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::collections::HashMap;
use std::ffi::c_void;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// A loaded plugin. Loading is once a file and for good: its code is never unloaded.
#[derive(Clone)]
pub struct Plugin {
    /// Canonical path of the file.
    pub path: PathBuf,
    /// What the file says of itself.
    pub manifest: Manifest,
    /// Its settings.
    pub description: Description,
    /// Hash of the file, in hex.
    pub sha256: String,
    root: RootRef,
}

static LOADED: LazyLock<Mutex<HashMap<PathBuf, Plugin>>> = LazyLock::new(Mutex::default);

impl Plugin {
    /// Loads the plugin of that name or path.
    ///
    /// # Errors
    /// Where it is not found or does not load.
    pub fn find(name: &str) -> Result<Self> {
        Self::open(&find(name)?)
    }

    /// Loads a file.
    ///
    /// # Errors
    /// One line that names the file and what does not fit.
    pub fn open(path: &Path) -> Result<Self> {
        let inspected = inspect(path)?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = loaded.get(&inspected.path) {
            return Ok(plugin.clone());
        }
        let plugin = load(inspected)?;
        loaded.insert(plugin.path.clone(), plugin.clone());
        Ok(plugin)
    }

    /// File name, as it is shown in messages.
    pub fn file_name(&self) -> String {
        file_name(&self.path)
    }

    /// The plugin's constructors.
    pub fn root(&self) -> RootRef {
        self.root
    }

    /// Refuses a plugin of another kind.
    ///
    /// # Errors
    /// Where the kind is not `expected`.
    pub fn expect_kind(&self, expected: Kind) -> Result<()> {
        let kind = self.manifest.kind;
        ensure!(
            kind == expected,
            "plugin '{}' is {}, not {}: {}",
            self.file_name(),
            kind.with_article(),
            expected.with_article(),
            remedy(kind)
        );
        Ok(())
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin")
            .field("path", &self.path)
            .field("manifest", &self.manifest)
            .finish_non_exhaustive()
    }
}

fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Classifier => "give it with --classifier",
        Kind::Purifier => "give it with --purifier",
        Kind::Attack => "give it with --attack",
        Kind::ThreatModel => "give it with --threat-model",
    }
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

fn load(inspected: Inspected) -> Result<Plugin> {
    let Inspected { path, manifest, sha256 } = inspected;
    let file = file_name(&path);
    check_manifest(&file, &manifest)?;
    let root = fenv::kept(|| open_root(&path)).with_context(|| format!("plugin '{file}' does not load"))?;
    let described =
        fenv::kept(|| root.describe()().into_result()).map_err(|e| anyhow!(e).context(format!("plugin '{file}'")))?;
    let description =
        serde_json::from_str(&described).with_context(|| format!("plugin '{file}' describes itself badly"))?;
    tracing::info!(
        "loaded {} '{}' {} from {}",
        manifest.kind,
        manifest.name,
        manifest.version,
        path.display()
    );
    Ok(Plugin {
        path,
        manifest,
        description,
        sha256,
        root,
    })
}

fn check_manifest(file: &str, manifest: &Manifest) -> Result<()> {
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

fn open_root(path: &Path) -> Result<RootRef> {
    // SAFETY: the file was checked to be a whole shared library with a manifest of this contract. Its initialisers
    // run here: loading a plugin is trusting its code, not its results.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }?;
    // Leaked at once: objects and function pointers of the plugin live as long as the process.
    let library: &'static Library = Box::leak(Box::new(library));
    // SAFETY: the symbol is only used as an address.
    let symbol = unsafe { library.get::<*const c_void>(HEADER_SYMBOL.as_bytes()) };
    let name = HEADER_SYMBOL.trim_end_matches('\0');
    let symbol =
        symbol.map_err(|_| anyhow!("the symbol '{name}' is missing: export it with advae-sdk's export_plugin!"))?;
    // SAFETY: the symbol is the header of a library that is never unloaded.
    unsafe { root_from_header(*symbol) }.map_err(|e| anyhow!("{e}: rebuild it with advae-sdk {CONTRACT_MAJOR}.x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(contract: &str, panic: &str) -> Manifest {
        Manifest {
            contract: contract.into(),
            kind: Kind::Attack,
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
        let error = check_manifest("pgd.so", &manifest("2.0.0", "unwind")).unwrap_err();
        let line = "plugin 'pgd.so' needs contract 2.0, this host speaks 1.2: rebuild it with advae-sdk 1.x";
        assert_eq!(error.to_string(), line);
        assert!(check_manifest("pgd.so", &manifest("1.7.0", "unwind")).is_ok());
        assert!(check_manifest("pgd.so", &manifest("", "unwind")).is_err());
    }

    #[test]
    fn aborting_on_panic_is_refused() {
        let error = check_manifest("pgd.so", &manifest("1.0.0", "abort")).unwrap_err();
        assert!(error.to_string().contains("panic=abort"));
    }
}
