//! Where plugins are looked for: a path, else `$ADVAE_PLUGIN_PATH`, else beside the executable.

use super::elf::{Inspected, inspect};
use crate::terminal::console;
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Variable that lists plugin folders, separated by colons.
const PATH_VARIABLE: &str = "ADVAE_PLUGIN_PATH";

/// A file that looks like a plugin, and whether it is one.
#[derive(Debug)]
pub struct Found {
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself, or why it is none.
    pub inspected: Result<Inspected>,
}

/// Folders of `$ADVAE_PLUGIN_PATH`. What is none is told.
pub fn path_dirs() -> Vec<PathBuf> {
    let Some(list) = std::env::var_os(PATH_VARIABLE) else {
        return vec![];
    };
    let dirs: Vec<PathBuf> = std::env::split_paths(&list)
        .filter(|dir| !dir.as_os_str().is_empty())
        .collect();
    for dir in dirs.iter().filter(|dir| !dir.is_dir()) {
        let dir = dir.display();
        tell_once(format!(
            "warning: '{dir}' of ${PATH_VARIABLE} is no folder: give folders, with ':' between them"
        ));
    }
    dirs
}

/// Says something that every search would find out anew.
fn tell_once(text: String) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if !told.contains(&text) {
        console::say(&text);
        told.insert(text);
    }
}

/// All folders that are searched, in order.
pub fn search_dirs() -> Vec<PathBuf> {
    let mut dirs = path_dirs();
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf));
    dirs.extend(beside);
    dirs
}

/// The file of the plugin `name`: a path, which holds a `/`, or a name: `advae.so`, `libadvae.so` or `advae`. A name never
/// means a file of the current folder, which may have come with somebody's data.
///
/// # Errors
/// Where it is nowhere; says where was looked.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    if name.contains('/') {
        if path.is_file() {
            return Ok(path.to_path_buf());
        }
        let library = (path.file_name()).map(|file| path.with_file_name(format!("lib{}", file.display())));
        let hint = library
            .filter(|path| path.is_file())
            .map(|path| format!(": did you mean '{}'?", path.display()));
        bail!(
            "no plugin file '{name}'{}",
            hint.unwrap_or_else(|| ": give the path of a shared library, or a plugin's name".into())
        );
    }
    find_in(name, &search_dirs(), Path::new("."))
}

fn find_in(name: &str, dirs: &[PathBuf], current: &Path) -> Result<PathBuf> {
    let stem = stem(name);
    let candidates = [format!("lib{stem}.so"), format!("{stem}.so")];
    let mut files = dirs
        .iter()
        .flat_map(|dir| candidates.iter().map(move |file| dir.join(file)));
    if let Some(path) = files.find(|path| path.is_file()) {
        if let Some(hidden) = files.find(|other| other.is_file() && !same_file(&path, other)) {
            let (path, hidden) = (path.display(), hidden.display());
            tell_once(format!("warning: '{name}' is '{path}', which hides '{hidden}'"));
        }
        return Ok(path);
    }
    // `current` is written as it is to be typed.
    let mut here = [name, &candidates[0], &candidates[1]]
        .into_iter()
        .map(|file| current.join(file));
    if let Some(path) = here.find(|path| path.is_file()) {
        let path = path.display();
        bail!(
            "no plugin '{name}' in $ADVAE_PLUGIN_PATH or beside the executable: for the file of the current folder write '{path}'"
        );
    }
    let looked: Vec<String> = dirs.iter().map(|dir| format!("'{}'", dir.display())).collect();
    bail!(
        "no plugin '{name}': looked for {} and {} in {}: {}give a path, or set {PATH_VARIABLE}; `advae-host plugins` lists \
         what is there",
        candidates[0],
        candidates[1],
        looked.join(", "),
        nearest(stem, dirs).map_or_else(String::new, |near| format!("did you mean '{near}.so'? "))
    )
}

fn same_file(a: &Path, b: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().ok();
    canonical(a) == canonical(b)
}

/// The plugin whose name is nearly `name`.
fn nearest(name: &str, dirs: &[PathBuf]) -> Option<String> {
    let files = dirs.iter().flat_map(|dir| libraries(dir));
    let names = files.filter_map(|path| Some(stem(&path.file_name()?.to_string_lossy()).to_string()));
    let near = names.map(|other| (strsim::osa_distance(&other, name), other));
    // Of a short name two letters are most of it.
    near.filter(|(distance, other)| *distance <= 2 && 2 * distance < other.chars().count().max(3))
        .min()
        .map(|(_, other)| other)
}

/// Every plugin file of all searched folders; of several with one name, the first.
pub fn scan() -> Vec<Found> {
    scan_dirs(&search_dirs())
}

/// Every plugin file of these folders; of several with one name, the first.
pub fn scan_dirs(dirs: &[PathBuf]) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    let mut found = vec![];
    for path in dirs.iter().flat_map(|dir| libraries(dir)) {
        let name = path.file_name().map(|name| stem(&name.to_string_lossy()).to_string());
        if name.is_some_and(|name| seen.insert(name)) {
            found.push(Found {
                inspected: inspect(&path),
                path,
            });
        }
    }
    found
}

fn libraries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return vec![];
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut files: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "so")).collect();
    files.sort();
    files
}

/// `libadvae.so`, `advae.so` and `advae` are one name.
fn stem(name: &str) -> &str {
    let name = name.strip_suffix(".so").unwrap_or(name);
    name.strip_prefix("lib").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_find_one_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libadvae.so"), "").unwrap();
        let dirs = [dir.path().to_path_buf()];
        for name in ["advae", "advae.so", "libadvae.so"] {
            assert_eq!(
                find_in(name, &dirs, Path::new("/nowhere")).unwrap(),
                dir.path().join("libadvae.so")
            );
        }
    }

    #[test]
    fn a_near_name_is_suggested() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libadvae.so"), "").unwrap();
        let dirs = [dir.path().to_path_buf()];
        let error = find_in("adva.so", &dirs, Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("did you mean 'advae.so'?"), "{error}");
    }

    #[test]
    fn a_name_never_means_a_file_of_the_current_folder() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["fgsm", "libpgd.so"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        for (name, file) in [("fgsm", "fgsm"), ("pgd", "libpgd.so"), ("libpgd.so", "libpgd.so")] {
            let error = find_in(name, &[], dir.path()).unwrap_err().to_string();
            let path = dir.path().join(file);
            assert!(error.contains(&format!("write '{}'", path.display())), "{error}");
        }
    }

    #[test]
    fn a_path_without_lib_is_put_right() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("libadvae.so"), "").unwrap();
        let error = find(&dir.path().join("advae.so").to_string_lossy())
            .unwrap_err()
            .to_string();
        let library = dir.path().join("libadvae.so");
        assert!(
            error.contains(&format!("did you mean '{}'?", library.display())),
            "{error}"
        );
    }

    #[test]
    fn the_error_says_where_was_looked() {
        let dirs = [PathBuf::from("/a"), PathBuf::from("/b")];
        let error = find_in("nowhere", &dirs, Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("libnowhere.so") && error.contains("'/a', '/b'"),
            "{error}"
        );
    }

    #[test]
    fn the_first_folder_wins_and_broken_files_are_kept() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(one.path().join("libpgd.so"), "text").unwrap();
        std::fs::write(two.path().join("pgd.so"), "text").unwrap();
        let found = scan_dirs(&[one.path().to_path_buf(), two.path().to_path_buf()]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, one.path().join("libpgd.so"));
        assert!(found[0].inspected.is_err());
    }
}
