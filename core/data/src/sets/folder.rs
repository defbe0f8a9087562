//! A user's own images: `DIR/<class>/*.png`, `.jpg` or `.jpeg`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::pictures::Album;
use crate::{DataError, Dataset};

const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];
const LAYOUT: &str = "a folder a class with PNG or JPEG images in it";

/// The images below a folder. Its subfolders are the classes, numbered in the order of their sorted names; ids number the images, class
/// after class, sorted by file name. Names that begin with a point are passed over. All images must have one shape.
///
/// # Errors
/// [`DataError::Io`], and [`DataError::Unfit`] where there is no class, a class is empty, a file is no PNG or JPEG or does not decode,
/// or images differ in shape.
pub(crate) fn load(name: &str, folder: &Path) -> Result<Dataset, DataError> {
    let (classes, strays) = entries(folder)?
        .into_iter()
        .partition::<Vec<PathBuf>, _>(|path| path.is_dir());
    if let Some(stray) = strays.iter().find(|path| is_picture(path)) {
        return Err(DataError::unfit(
            format!("'{}'", stray.display()),
            "lies in no class's folder",
            LAYOUT,
            "move it into the folder of its class",
        ));
    }
    if classes.is_empty() {
        return Err(DataError::unfit(
            format!("'{}'", folder.display()),
            "has no subfolders",
            LAYOUT,
            "sort the images into folders named after their classes",
        ));
    }
    let mut album = Album::new(None);
    for (label, class) in classes.iter().enumerate() {
        add_class(&mut album, class, label as u32)?;
    }
    album.dataset(name, classes.len())
}

fn add_class(album: &mut Album, class: &Path, label: u32) -> Result<(), DataError> {
    let pictures = entries(class)?;
    if pictures.is_empty() {
        return Err(DataError::unfit(
            format!("'{}'", class.display()),
            "holds no images",
            "1 or more",
            "fill the class, or take its folder away",
        ));
    }
    for path in pictures {
        let at = || format!("'{}'", path.display());
        if !is_picture(&path) {
            return Err(DataError::unfit(
                at(),
                "is no image by its name",
                ".png, .jpg or .jpeg",
                "convert it, or take it away",
            ));
        }
        let bytes = fs::read(&path).map_err(|error| DataError::io("read", &path, error))?;
        album.add(at, &bytes, label)?;
    }
    Ok(())
}

/// What lies in a folder, sorted by name, without hidden files.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, DataError> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<Vec<_>>>()
    };
    let mut paths = read().map_err(|error| DataError::io("read", folder, error))?;
    let hidden = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
    };
    paths.retain(|path| !hidden(path));
    paths.sort();
    Ok(paths)
}

fn is_picture(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    path.is_file() && ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
}
