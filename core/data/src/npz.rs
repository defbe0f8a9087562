//! Adversarial images in a file that `numpy.load` reads, and that can be scored again.
//!
//! | array | type | shape | what |
//! |---|---|---|---|
//! | `x_adv` | float32 | `[N, C, H, W]` | the adversarial images |
//! | `x` | float32 | `[N, C, H, W]` | the clean images, optional |
//! | `y` | int64 | `[N]` | the true labels |
//! | `ids` | int64 | `[N]` | index of each sample in the original file, every one once |
//! | `targets` | int64 | `[N]` | the class each sample was to be taken for, optional: absent if the attack had none |
//! | `found` | bool | `[N]` | whether the attack found an adversarial image, optional: absent if it does not say |
//! | `meta` | uint8 | `[bytes]` | how they came to be, JSON in UTF-8, optional: `json.loads(bytes(f["meta"]))` |
//! | `sha256` | uint8 | `[32]` | [`Saved::sha256`] of all the others, optional: who changes an array leaves it out |

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use ndarray::{ArrayD, ArrayView1, ArrayView2, ArrayView4};
use ndarray_npy::npy::header::{Header, ReadHeaderError};
use ndarray_npy::{NpzWriter, ReadNpyError, ReadNpyExt, ReadNpzError, ReadableElement};
use sha2::{Digest, Sha256};
use zip::ZipArchive;
use zip::result::{ZipError, ZipResult};

use crate::DataError;
use crate::dataset::{hex, update};

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
    /// Index of each sample in the original file, `[N]`, every one once.
    pub ids: Vec<u64>,
    /// The clean images in [0, 1], row-major `[N, C, H, W]`.
    pub originals: Option<Vec<f32>>,
    /// The class each sample was to be taken for, `[N]`; none of an untargeted attack.
    pub targets: Option<Vec<u32>>,
    /// Whether the attack found an adversarial image, `[N]`; none if it does not say.
    pub found: Option<Vec<bool>>,
    /// How they came to be, as JSON; empty where the file says nothing.
    pub meta: String,
}

impl Saved {
    /// Writes the file whole or not at all: to a temporary neighbour first, which then takes the name. A file that was
    /// there before is replaced.
    ///
    /// # Errors
    /// [`DataError::Invalid`] if there is no sample, the lengths disagree, an id occurs twice or is not below 2^63,
    /// [`DataError::Io`] and [`DataError::Npz`] if the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        self.check(path)?;
        write_whole(path, |writer| self.write_arrays(writer))
    }

    /// Reads a file written by [`write`](Self::write) or by `numpy.savez` (compressed or not).
    ///
    /// # Errors
    /// [`DataError::Io`], [`DataError::Npz`] (no archive, truncated, damaged), [`DataError::NpzMissing`],
    /// [`DataError::NpzType`], [`DataError::NpzShape`], [`DataError::NpzLength`], [`DataError::NpzValue`], and
    /// [`DataError::NpzContent`] if the file has a checksum that is not that of its arrays.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let mut archive = Archive::open(path)?;
        let x_adv = archive.array::<f32>("x_adv", "float32")?;
        let &[n, c, h, w] = x_adv.shape() else {
            return Err(archive.shape_error("x_adv", &x_adv, "[N, C, H, W]".to_owned()));
        };
        if x_adv.is_empty() {
            return Err(archive.shape_error("x_adv", &x_adv, "[N, C, H, W], each 1 or more".to_owned()));
        }
        let y = archive.shaped::<i64>("y", "int64", &[n])?;
        let ids = archive.shaped::<i64>("ids", "int64", &[n])?;
        let originals = archive.optional("x", |a| a.shaped::<f32>("x", "float32", &[n, c, h, w]))?;
        let targets = archive.optional("targets", |a| a.shaped::<i64>("targets", "int64", &[n]))?;
        let found = archive.optional("found", |a| a.shaped::<bool>("found", "bool", &[n]))?;
        let meta = archive.optional("meta", |a| Ok(row_major(a.array::<u8>("meta", "uint8")?)))?;
        let sha256 = archive.optional("sha256", |a| a.shaped::<u8>("sha256", "uint8", &[32]))?;
        let saved = Self {
            images: row_major(x_adv),
            shape: [c, h, w],
            labels: archive.converted("y", y, LABEL)?,
            ids: archive.distinct("ids", archive.converted("ids", ids, "an id of 0 or more")?)?,
            originals,
            targets: targets
                .map(|targets| archive.converted("targets", targets, LABEL))
                .transpose()?,
            found,
            meta: archive.text("meta", meta.unwrap_or_default())?,
        };
        match sha256.map(|sha256| (saved.sha256(), hex(&sha256))) {
            Some((found, expected)) if found != expected => Err(DataError::NpzContent {
                path: path.to_path_buf(),
                found,
                expected,
            }),
            _ => Ok(saved),
        }
    }

    /// sha256 of everything the file holds, lowercase hex. It is written with the file and compared on reading; who keeps it
    /// elsewhere notices that another file has taken the name.
    pub fn sha256(&self) -> String {
        hex(&self.digest())
    }

    fn digest(&self) -> [u8; 32] {
        let mut sha = Sha256::new();
        for count in [self.labels.len(), self.shape[0], self.shape[1], self.shape[2]] {
            sha.update((count as u64).to_le_bytes());
        }
        update(&mut sha, &self.images, |pixel| pixel.to_le_bytes());
        update(&mut sha, &self.labels, |label| label.to_le_bytes());
        update(&mut sha, &self.ids, |id| id.to_le_bytes());
        // A byte before each optional array says whether it is there.
        sha.update([u8::from(self.originals.is_some())]);
        update(&mut sha, self.originals.as_deref().unwrap_or_default(), |pixel| {
            pixel.to_le_bytes()
        });
        sha.update([u8::from(self.targets.is_some())]);
        update(&mut sha, self.targets.as_deref().unwrap_or_default(), |target| {
            target.to_le_bytes()
        });
        sha.update([u8::from(self.found.is_some())]);
        update(&mut sha, self.found.as_deref().unwrap_or_default(), |found| {
            [u8::from(found)]
        });
        sha.update(self.meta.as_bytes());
        sha.finalize().into()
    }

    fn check(&self, path: &Path) -> Result<(), DataError> {
        let n = self.labels.len();
        let [c, h, w] = self.shape;
        let values = [n, c, h, w].into_iter().fold(1, usize::saturating_mul);
        let originals = self.originals.as_ref().map_or(values, Vec::len);
        let targets = self.targets.as_ref().map_or(n, Vec::len);
        let found = self.found.as_ref().map_or(n, Vec::len);
        let problem = if values == 0 {
            format!("{n} labels and images of {c}x{h}x{w}, expected 1 or more of each")
        } else if self.images.len() != values {
            format!(
                "{} pixel values for {n} labels and images of {c}x{h}x{w}, expected {values}",
                self.images.len()
            )
        } else if originals != values {
            format!("{originals} pixel values of clean images, expected {values}")
        } else if self.ids.len() != n {
            format!("{} ids for {n} labels", self.ids.len())
        } else if targets != n {
            format!("{targets} targets for {n} labels")
        } else if found != n {
            format!("{found} values of 'found' for {n} labels")
        } else if let Some(index) = repeated(&self.ids) {
            format!("the id {} occurs twice", self.ids[index])
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

    fn write_arrays(&self, writer: Cursor<Vec<u8>>) -> Result<Cursor<Vec<u8>>, BoxedError> {
        let n = self.labels.len();
        let [c, h, w] = self.shape;
        let wide = |labels: &[u32]| labels.iter().map(|&label| i64::from(label)).collect::<Vec<i64>>();
        let ids: Vec<i64> = self.ids.iter().map(|&id| id as i64).collect(); // checked: below 2^63
        let images = |values| ArrayView4::from_shape((n, c, h, w), values);
        let mut npz = NpzWriter::new_compressed(writer);
        npz.add_array("x_adv", &images(&self.images)?)?;
        if let Some(originals) = &self.originals {
            npz.add_array("x", &images(originals)?)?;
        }
        npz.add_array("y", &ArrayView1::from(&wide(&self.labels)))?;
        npz.add_array("ids", &ArrayView1::from(&ids))?;
        if let Some(targets) = &self.targets {
            npz.add_array("targets", &ArrayView1::from(&wide(targets)))?;
        }
        if let Some(found) = &self.found {
            npz.add_array("found", &ArrayView1::from(found))?;
        }
        npz.add_array("meta", &ArrayView1::from(self.meta.as_bytes()))?;
        npz.add_array("sha256", &ArrayView1::from(&self.digest()))?;
        Ok(npz.finish()?)
    }
}

const LABEL: &str = "a label in 0..2^32";

/// The first index whose id occurs before it.
fn repeated(ids: &[u64]) -> Option<usize> {
    let mut seen = HashSet::with_capacity(ids.len());
    ids.iter().position(|id| !seen.insert(id))
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

/// Writes to a temporary neighbour, which then takes the name; errors name `path`, the file that was asked for. The archive is put
/// together in memory: an archiver that meets a full disk complains to the terminal by itself.
fn write_whole(
    path: &Path,
    arrays: impl FnOnce(Cursor<Vec<u8>>) -> Result<Cursor<Vec<u8>>, BoxedError>,
) -> Result<(), DataError> {
    let archive = arrays(Cursor::default()).map_err(|reason| DataError::Npz {
        action: "write",
        path: path.to_path_buf(),
        reason,
        remedy: "give arrays of one length",
    })?;
    let temporary = neighbour(path);
    let write = || {
        let mut file = File::create(&temporary).map_err(|error| DataError::io("write", path, error))?;
        file.write_all(archive.get_ref()).map_err(|reason| DataError::Npz {
            action: "write",
            path: path.to_path_buf(),
            reason: reason.into(),
            remedy: "check the free space and the rights of its folder",
        })?;
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
pub(crate) struct Archive {
    path: PathBuf,
    zip: ZipArchive<BufReader<File>>,
    /// Of the arrays, without the ending `.npy`.
    pub(crate) names: Vec<String>,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = || match fs::metadata(path)?.is_file() {
            true => File::open(path),
            // A pipe would wait for its other end.
            false => Err(io::Error::other("it is no regular file: name an npz file")),
        };
        let file = file().map_err(|error| DataError::io("open", path, error))?;
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|reason| unreadable(path, reason.into()))?;
        let array = |name: &str| name.strip_suffix(".npy").unwrap_or(name).to_owned();
        Ok(Self {
            path: path.to_path_buf(),
            names: zip.file_names().map(array).collect(),
            zip,
        })
    }

    pub(crate) fn has(&self, array: &str) -> bool {
        self.names.iter().any(|name| name == array)
    }

    /// What `read` makes of an array, if it is there.
    pub(crate) fn optional<V>(
        &mut self,
        array: &str,
        read: impl FnOnce(&mut Self) -> Result<V, DataError>,
    ) -> Result<Option<V>, DataError> {
        self.has(array).then(|| read(self)).transpose()
    }

    pub(crate) fn array<T: ReadableElement>(
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
        let bytes = self
            .entry(array)
            .map_err(|reason| unreadable(&self.path, reason.into()))?;
        self.check_length(array, &bytes)?;
        ArrayD::read_npy(bytes.as_slice()).map_err(|error| match error {
            ReadNpyError::WrongDescriptor(found) => DataError::NpzType {
                path: self.path.clone(),
                array,
                found: found.to_string(),
                expected,
            },
            error => unreadable(&self.path, error.into()),
        })
    }

    /// An array's bytes, its header first. Memory grows with what is there, not with what the archive promises.
    fn entry(&mut self, array: &str) -> ZipResult<Vec<u8>> {
        let mut bytes = Vec::new();
        let plain = self.zip.index_for_name(array);
        let index = plain.or_else(|| self.zip.index_for_name(&format!("{array}.npy")));
        let mut file = self.zip.by_index(index.ok_or(ZipError::FileNotFound)?)?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Checks what the header promises before room is made for it: values have a byte each at least.
    fn check_length(&self, array: &'static str, bytes: &[u8]) -> Result<(), DataError> {
        let mut rest = bytes;
        let header =
            header_of(&mut rest).map_err(|reason| unreadable(&self.path, ReadNpyError::from(reason).into()))?;
        let values = header
            .shape
            .iter()
            .try_fold(1usize, |len, &extent| len.checked_mul(extent));
        if values.is_some_and(|values| values <= rest.len()) {
            return Ok(());
        }
        Err(DataError::NpzLength {
            path: self.path.clone(),
            array,
            shape: header.shape,
            found: rest.len(),
        })
    }

    /// The values, row-major, of an array that must have this shape.
    pub(crate) fn shaped<T: ReadableElement + Copy>(
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

    pub(crate) fn converted<T: TryFrom<i64>>(
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

    pub(crate) fn distinct(&self, array: &'static str, ids: Vec<u64>) -> Result<Vec<u64>, DataError> {
        match repeated(&ids) {
            None => Ok(ids),
            Some(index) => Err(DataError::NpzValue {
                path: self.path.clone(),
                array,
                index,
                found: ids[index].to_string(),
                expected: "every id once: score the file's parts as files of their own",
            }),
        }
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

    pub(crate) fn shape_error<T>(&self, array: &'static str, found: &ArrayD<T>, expected: String) -> DataError {
        DataError::NpzShape {
            path: self.path.clone(),
            array,
            found: found.shape().to_vec(),
            expected,
        }
    }
}

/// The header of npy bytes, which are left at the values. Its length is checked first: room is made for it, and from version 2
/// of the format on it may be 4 GiB.
fn header_of(bytes: &mut &[u8]) -> Result<Header, ReadHeaderError> {
    let promised = match bytes {
        [_, _, _, _, _, _, 0..=1, ..] => None,
        [_, _, _, _, _, _, _, _, a, b, c, d, rest @ ..] => Some((u32::from_le_bytes([*a, *b, *c, *d]), rest.len())),
        _ => None,
    };
    if promised.is_some_and(|(promised, there)| promised as usize > there) {
        return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
    }
    Header::from_reader(bytes)
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
pub(crate) fn row_major<T: Copy>(array: ArrayD<T>) -> Vec<T> {
    if array.is_standard_layout() {
        array.into_raw_vec_and_offset().0
    } else {
        array.iter().copied().collect()
    }
}
