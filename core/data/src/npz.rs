//! Adversarial images in a file that `numpy.load` reads, and that can be scored again.
//!
//! | array | type | shape | what |
//! |---|---|---|---|
//! | `x_adv` | float32 | `[N, C, H, W]` | the adversarial images |
//! | `x` | float32 | `[N, C, H, W]` | the clean images, optional |
//! | `y` | int64 | `[N]` | the true labels |
//! | `ids` | int64 | `[N]` | index of each sample in the original file |
//! | `meta` | uint8 | `[bytes]` | how they came to be, JSON in UTF-8, optional: `json.loads(bytes(f["meta"]))` |

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{ArrayD, ArrayView1, ArrayView2, ArrayView4};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpzError, ReadableElement};

use crate::DataError;

/// Adversarial images and what is needed to score them again.
///
/// Nothing is promised of the values: an attack may have left [0, 1], gone over its budget or made NaN, and a file may
/// come from anywhere. Who scores them measures them.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    /// Adversarial images, row-major `[N, C, H, W]`.
    pub images: Vec<f32>,
    /// Shape of one image: `[C, H, W]`.
    pub shape: [usize; 3],
    /// True labels, `[N]`.
    pub labels: Vec<u32>,
    /// Index of each sample in the original file, `[N]`.
    pub ids: Vec<u64>,
    /// The clean images in [0, 1], row-major `[N, C, H, W]`.
    pub originals: Option<Vec<f32>>,
    /// How they came to be, as JSON; empty where the file says nothing.
    pub meta: String,
}

impl Saved {
    /// Writes the file whole or not at all: to a temporary neighbour first, which then takes the name. A file that was
    /// there before is replaced.
    ///
    /// # Errors
    /// [`DataError::Invalid`] if the lengths disagree or an id is not below 2^63, [`DataError::Io`] and
    /// [`DataError::Npz`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        self.check(path)?;
        write_whole(path, |writer| self.write_arrays(writer))
    }

    /// Reads a file written by [`write`](Self::write) or by `numpy.savez` (compressed or not).
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::Npz`] (no archive, truncated, damaged), [`DataError::NpzMissing`],
    /// [`DataError::NpzType`], [`DataError::NpzShape`] and [`DataError::NpzValue`].
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let mut archive = Archive::open(path)?;
        let x_adv = archive.array::<f32>("x_adv", "float32")?;
        let &[n, c, h, w] = x_adv.shape() else {
            return Err(archive.shape_error("x_adv", &x_adv, "[N, C, H, W]".to_owned()));
        };
        let y = archive.shaped::<i64>("y", "int64", &[n])?;
        let ids = archive.shaped::<i64>("ids", "int64", &[n])?;
        let has_x = archive.has("x");
        let originals = has_x
            .then(|| archive.shaped::<f32>("x", "float32", &[n, c, h, w]))
            .transpose()?;
        let has_meta = archive.has("meta");
        let meta = has_meta.then(|| archive.array::<u8>("meta", "uint8")).transpose()?;
        Ok(Self {
            images: row_major(x_adv),
            shape: [c, h, w],
            labels: archive.converted("y", y, "a label in 0..2^32")?,
            ids: archive.converted("ids", ids, "an id of 0 or more")?,
            originals,
            meta: archive.text("meta", meta.map(row_major).unwrap_or_default())?,
        })
    }

    fn check(&self, path: &Path) -> Result<(), DataError> {
        let n = self.labels.len();
        let [c, h, w] = self.shape;
        let values = [n, c, h, w].into_iter().fold(1, usize::saturating_mul);
        let originals = self.originals.as_ref().map_or(values, Vec::len);
        let problem = if self.images.len() != values {
            format!(
                "{} pixel values for {n} labels and images of {c}x{h}x{w}, expected {values}",
                self.images.len()
            )
        } else if originals != values {
            format!("{originals} pixel values of clean images, expected {values}")
        } else if self.ids.len() != n {
            format!("{} ids for {n} labels", self.ids.len())
        } else if let Some(id) = self.ids.iter().find(|&&id| i64::try_from(id).is_err()) {
            format!("the id {id} does not fit, expected one below 2^63")
        } else {
            return Ok(());
        };
        Err(DataError::Invalid {
            name: path.display().to_string(),
            problem,
        })
    }

    fn write_arrays(&self, writer: BufWriter<File>) -> Result<BufWriter<File>, BoxedError> {
        let n = self.labels.len();
        let [c, h, w] = self.shape;
        let y: Vec<i64> = self.labels.iter().map(|&label| i64::from(label)).collect();
        let ids: Vec<i64> = self.ids.iter().map(|&id| id as i64).collect(); // checked: below 2^63
        let images = |values| ArrayView4::from_shape((n, c, h, w), values);
        let mut npz = NpzWriter::new_compressed(writer);
        npz.add_array("x_adv", &images(&self.images)?)?;
        if let Some(originals) = &self.originals {
            npz.add_array("x", &images(originals)?)?;
        }
        npz.add_array("y", &ArrayView1::from(&y))?;
        npz.add_array("ids", &ArrayView1::from(&ids))?;
        npz.add_array("meta", &ArrayView1::from(self.meta.as_bytes()))?;
        Ok(npz.finish()?)
    }
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Logits of the clean and the adversarial images of a file, for comparison with another implementation.
///
/// | array | type | shape | what |
/// |---|---|---|---|
/// | `logits_clean` | float32 | `[N, K]` | logits of `x` |
/// | `logits_adv` | float32 | `[N, K]` | logits of `x_adv` |
/// | `ids` | int64 | `[N]` | index of each sample in the original file |
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// Index of each sample in the original file, `[N]`.
    pub ids: Vec<u64>,
    /// Logits of the clean images, row-major `[N, K]`.
    pub clean: Vec<f32>,
    /// Logits of the adversarial images, row-major `[N, K]`.
    pub adversarial: Vec<f32>,
}

impl Logits {
    /// Writes the file whole or not at all.
    ///
    /// # Errors
    /// [`DataError::Io`] and [`DataError::Npz`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let n = self.ids.len();
        let classes = self.clean.len() / n.max(1);
        let ids: Vec<i64> = self.ids.iter().map(|&id| id as i64).collect();
        write_whole(path, |writer| {
            let mut npz = NpzWriter::new_compressed(writer);
            npz.add_array("logits_clean", &ArrayView2::from_shape((n, classes), &self.clean)?)?;
            npz.add_array("logits_adv", &ArrayView2::from_shape((n, classes), &self.adversarial)?)?;
            npz.add_array("ids", &ArrayView1::from(&ids))?;
            Ok(npz.finish()?)
        })
    }
}

/// Writes to a temporary neighbour, which then takes the name; errors name `path`, the file that was asked for.
fn write_whole(
    path: &Path,
    arrays: impl FnOnce(BufWriter<File>) -> Result<BufWriter<File>, BoxedError>,
) -> Result<(), DataError> {
    let temporary = neighbour(path);
    let write = || {
        let file = File::create(&temporary).map_err(|error| DataError::io("write", path, error))?;
        let buffered = arrays(BufWriter::new(file)).map_err(|reason| DataError::Npz {
            action: "write",
            path: path.to_path_buf(),
            reason,
            remedy: "check the free space and the rights of its folder",
        })?;
        let file = buffered
            .into_inner()
            .map_err(|error| DataError::io("write", path, error.into_error()))?;
        file.sync_all().map_err(|error| DataError::io("write", path, error))?;
        fs::rename(&temporary, path).map_err(|error| DataError::io("write", path, error))
    };
    let written = write();
    if written.is_err() {
        // Best effort: the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name in the same folder, so that renaming it to `path` is atomic, and one that no other writer takes.
fn neighbour(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{name}.{}-{count}.tmp", process::id()))
}

/// An open archive that knows its path, for the errors.
struct Archive {
    path: PathBuf,
    npz: NpzReader<File>,
    names: Vec<String>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|error| DataError::io("open", path, error))?;
        let opened = NpzReader::new(file).and_then(|mut npz| Ok((npz.names()?, npz)));
        let (names, npz) = opened.map_err(|reason| unreadable(path, reason))?;
        Ok(Self {
            path: path.to_path_buf(),
            npz,
            names,
        })
    }

    fn has(&self, array: &str) -> bool {
        self.names.iter().any(|name| name == array)
    }

    fn array<T: ReadableElement>(
        &mut self,
        array: &'static str,
        expected: &'static str,
    ) -> Result<ArrayD<T>, DataError> {
        if !self.has(array) {
            let found = if self.names.is_empty() {
                "none".to_owned()
            } else {
                self.names.join(", ")
            };
            return Err(DataError::NpzMissing {
                path: self.path.clone(),
                array,
                found,
            });
        }
        self.npz.by_name(array).map_err(|error| match error {
            ReadNpzError::Npy(ReadNpyError::WrongDescriptor(found)) => DataError::NpzType {
                path: self.path.clone(),
                array,
                found: found.to_string(),
                expected,
            },
            error => unreadable(&self.path, error),
        })
    }

    /// The values, row-major, of an array that must have this shape.
    fn shaped<T: ReadableElement + Copy>(
        &mut self,
        array: &'static str,
        expected: &'static str,
        shape: &[usize],
    ) -> Result<Vec<T>, DataError> {
        let values = self.array::<T>(array, expected)?;
        if values.shape() != shape {
            return Err(self.shape_error(array, &values, format!("{shape:?}")));
        }
        Ok(row_major(values))
    }

    fn converted<T: TryFrom<i64>>(
        &self,
        array: &'static str,
        values: Vec<i64>,
        expected: &'static str,
    ) -> Result<Vec<T>, DataError> {
        let convert = |(index, value): (usize, i64)| {
            T::try_from(value).map_err(|_| DataError::NpzValue {
                path: self.path.clone(),
                array,
                index,
                found: value.to_string(),
                expected,
            })
        };
        values.into_iter().enumerate().map(convert).collect()
    }

    fn text(&self, array: &'static str, bytes: Vec<u8>) -> Result<String, DataError> {
        String::from_utf8(bytes).map_err(|error| {
            let index = error.utf8_error().valid_up_to();
            let found = format!("{:#04x}", error.as_bytes()[index]);
            DataError::NpzValue {
                path: self.path.clone(),
                array,
                index,
                found,
                expected: "text in UTF-8",
            }
        })
    }

    fn shape_error<T>(&self, array: &'static str, found: &ArrayD<T>, expected: String) -> DataError {
        DataError::NpzShape {
            path: self.path.clone(),
            array,
            found: found.shape().to_vec(),
            expected,
        }
    }
}

fn unreadable(path: &Path, reason: ReadNpzError) -> DataError {
    DataError::Npz {
        action: "read",
        path: path.to_path_buf(),
        reason: reason.into(),
        remedy: "it is no npz file, or cut short or damaged: write or copy it again",
    }
}

/// numpy may have saved it in Fortran's order.
fn row_major<T: Copy>(array: ArrayD<T>) -> Vec<T> {
    if array.is_standard_layout() {
        array.into_raw_vec_and_offset().0
    } else {
        array.iter().copied().collect()
    }
}
