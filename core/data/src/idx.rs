//! IDX files, the format of MNIST: images (three dimensions of bytes) and labels (one), raw or gzip.
//!
//! A file is taken for gzip by its first two bytes, never by its name.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::{DataError, Dataset};

/// Bytes of images as they lie in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// Pixels in 0..=255, row-major `[N, H, W]`.
    pub pixels: Vec<u8>,
    /// How many images there are (N).
    pub count: usize,
    /// Height and width in pixels.
    pub size: [usize; 2],
}

/// A dataset from a pair of IDX files: pixels divided by 255, shape `[1, H, W]`, ids the index in the file.
///
/// # Errors
/// What [`read_images`] and [`read_labels`] answer, and [`DataError::ImageSize`], [`DataError::NoImages`],
/// [`DataError::CountMismatch`] and [`DataError::LabelRange`].
pub fn load(
    name: &str,
    images_path: &Path,
    labels_path: &Path,
    size: [usize; 2],
    classes: usize,
) -> Result<Dataset, DataError> {
    let images = read_images(images_path)?;
    if images.count == 0 {
        return Err(DataError::NoImages {
            path: images_path.to_path_buf(),
        });
    }
    if images.size != size {
        return Err(DataError::ImageSize {
            path: images_path.to_path_buf(),
            found: images.size,
            expected: size,
        });
    }
    let labels = read_labels(labels_path)?;
    if labels.len() != images.count {
        return Err(DataError::CountMismatch {
            images_path: images_path.to_path_buf(),
            images: images.count,
            labels_path: labels_path.to_path_buf(),
            labels: labels.len(),
        });
    }
    if let Some(index) = labels.iter().position(|&label| usize::from(label) >= classes) {
        let label = u32::from(labels[index]);
        return Err(DataError::LabelRange {
            path: labels_path.to_path_buf(),
            index,
            label,
            classes,
        });
    }
    Ok(dataset(
        name,
        &images.pixels,
        &labels,
        (0..labels.len() as u64).collect(),
        size,
        classes,
    ))
}

/// Reads an IDX file of images (magic number 0x00000803).
///
/// # Errors
/// [`DataError::Io`], [`DataError::Gzip`], [`DataError::WrongMagic`], [`DataError::Truncated`] and
/// [`DataError::TrailingBytes`].
pub fn read_images(path: &Path) -> Result<Images, DataError> {
    let mut input = Input::open(path)?;
    let (dims, pixels) = input.array(IMAGES)?;
    input.end()?;
    let [count, rows, cols] = dims;
    Ok(Images {
        pixels,
        count,
        size: [rows, cols],
    })
}

/// Reads an IDX file of labels (magic number 0x00000801), `[N]`, unchecked: any byte is a label here.
///
/// # Errors
/// As [`read_images`].
pub fn read_labels(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut input = Input::open(path)?;
    let (_, labels) = input.array(LABELS)?;
    input.end()?;
    Ok(labels)
}

/// An IDX file of bytes, uncompressed: `[N, H, W]` for images, `[N]` for labels. The product of `dims` must be the
/// number of `bytes`, and each below 2^32, or the readers here refuse the file.
pub fn encode(dims: &[usize], bytes: &[u8]) -> Vec<u8> {
    let mut file = vec![0, 0, 0x08, dims.len() as u8];
    for &dim in dims {
        file.extend_from_slice(&(dim as u32).to_be_bytes());
    }
    file.extend_from_slice(bytes);
    file
}

/// Bytes to [0, 1], as the paper has it: no mean subtracted.
pub(crate) fn dataset(
    name: &str,
    pixels: &[u8],
    labels: &[u8],
    ids: Vec<u64>,
    size: [usize; 2],
    classes: usize,
) -> Dataset {
    let images = pixels.iter().map(|&byte| f32::from(byte) / 255.0).collect();
    let labels = labels.iter().map(|&label| u32::from(label)).collect();
    Dataset {
        name: name.to_owned(),
        images,
        labels,
        ids,
        shape: [1, size[0], size[1]],
        classes,
        open_classes: false,
        lossy: false,
        set: None,
    }
}

/// A kind of array with D dimensions. Its magic number is two zero bytes, the element type, and D.
pub(crate) struct Kind<const D: usize> {
    magic: u32,
    /// Bytes of one element.
    width: u64,
}

pub(crate) const IMAGES: Kind<3> = Kind {
    magic: IMAGES_MAGIC,
    width: 1,
};
pub(crate) const LABELS: Kind<1> = Kind {
    magic: LABELS_MAGIC,
    width: 1,
};
pub(crate) const INTEGERS: Kind<1> = Kind {
    magic: INTEGERS_MAGIC,
    width: 4,
};

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
pub(crate) const INTEGERS_MAGIC: u32 = 0x0000_0c01;

/// The numbers of an array of [`INTEGERS`], none of them negative.
pub(crate) fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let number = |bytes: &[u8]| bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    bytes.chunks_exact(4).map(number)
}

fn describe(magic: u32) -> String {
    match magic {
        IMAGES_MAGIC => format!("{magic:#010x} (IDX images)"),
        LABELS_MAGIC => format!("{magic:#010x} (IDX labels)"),
        INTEGERS_MAGIC => format!("{magic:#010x} (IDX integers)"),
        _ => format!("{magic:#010x}"),
    }
}

/// A stream of IDX arrays that knows its name and how far it was read, for the errors.
pub(crate) struct Input<'a> {
    path: PathBuf,
    reader: Box<dyn Read + 'a>,
    gzip: bool,
    read: u64,
}

impl<'a> Input<'a> {
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|error| DataError::io("open", path, error))?;
        Self::new(path, BufReader::new(file))
    }

    pub(crate) fn new(path: &Path, mut reader: impl BufRead + 'a) -> Result<Self, DataError> {
        let start = reader.fill_buf().map_err(|error| DataError::io("read", path, error))?;
        let gzip = start.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn Read + 'a> = if gzip {
            Box::new(MultiGzDecoder::new(reader))
        } else {
            Box::new(reader)
        };
        Ok(Self {
            path: path.to_path_buf(),
            reader,
            gzip,
            read: 0,
        })
    }

    /// The next array: its D dimensions and its bytes, row-major (numbers of more than one byte big-endian).
    pub(crate) fn array<const D: usize>(&mut self, kind: Kind<D>) -> Result<([usize; D], Vec<u8>), DataError> {
        let start = self.read;
        let header_len = 4 + 4 * D as u64;
        let magic = self.bytes(start, 4, header_len)?;
        if magic != kind.magic.to_be_bytes() {
            return Err(self.wrong_magic(&magic, kind.magic));
        }
        let header = self.bytes(start, 4 * D as u64, header_len)?;
        let mut dims = [0; D];
        for (dim, bytes) in dims.iter_mut().zip(header.chunks_exact(4)) {
            *dim = bytes.iter().fold(0, |number, &byte| number << 8 | usize::from(byte));
        }
        // Saturating: a header may promise more than can be counted, which then is more than there is.
        let len = dims.iter().fold(kind.width, |len, &dim| len.saturating_mul(dim as u64));
        let data = self.bytes(start, len, header_len.saturating_add(len))?;
        Ok((dims, data))
    }

    /// Checks that nothing follows.
    pub(crate) fn end(&mut self) -> Result<(), DataError> {
        let expected = self.read;
        let result = io::copy(&mut self.reader, &mut io::sink());
        match result {
            Ok(0) => Ok(()),
            Ok(more) => Err(DataError::TrailingBytes {
                path: self.path.clone(),
                found: expected + more,
                expected,
            }),
            Err(error) => Err(self.read_error(error)),
        }
    }

    /// The next `len` bytes; `expected` is where the array that began at `start` must reach. Memory grows with what
    /// is there, not with what a header promises.
    fn bytes(&mut self, start: u64, len: u64, expected: u64) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let result = self.reader.by_ref().take(len).read_to_end(&mut bytes);
        self.read += bytes.len() as u64;
        if let Err(error) = result {
            return Err(self.read_error(error));
        }
        if (bytes.len() as u64) < len {
            let expected = start.saturating_add(expected);
            return Err(DataError::Truncated {
                path: self.path.clone(),
                found: self.read,
                expected,
            });
        }
        Ok(bytes)
    }

    fn read_error(&self, error: io::Error) -> DataError {
        use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
        if self.gzip && matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof) {
            DataError::Gzip {
                path: self.path.clone(),
                read: self.read,
                reason: error,
            }
        } else {
            DataError::io("read", &self.path, error)
        }
    }

    fn wrong_magic(&self, found: &[u8], expected: u32) -> DataError {
        let number = found.iter().fold(0, |number, &byte| number << 8 | u32::from(byte));
        let remedy = match (number, expected) {
            (LABELS_MAGIC, IMAGES_MAGIC) | (IMAGES_MAGIC, LABELS_MAGIC) => "the files of images and labels are swapped",
            _ if found[0] == b'<' => "this looks like a web page: download the file again",
            _ => "take the dataset's own IDX file",
        };
        DataError::WrongMagic {
            path: self.path.clone(),
            found: describe(number),
            expected: describe(expected),
            remedy,
        }
    }
}
