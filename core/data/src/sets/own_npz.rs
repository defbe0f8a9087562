//! A user's own images in an npz file.
//!
//! | array | type | shape | what |
//! |---|---|---|---|
//! | `images` | uint8 in 0..=255 or float32 in [0, 1] | `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]` | the images |
//! | `labels` | int64, int32 or uint8 | `[N]` | their classes, from 0 on |
//! | `ids` | int64 | `[N]` | numbers that name the samples, optional, every one once: their positions if absent |
//!
//! Where the second extent is 1 or 3 it is taken for the channels, else the fourth if that is 1 or 3.

use std::path::Path;

use ndarray::{ArrayD, Axis};
use ndarray_npy::ReadableElement;

use crate::npz::{Archive, row_major};
use crate::{DataError, Dataset};

/// Classes at the most.
const MOST_CLASSES: u32 = 1 << 20;

/// The images of such a file. There are as many classes as the largest label needs, and [`Dataset::open_classes`] says so.
///
/// # Errors
/// [`DataError::Io`], [`DataError::Npz`] (no archive, truncated, damaged), [`DataError::NpzType`], [`DataError::NpzShape`],
/// [`DataError::NpzLength`], [`DataError::NpzValue`], [`DataError::Unfit`] where an array is missing, and [`DataError::Invalid`] for
/// pixels outside [0, 1].
pub(crate) fn load(name: &str, path: &Path) -> Result<Dataset, DataError> {
    let mut archive = Archive::open(path)?;
    if !["images", "labels"].iter().all(|array| archive.has(array)) {
        return Err(lacking(path, &archive));
    }
    let images = match of_type::<u8>(&mut archive, "images", "uint8")? {
        Some(bytes) => bytes.mapv(|byte| f32::from(byte) / 255.0),
        None => archive.array::<f32>("images", "float32")?,
    };
    let images = channels_first(&archive, images)?;
    let &[n, c, h, w] = images.shape() else {
        return Err(archive.shape_error("images", &images, "[N, C, H, W]".to_owned()));
    };
    let labels = labels(&mut archive)?;
    if labels.shape() != [n] {
        return Err(archive.shape_error("labels", &labels, format!("[{n}]")));
    }
    let labels = classes(path, row_major(labels))?;
    let ids = archive.optional("ids", |archive| {
        let ids = archive.shaped::<i64>("ids", "int64", &[n])?;
        archive.distinct("ids", archive.converted("ids", ids, "an id of 0 or more")?)
    })?;
    let classes = labels.iter().max().map_or(0, |&largest| largest as usize + 1);
    let ids = ids.unwrap_or_else(|| (0..n as u64).collect());
    let dataset = Dataset::new(name, row_major(images), labels, ids, [c, h, w], classes)?;
    Ok(Dataset {
        open_classes: true,
        ..dataset
    })
}

/// Labels as classes: a number that is none would take memory for all classes below it.
fn classes(path: &Path, labels: Vec<i64>) -> Result<Vec<u32>, DataError> {
    let convert = |(index, &label): (usize, &i64)| {
        let class = u32::try_from(label).ok().filter(|&class| class < MOST_CLASSES);
        class.ok_or_else(|| DataError::NpzValue {
            path: path.to_path_buf(),
            array: "labels",
            index,
            found: label.to_string(),
            expected: "a class from 0 on, below 2^20",
        })
    };
    labels.iter().enumerate().map(convert).collect()
}

fn lacking(path: &Path, archive: &Archive) -> DataError {
    let remedy = match archive.has("x_adv") {
        true => "it holds adversarial images: measure them with advae-host score",
        false => "save it with numpy.savez(path, images=..., labels=...)",
    };
    let found = match archive.names.is_empty() {
        true => "no arrays".to_owned(),
        false => format!("the arrays {}", archive.names.join(", ")),
    };
    DataError::unfit(
        format!("'{}'", path.display()),
        format!("has {found}"),
        "'images' and 'labels'",
        remedy,
    )
}

/// The array, if its elements are of that type.
fn of_type<T: ReadableElement>(
    archive: &mut Archive,
    array: &'static str,
    element: &'static str,
) -> Result<Option<ArrayD<T>>, DataError> {
    match archive.array::<T>(array, element) {
        Err(DataError::NpzType { .. }) => Ok(None),
        read => read.map(Some),
    }
}

fn labels(archive: &mut Archive) -> Result<ArrayD<i64>, DataError> {
    if let Some(bytes) = of_type::<u8>(archive, "labels", "uint8")? {
        return Ok(bytes.mapv(i64::from));
    }
    if let Some(words) = of_type::<i32>(archive, "labels", "int32")? {
        return Ok(words.mapv(i64::from));
    }
    archive.array::<i64>("labels", "int64")
}

/// To `[N, C, H, W]`, each 1 or more.
fn channels_first(archive: &Archive, images: ArrayD<f32>) -> Result<ArrayD<f32>, DataError> {
    let expected = || "[N, C, H, W], [N, H, W, C] or [N, H, W], each 1 or more".to_owned();
    if images.is_empty() {
        return Err(archive.shape_error("images", &images, expected()));
    }
    let images = match images.ndim() {
        3 => images.insert_axis(Axis(1)),
        4 => images,
        _ => return Err(archive.shape_error("images", &images, expected())),
    };
    let colours = |extent: usize| matches!(extent, 1 | 3);
    let (second, fourth) = (images.shape()[1], images.shape()[3]);
    if colours(second) || !colours(fourth) {
        return Ok(images);
    }
    Ok(images.permuted_axes(vec![0, 3, 1, 2]))
}
