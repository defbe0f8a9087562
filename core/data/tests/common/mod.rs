//! Small files of the formats that are read.

// clippy.toml exempts the tests, but not their helpers. Not every test uses all of them.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

/// A PNG file of pixels `[H, W, C]`, grey for C = 1, with alpha for 2 and 4.
pub fn png([h, w, c]: [u32; 3], pixels: &[u8]) -> Vec<u8> {
    let mut file = vec![];
    let mut encoder = png::Encoder::new(&mut file, w, h);
    encoder.set_color(match c {
        1 => png::ColorType::Grayscale,
        2 => png::ColorType::GrayscaleAlpha,
        3 => png::ColorType::Rgb,
        _ => png::ColorType::Rgba,
    });
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(pixels).unwrap();
    writer.finish().unwrap();
    file
}

/// A JPEG file of pixels `[H, W, 3]`, or `[H, W, 1]`.
pub fn jpeg([h, w, c]: [u32; 3], pixels: &[u8]) -> Vec<u8> {
    let mut file = vec![];
    let kind = match c {
        1 => image::ExtendedColorType::L8,
        _ => image::ExtendedColorType::Rgb8,
    };
    JpegEncoder::new_with_quality(&mut file, 90)
        .write_image(pixels, w, h, kind)
        .unwrap();
    file
}

/// Pixels `[32, 32, 3]` of a soft pattern that `seed` shifts.
pub fn photo(seed: usize) -> Vec<u8> {
    let value = |i: usize| (128. + 100. * ((i + 37 * seed) as f64 / 250.).sin()) as u8;
    (0..32 * 32 * 3).map(value).collect()
}

/// What Hugging Face's image datasets have.
pub const SCHEMA: &str = "message schema { optional group img { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";

/// A parquet file in that layout; an absent image is a null.
pub fn write_parquet(path: &Path, schema: &str, rows: &[(Option<Vec<u8>>, i64)]) {
    let compression = Compression::ZSTD(ZstdLevel::default());
    let properties = WriterProperties::builder().set_compression(compression).build();
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    // Several groups of rows, as large files have.
    for rows in rows.chunks(rows.len().div_ceil(2).max(1)) {
        let mut group = writer.next_row_group().unwrap();
        let files: Vec<ByteArray> = rows
            .iter()
            .filter_map(|(file, _)| file.clone())
            .map(ByteArray::from)
            .collect();
        let levels: Vec<i16> = rows
            .iter()
            .map(|(file, _)| if file.is_some() { 2 } else { 1 })
            .collect();
        let mut column = group.next_column().unwrap().unwrap();
        (column.typed::<ByteArrayType>().write_batch(&files, Some(&levels), None)).unwrap();
        column.close().unwrap();
        let paths: Vec<ByteArray> = (0..rows.len()).map(|i| format!("{i}.png").as_str().into()).collect();
        let mut column = group.next_column().unwrap().unwrap();
        (column
            .typed::<ByteArrayType>()
            .write_batch(&paths, Some(&vec![2; rows.len()]), None))
        .unwrap();
        column.close().unwrap();
        let labels: Vec<i64> = rows.iter().map(|(_, label)| *label).collect();
        let mut column = group.next_column().unwrap().unwrap();
        (column
            .typed::<Int64Type>()
            .write_batch(&labels, Some(&vec![1; rows.len()]), None))
        .unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}
