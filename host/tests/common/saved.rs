//! Files of saved images, and changed copies of them.
#![allow(dead_code)]

use advae_data::npz::Saved;
use std::path::{Path, PathBuf};

/// The file of a folder whose name has this in it.
pub fn file(dir: &Path, part: &str) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut named: Vec<PathBuf> = files.filter(|path| path.to_str().unwrap().contains(part)).collect();
    assert_eq!(named.len(), 1, "'{part}': {named:?}");
    named.remove(0)
}

/// A changed copy under another name in the same folder.
pub fn changed(file: &Path, name: &str, change: impl FnOnce(&mut Saved)) -> PathBuf {
    let (mut saved, path) = (Saved::read(file).unwrap(), file.with_file_name(name));
    change(&mut saved);
    saved.write(&path).unwrap();
    path
}

/// Keeps these rows, in this order.
pub fn keep(saved: &mut Saved, rows: &[usize]) {
    let len: usize = saved.shape.iter().product();
    saved.images = images(&saved.images, rows, len);
    saved.originals = saved.originals.as_deref().map(|all| images(all, rows, len));
    saved.labels = some(&saved.labels, rows);
    saved.ids = some(&saved.ids, rows);
    saved.targets = saved.targets.as_deref().map(|all| some(all, rows));
    saved.found = saved.found.as_deref().map(|all| some(all, rows));
}

fn images(all: &[f32], rows: &[usize], len: usize) -> Vec<f32> {
    let image = |row: &usize| &all[row * len..(row + 1) * len];
    rows.iter().flat_map(image).copied().collect()
}

fn some<T: Copy>(all: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|row| all[*row]).collect()
}
