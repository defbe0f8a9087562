//! Loading: file checks, manifest, dlopen of the checked bytes, layout check, description.

use super::elf::{Inspected, inspect_bytes, names_its_folder};
use super::fenv;
use super::find::find;
use super::manifest::{expect_kind, file_name};
use super::sealed::Sealed;
use crate::terminal::console::printable;
use crate::terminal::waiting::Waiting;
use advae_abi::info::{Description, Kind, Manifest};
use advae_abi::load::{HEADER_SYMBOL, root_from_header};
use advae_abi::{CONTRACT_MAJOR, RootRef};
use anyhow::{Context, Result, anyhow, ensure};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::collections::HashMap;
use std::ffi::{CStr, OsStr, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// A loaded plugin. Loading is once a file and for good: its code is never unloaded, and what is written to the file later
/// changes nothing in this process.
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

/// What is loaded, by the names it was asked for and by canonical path.
static LOADED: LazyLock<Mutex<HashMap<PathBuf, Plugin>>> = LazyLock::new(Mutex::default);

/// Libraries under the path they were opened by, and the plugin's file name.
static OPENED: Mutex<Vec<(PathBuf, String)>> = Mutex::new(vec![]);

impl Plugin {
    /// Loads the plugin of that name or path, if its manifest says that it is of this kind.
    ///
    /// # Errors
    /// Where it is not found, is of another kind (nothing of it is executed then) or does not load.
    pub fn find(name: &str, kind: Kind) -> Result<Self> {
        Self::named(name, |inspected| inspected.expect_kind(kind))
    }

    /// Loads the plugin of a name that stands in a record, if it is the file that the record was made with.
    ///
    /// # Errors
    /// Where the name is a path, or the file has another hash or kind. Nothing of the file is executed then.
    pub fn find_recorded(name: &str, kind: Kind, sha256: &str) -> Result<Self> {
        ensure!(
            !name.contains('/'),
            "the {kind} is recorded as '{name}': a path out of a file is never loaded: name the {kind} on the command line"
        );
        Self::named(name, |inspected| {
            inspected.expect_kind(kind)?;
            ensure!(
                inspected.sha256 == sha256,
                "{kind} '{name}' is another file than the recorded one: '{}' has the sha256 {}, recorded is {}: \
                 name the {kind} on the command line if this one is meant",
                inspected.path.display(),
                inspected.sha256,
                sha256.escape_debug()
            );
            Ok(())
        })
    }

    /// Loads the plugin of that name or path, whatever its kind.
    ///
    /// # Errors
    /// Where it is not found or does not load.
    pub fn find_any(name: &str) -> Result<Self> {
        Self::named(name, |_| Ok(()))
    }

    /// Loads a file.
    ///
    /// # Errors
    /// One line that names the file and what does not fit.
    pub fn open(path: &Path) -> Result<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        open(&mut loaded, path, |_| Ok(()))
    }

    /// A name stands for one file as long as the process lives, also where a better one appears later.
    fn named(name: &str, accept: impl FnOnce(&Inspected) -> Result<()>) -> Result<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plugin) = loaded.get(Path::new(name)) {
            accept(&plugin.inspected())?;
            return Ok(plugin.clone());
        }
        let plugin = open(&mut loaded, &find(name)?, accept)?;
        loaded.insert(name.into(), plugin.clone());
        Ok(plugin)
    }

    fn inspected(&self) -> Inspected {
        Inspected {
            path: self.path.clone(),
            manifest: self.manifest.clone(),
            sha256: self.sha256.clone(),
        }
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
        expect_kind(&self.path, &self.manifest, expected)
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

fn open(
    loaded: &mut HashMap<PathBuf, Plugin>,
    path: &Path,
    accept: impl FnOnce(&Inspected) -> Result<()>,
) -> Result<Plugin> {
    let canonical = path.canonicalize();
    if let Some(plugin) = canonical.ok().and_then(|path| loaded.get(&path)) {
        accept(&plugin.inspected())?;
        return Ok(plugin.clone());
    }
    let (inspected, bytes) = inspect_bytes(path)?;
    accept(&inspected)?;
    inspected.check()?;
    let plugin = load(inspected, &bytes)?;
    loaded.insert(plugin.path.clone(), plugin.clone());
    Ok(plugin)
}

fn load(inspected: Inspected, bytes: &[u8]) -> Result<Plugin> {
    let Inspected { path, manifest, sha256 } = inspected;
    let file = file_name(&path);
    let _waiting = Waiting::for_call(&format!("plugin '{}'", printable(&file)), "load");
    let root = fenv::kept(|| open_root(&path, bytes)).with_context(|| format!("plugin '{file}' does not load"))?;
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

fn open_root(path: &Path, bytes: &[u8]) -> Result<RootRef> {
    // Leaked at once: objects and function pointers of the plugin live as long as the process.
    let library: &'static Library = Box::leak(Box::new(open_library(path, bytes)?));
    // SAFETY: the symbol is only used as an address.
    let symbol = unsafe { library.get::<*const c_void>(HEADER_SYMBOL.as_bytes()) };
    let name = HEADER_SYMBOL.trim_end_matches('\0');
    let symbol =
        symbol.map_err(|_| anyhow!("the symbol '{name}' is missing: export it with advae-sdk's export_plugin!"))?;
    // SAFETY: the symbol is the header of a library that is never unloaded.
    unsafe { root_from_header(*symbol) }.map_err(|e| anyhow!("{e}: rebuild it with advae-sdk {CONTRACT_MAJOR}.x"))
}

/// Opens the bytes that were checked and hashed, not the file, which may have changed since or may change.
fn open_library(path: &Path, bytes: &[u8]) -> Result<Library> {
    let sealed = match Sealed::new(bytes) {
        // Leaked: the linker and backtraces know the library by this path.
        Ok(sealed) => &*Box::leak(Box::new(sealed)),
        Err(error) => {
            let shown = path.display();
            tracing::warn!(
                "'{shown}' is opened in place, as there are no sealed files here ({error}): leave it as it is"
            );
            return dlopen(path, path);
        }
    };
    if !names_its_folder(bytes) {
        return dlopen(sealed.path(), path);
    }
    // The linker takes $ORIGIN for the folder of the path that it is given.
    let beside = path.with_file_name(format!(".{}.{}", file_name(path), std::process::id()));
    match std::os::unix::fs::symlink(sealed.path(), &beside) {
        Ok(()) => {
            let library = dlopen(&beside, path);
            if let Err(error) = std::fs::remove_file(&beside) {
                tracing::warn!("cannot remove the link '{}': {error}", beside.display());
            }
            library
        }
        Err(error) => {
            let shown = path.display();
            tracing::warn!(
                "'{shown}' looks for libraries beside itself and is opened in place ({error}): leave it as it is"
            );
            dlopen(path, path)
        }
    }
}

fn dlopen(opened: &Path, plugin: &Path) -> Result<Library> {
    let mut all = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    all.push((opened.into(), file_name(plugin)));
    drop(all);
    // SAFETY: the file was checked to be a whole shared library with a manifest of this contract. Its initialisers
    // run here: loading a plugin is trusting its code, not its results.
    let library = unsafe { Library::open(Some(opened), RTLD_NOW | RTLD_LOCAL) };
    library.map_err(|error| {
        let text = error.to_string();
        anyhow!(text.replace(&opened.display().to_string(), &file_name(plugin)))
    })
}

/// File name of the plugin whose code lies at this address, if it is a plugin's.
pub fn owner(address: usize) -> Option<String> {
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: the struct is written where the answer is not 0; the address is only compared.
    if unsafe { libc::dladdr(std::ptr::without_provenance(address), found.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: it was written.
    let found = unsafe { found.assume_init() };
    if found.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the linker's own name of a library that is loaded.
    let library = unsafe { CStr::from_ptr(found.dli_fname) };
    let library = Path::new(OsStr::from_bytes(library.to_bytes()));
    // Whoever holds the lock may be the thread that asks, but then it is not inside a plugin.
    let all = OPENED.try_lock().ok()?;
    all.iter()
        .find(|(opened, _)| opened == library)
        .map(|(_, file)| file.clone())
}
