//! Bytes that were read once and are handed on as a file that nobody can change.
//!
//! A plugin, or its weights, may be overwritten while the host runs: the bytes that are hashed would then not be those that are
//! used, and a mapped file that becomes shorter ends the process by SIGBUS. So the host reads a file once, and hands on a
//! sealed copy in memory under a path of `/proc`.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

/// A path of `/proc` that holds the same bytes as long as the process lives.
pub struct Sealed {
    path: PathBuf,
    /// What keeps the path alive.
    _file: File,
}

impl Sealed {
    /// A copy of `bytes` that can be neither written nor cut.
    ///
    /// # Errors
    /// Where the system has no such files, or no `/proc` to open them by.
    pub fn new(bytes: &[u8]) -> io::Result<Self> {
        let file = system::sealed(bytes)?;
        // By the process's number, not `self`: a debugger and a plugin's child processes can open it, too.
        let path = system::path(&file);
        File::open(&path)?;
        Ok(Self { path, _file: file })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Sealed copies by the name and the hash of what they were copied from.
static COPIES: LazyLock<Mutex<HashMap<(String, String), Sealed>>> = LazyLock::new(Mutex::default);

/// The path of a sealed copy of the file `name` with this hash; made once, and kept as long as the process lives.
///
/// # Errors
/// As for [`Sealed::new`].
pub fn copy(name: &str, sha256: &str, bytes: &[u8]) -> io::Result<String> {
    let mut copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (name.to_string(), sha256.to_string());
    if let Some(known) = copies.get(&key) {
        return Ok(known.path().display().to_string());
    }
    let sealed = Sealed::new(bytes)?;
    let path = sealed.path().display().to_string();
    copies.insert(key, sealed);
    Ok(path)
}

/// The path of a sealed copy, or the file's own where the system has none.
pub fn or_itself(path: &str, sha256: &str, bytes: &[u8]) -> String {
    copy(path, sha256, bytes).unwrap_or_else(|error| {
        tracing::warn!(
            "the plugin reads '{path}' itself, as there are no sealed files here ({error}): leave it as it is"
        );
        path.into()
    })
}

/// The text with the user's names of files in place of the paths of their copies.
pub fn original_names(text: &str) -> String {
    if !text.contains(system::PREFIX) {
        return text.into();
    }
    let copies = COPIES.lock().unwrap_or_else(PoisonError::into_inner);
    let mut names: Vec<(String, &String)> = copies
        .iter()
        .map(|((name, _), sealed)| (sealed.path().display().to_string(), name))
        .collect();
    // The longest first: `/fd/1` begins `/fd/12`, too.
    names.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
    names
        .into_iter()
        .fold(text.into(), |text, (path, name)| text.replace(&path, name))
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs::File;
    use std::io::{self, Write};
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::path::PathBuf;

    pub const PREFIX: &str = "/proc/";

    pub fn path(file: &File) -> PathBuf {
        format!("{PREFIX}{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
    }

    pub fn sealed(bytes: &[u8]) -> io::Result<File> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: the name ends in a zero byte.
        let fd = unsafe { libc::memfd_create(c"advae".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made, and nobody else has it.
        let mut file = unsafe { File::from_raw_fd(fd) };
        file.write_all(bytes)?;
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE;
        // SAFETY: seals a file of our own.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
            0 => Ok(file),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fs::File;
    use std::io;
    use std::path::PathBuf;

    pub const PREFIX: &str = "/dev/fd/";

    pub fn path(_: &File) -> PathBuf {
        PathBuf::new()
    }

    pub fn sealed(_: &[u8]) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_copy_can_be_read_and_not_changed() {
        let sealed = Sealed::new(b"weights").unwrap();
        assert_eq!(std::fs::read(sealed.path()).unwrap(), b"weights");
        assert!(std::fs::write(sealed.path(), b"others").is_err());
        assert_eq!(std::fs::read(sealed.path()).unwrap(), b"weights");
    }

    #[test]
    fn what_a_plugin_says_of_a_copy_names_the_users_file() {
        let paths: Vec<String> = (0..12)
            .map(|i| copy(&format!("w{i}.safetensors"), "00", b"w").unwrap())
            .collect();
        for (i, path) in paths.iter().enumerate() {
            assert_eq!(copy(&format!("w{i}.safetensors"), "00", b"w").unwrap(), *path);
            let said = original_names(&format!("weights '{path}': no tensor"));
            assert_eq!(said, format!("weights 'w{i}.safetensors': no tensor"));
        }
    }
}
