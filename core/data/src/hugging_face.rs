//! Parquet files as Hugging Face's image datasets have them: a column of images, each a struct with the PNG or JPEG file in `bytes`,
//! and a column of integer labels.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;

use crate::pictures::Album;
use crate::{DataError, Dataset};

/// Names that the column of images goes by.
const IMAGES: [&str; 3] = ["img", "image", "images"];
/// Names that the column of labels goes by.
const LABELS: [&str; 2] = ["label", "labels"];

/// A dataset from such files, one after the other: ids are the index of the row, counted through all files. Every picture must have
/// the shape `[C, H, W]` if one is given, else that of the first. Without a number of classes there are as many as the largest label
/// needs, and [`Dataset::open_classes`] says so.
///
/// # Errors
/// [`DataError::Io`], and [`DataError::Unfit`] for a file that is damaged or no parquet, lacks a column, has an image that does not
/// decode or is of another shape, or a label outside 0..`classes`.
pub(crate) fn load(
    name: &str,
    paths: &[PathBuf],
    shape: Option<[usize; 3]>,
    classes: Option<usize>,
) -> Result<Dataset, DataError> {
    let mut album = Album::new(shape);
    let mut largest = 0;
    for path in paths {
        for (row, (bytes, label)) in rows(path)?.into_iter().enumerate() {
            let at = || format!("'{}' row {row}", path.display());
            let limit = classes.unwrap_or(1 << 20);
            let Some(label) = u32::try_from(label).ok().filter(|&label| (label as usize) < limit) else {
                return Err(DataError::unfit(
                    at(),
                    format!("has the label {label}"),
                    format!("0..{limit}"),
                    "the file is of another dataset or damaged: copy or download it again",
                ));
            };
            largest = largest.max(label as usize);
            album.add(at, &bytes, label)?;
        }
    }
    let dataset = album.dataset(name, classes.unwrap_or(largest + 1))?;
    Ok(Dataset {
        open_classes: classes.is_none(),
        ..dataset
    })
}

/// Image file and label of every row.
pub(crate) fn rows(path: &Path) -> Result<Vec<(Vec<u8>, i64)>, DataError> {
    let file = File::open(path).map_err(|error| DataError::io("open", path, error))?;
    // The library answers most damage by an error, but not all of it.
    let read = catch_unwind(AssertUnwindSafe(|| read(path, file)));
    let rows = read.unwrap_or_else(|_| Err(damaged(path, "its pages contradict each other")))?;
    if rows.is_empty() {
        return Err(DataError::NoImages {
            path: path.to_path_buf(),
        });
    }
    Ok(rows)
}

fn read(path: &Path, file: File) -> Result<Vec<(Vec<u8>, i64)>, DataError> {
    let unreadable = |error: ParquetError| damaged(path, error);
    let reader = SerializedFileReader::new(file).map_err(unreadable)?;
    let metadata = reader.metadata().file_metadata();
    let schema = metadata.schema();
    let names: Vec<&str> = schema.get_fields().iter().map(|field| field.name()).collect();
    let column = |known: &[&str]| names.iter().copied().find(|name| known.contains(name));
    let (Some(image), Some(label)) = (column(&IMAGES), column(&LABELS)) else {
        return Err(DataError::unfit(
            format!("'{}'", path.display()),
            format!("has the columns {}", names.join(", ")),
            "'img' or 'image', and 'label'",
            "name the columns so, as Hugging Face's image datasets do",
        ));
    };
    let fields = schema.get_fields().iter();
    let wanted = fields.filter(|field| field.name() == image || field.name() == label);
    let projection = Type::group_type_builder(schema.name()).with_fields(wanted.cloned().collect());
    let projection = projection.build().map_err(unreadable)?;
    let rows = reader.get_row_iter(Some(projection)).map_err(unreadable)?;
    let both = |(at, row): (usize, Result<Row, ParquetError>)| {
        let row = row.map_err(unreadable)?;
        let at = || format!("'{}' row {at}", path.display());
        Ok((picture(&row, image, at)?, number(&row, label, at)?))
    };
    let rows = rows.enumerate().map(both).collect::<Result<Vec<_>, DataError>>()?;
    let promised = metadata.num_rows();
    match i64::try_from(rows.len()) == Ok(promised) {
        true => Ok(rows),
        false => Err(damaged(path, format!("{} rows of {promised}", rows.len()))),
    }
}

fn damaged(path: &Path, reason: impl std::fmt::Display) -> DataError {
    let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    DataError::unfit(
        format!("'{}'", path.display()),
        format!("cannot be read ({reason})"),
        "a whole parquet file",
        "copy or download it again",
    )
}

/// The value of a column.
fn field<'a>(row: &'a Row, name: &str) -> Option<&'a Field> {
    row.get_column_iter()
        .find(|(column, _)| *column == name)
        .map(|(_, field)| field)
}

fn picture(row: &Row, column: &str, at: impl Fn() -> String) -> Result<Vec<u8>, DataError> {
    let value = match field(row, column) {
        Some(Field::Group(parts)) => field(parts, "bytes"),
        value => value,
    };
    match value {
        Some(Field::Bytes(bytes)) => Ok(bytes.data().to_vec()),
        _ => Err(DataError::unfit(
            at(),
            format!("has no image bytes in '{column}'"),
            "a PNG or JPEG file in its field 'bytes'",
            "write the dataset with its images embedded",
        )),
    }
}

fn number(row: &Row, column: &str, at: impl Fn() -> String) -> Result<i64, DataError> {
    match field(row, column) {
        Some(Field::Byte(label)) => Ok(i64::from(*label)),
        Some(Field::Short(label)) => Ok(i64::from(*label)),
        Some(Field::Int(label)) => Ok(i64::from(*label)),
        Some(Field::Long(label)) => Ok(*label),
        Some(Field::UByte(label)) => Ok(i64::from(*label)),
        Some(Field::UShort(label)) => Ok(i64::from(*label)),
        Some(Field::UInt(label)) => Ok(i64::from(*label)),
        value => Err(DataError::unfit(
            at(),
            format!("has the label {}", value.map_or("none".to_owned(), ToString::to_string)),
            "an integer",
            "write the labels as numbers from 0 on",
        )),
    }
}
