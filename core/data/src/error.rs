use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with data: each message says what was found, what was expected and what to do.
///
/// A message is whole: it includes the cause, which is therefore not its `source()` and is not printed twice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No dataset goes by this name.
    #[error(
        "unknown dataset '{name}': known are {known}; images of your own go by their path: ./FOLDER, ./FILE.npz, ./FILE.parquet"
    )]
    UnknownDataset {
        /// The name asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// The dataset is not embedded, and no folder was given.
    #[error("dataset '{name}' is read from files and no folder was given: pass --data-dir or set ADVAE_DATA_DIR")]
    NoDataDir {
        /// The dataset.
        name: String,
    },
    /// The folder given is not there.
    #[error("data folder '{path}' of dataset '{name}' is not a folder: correct --data-dir or ADVAE_DATA_DIR")]
    NotAFolder {
        /// The dataset.
        name: String,
        /// The folder given.
        path: PathBuf,
    },
    /// No file of any known spelling was found.
    #[error(
        "dataset '{name}' lacks a file: looked in {} for {}: put it there, or correct --data-dir or ADVAE_DATA_DIR",
        paths(folders), files.join(", ")
    )]
    MissingFile {
        /// The dataset.
        name: String,
        /// The folders searched.
        folders: Vec<PathBuf>,
        /// The spellings tried in each.
        files: Vec<String>,
    },
    /// The files are sound, but hold something else than their dataset's name promises.
    #[error(
        "the files in '{folder}' are not {name}: their content has sha256 {found}, expected {expected}: \
         correct --data-dir or ADVAE_DATA_DIR"
    )]
    OtherContent {
        /// The dataset asked for.
        name: String,
        /// Where the files lie.
        folder: PathBuf,
        /// [`Dataset::sha256`](crate::Dataset::sha256) of what was read.
        found: String,
        /// The same of the named dataset.
        expected: String,
    },
    /// The operating system refused a file.
    #[error("cannot {action} '{path}': {reason}")]
    Io {
        /// What was tried: "open", "read", "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        reason: io::Error,
    },
    /// A gzip stream is cut short or damaged.
    #[error("'{path}' has a broken gzip stream after {read} unpacked bytes ({reason}): copy or download it again")]
    Gzip {
        /// The file.
        path: PathBuf,
        /// Bytes unpacked before it broke.
        read: u64,
        /// The decoder's answer.
        reason: io::Error,
    },
    /// The file begins with another magic number than IDX files of this kind do.
    #[error("'{path}' begins with {found}, expected {expected}: {remedy}")]
    WrongMagic {
        /// The file.
        path: PathBuf,
        /// The first four bytes, and what they mean if known.
        found: String,
        /// Those expected.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The file ends early. Bytes are counted unpacked, header included.
    #[error("'{path}' is truncated: it has {found} bytes, expected {expected}: copy or download it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be (at least, where the header itself is cut).
        expected: u64,
    },
    /// The file goes on after its end. Bytes are counted unpacked, header included.
    #[error(
        "'{path}' has trailing bytes: it has {found} bytes, its header promises {expected}: copy or download it again"
    )]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The image and label files have different lengths.
    #[error("'{images_path}' has {images} images, '{labels_path}' has {labels} labels: take both from the same set")]
    CountMismatch {
        /// The image file.
        images_path: PathBuf,
        /// Its images.
        images: usize,
        /// The label file.
        labels_path: PathBuf,
        /// Its labels.
        labels: usize,
    },
    /// A label is none of the classes.
    #[error(
        "'{path}' has the label {label} at index {index}, expected 0..{classes}: take the dataset's own label file"
    )]
    LabelRange {
        /// The label file.
        path: PathBuf,
        /// Where.
        index: usize,
        /// The label found.
        label: u32,
        /// How many classes there are.
        classes: usize,
    },
    /// Images of another height or width.
    #[error(
        "'{path}' has images of {}x{}, expected {}x{}: take the dataset's own image file",
        found[0], found[1], expected[0], expected[1]
    )]
    ImageSize {
        /// The image file.
        path: PathBuf,
        /// Height and width found.
        found: [usize; 2],
        /// Height and width expected.
        expected: [usize; 2],
    },
    /// A sound file with no sample in it.
    #[error("'{path}' holds 0 images, expected at least 1: copy or download it again")]
    NoImages {
        /// The image file.
        path: PathBuf,
    },
    /// A file, a folder or one image holds something that its format or its dataset does not allow.
    #[error("{at} {found}, expected {expected}: {remedy}")]
    Unfit {
        /// Where: a quoted path, and the row or the image in it.
        at: String,
        /// What is there, with its verb.
        found: String,
        /// What should be.
        expected: String,
        /// What to do.
        remedy: String,
    },
    /// Values given to [`Dataset::new`](crate::Dataset::new) do not make a dataset.
    #[error("dataset '{name}' is invalid: {problem}")]
    Invalid {
        /// The dataset.
        name: String,
        /// What is wrong, with both values.
        problem: String,
    },
    /// The archive cannot be written or read as such.
    #[error("cannot {action} '{path}' as npz: {reason}: {remedy}")]
    Npz {
        /// "read" or "write".
        action: &'static str,
        /// The archive.
        path: PathBuf,
        /// The library's answer.
        reason: Box<dyn std::error::Error + Send + Sync>,
        /// What to do.
        remedy: &'static str,
    },
    /// The archive lacks an array.
    #[error(
        "'{path}' has no array '{array}', it has {found}: save it with numpy.savez(path, x_adv=..., y=..., ids=...)"
    )]
    NpzMissing {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: &'static str,
        /// The arrays there are, separated by commas.
        found: String,
    },
    /// An array has another element type.
    #[error("array '{array}' of '{path}' has the type {found}, expected {expected}: save it as .astype('{expected}')")]
    NpzType {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: &'static str,
        /// numpy's descriptor of the type found.
        found: String,
        /// numpy's name of the type expected.
        expected: &'static str,
    },
    /// Arrays disagree in their shapes.
    #[error("array '{array}' of '{path}' has the shape {found:?}, expected {expected}: save it with that shape")]
    NpzShape {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: &'static str,
        /// The shape found.
        found: Vec<usize>,
        /// The shape expected.
        expected: String,
    },
    /// An array's header promises more values than follow it.
    #[error(
        "array '{array}' of '{path}' has the shape {shape:?}, but {found} bytes of values: it is cut short or damaged: \
         write or copy it again"
    )]
    NpzLength {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: &'static str,
        /// The shape in its header.
        shape: Vec<usize>,
        /// Bytes that follow the header.
        found: usize,
    },
    /// The arrays are not those that the checksum was taken of.
    #[error(
        "the arrays of '{path}' have sha256 {found}, but it says {expected}: it is damaged or was changed: write or copy it \
         again, or leave out its array 'sha256' if the change is meant"
    )]
    NpzContent {
        /// The archive.
        path: PathBuf,
        /// The checksum of what was read.
        found: String,
        /// The checksum in the file.
        expected: String,
    },
    /// A value that its array may not hold.
    #[error("array '{array}' of '{path}' has the value {found} at index {index}, expected {expected}")]
    NpzValue {
        /// The archive.
        path: PathBuf,
        /// The array's name.
        array: &'static str,
        /// Where.
        index: usize,
        /// The value found.
        found: String,
        /// The values expected.
        expected: &'static str,
    },
}

impl DataError {
    pub(crate) fn unfit(
        at: impl Into<String>,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::Unfit {
            at: at.into(),
            found: found.into(),
            expected: expected.into(),
            remedy: remedy.into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path, reason: io::Error) -> Self {
        Self::Io {
            action,
            path: path.to_path_buf(),
            reason,
        }
    }
}

fn paths(paths: &[PathBuf]) -> String {
    let quoted: Vec<String> = paths.iter().map(|path| format!("'{}'", path.display())).collect();
    quoted.join(", ")
}
