//! PNG and JPEG images: bytes to pixels, and pictures of one shape to a dataset.

use std::io::Cursor;

use png::{ColorType, Transformations};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

use crate::{DataError, Dataset};

/// Height and width of a picture at most: what is larger is no input of a classifier.
const LARGEST: usize = 4096;

/// The marker behind the last pixel of a JPEG.
const END_OF_JPEG: [u8; 2] = [0xff, 0xd9];

/// A decoded picture of 8 bits a channel.
struct Picture {
    /// Pixels, row-major `[H, W, C]`.
    pixels: Vec<u8>,
    /// `[C, H, W]`, with C 1 (grey) or 3 (RGB).
    shape: [usize; 3],
    /// Whether it was a JPEG.
    lossy: bool,
}

/// What is wrong with a picture, in the words of [`DataError::Unfit`].
struct Fault {
    found: String,
    expected: &'static str,
    remedy: &'static str,
}

const BROKEN: &str = "copy or save the image again";
const A_WHOLE_IMAGE: &str = "a whole PNG or JPEG image";

impl Fault {
    fn broken(kind: &str, reason: impl std::fmt::Display) -> Self {
        // The decoders' answers have lines.
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            found: format!("is a damaged or truncated {kind} ({reason})"),
            expected: A_WHOLE_IMAGE,
            remedy: BROKEN,
        }
    }
}

/// By its first bytes, never by a name.
fn decode(bytes: &[u8]) -> Result<Picture, Fault> {
    if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
        decode_png(bytes)
    } else if bytes.starts_with(&[0xff, 0xd8]) {
        decode_jpeg(bytes)
    } else {
        let start: Vec<String> = bytes.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let found = match bytes.len() {
            0 => "is empty".to_owned(),
            _ => format!("begins with the bytes {}", start.join(" ")),
        };
        Err(Fault {
            found,
            expected: "a PNG or JPEG image",
            remedy: "convert the image, or take the file away",
        })
    }
}

fn decode_png(bytes: &[u8]) -> Result<Picture, Fault> {
    let broken = |error: png::DecodingError| Fault::broken("PNG", error);
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    // Palettes become colours, and grey of fewer bits becomes 8.
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(broken)?;
    let (width, height) = (reader.info().width as usize, reader.info().height as usize);
    check_size(height, width)?;
    let (colour, depth) = reader.output_color_type();
    if depth != png::BitDepth::Eight {
        return Err(Fault {
            found: "is a PNG of 16 bits a channel".to_owned(),
            expected: "8",
            remedy: "convert it to 8 bits a channel",
        });
    }
    let size = reader.output_buffer_size().unwrap_or_default();
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(broken)?;
    // The end of the file is checked as well.
    reader.finish().map_err(broken)?;
    let (channels, pixels) = match colour {
        ColorType::Grayscale => (1, pixels),
        ColorType::Rgb => (3, pixels),
        ColorType::GrayscaleAlpha => (1, opaque(&pixels, 2)?),
        ColorType::Rgba => (3, opaque(&pixels, 4)?),
        ColorType::Indexed => return Err(Fault::broken("PNG", "its palette is missing")),
    };
    Ok(Picture {
        pixels,
        shape: [channels, height, width],
        lossy: false,
    })
}

/// Drops an alpha channel that hides nothing.
fn opaque(pixels: &[u8], channels: usize) -> Result<Vec<u8>, Fault> {
    let alpha = channels - 1;
    if pixels.chunks_exact(channels).any(|pixel| pixel[alpha] != u8::MAX) {
        return Err(Fault {
            found: "has transparent pixels".to_owned(),
            expected: "opaque ones",
            remedy: "lay it on a background and save it without an alpha channel",
        });
    }
    let colours = pixels.chunks_exact(channels).flat_map(|pixel| &pixel[..alpha]);
    Ok(colours.copied().collect())
}

fn decode_jpeg(bytes: &[u8]) -> Result<Picture, Fault> {
    let broken = |error: zune_jpeg::errors::DecodeErrors| Fault::broken("JPEG", error);
    // The portable code alone: the same pixels on every processor. Strict: the decoder fills up what is missing otherwise.
    let options = DecoderOptions::new_safe().set_use_unsafe(false).set_strict_mode(true);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(broken)?;
    let Some(info) = decoder.info() else {
        return Err(Fault::broken("JPEG", "it has no header"));
    };
    let (height, width) = (usize::from(info.height), usize::from(info.width));
    check_size(height, width)?;
    let (channels, colours) = match info.components {
        1 => (1, ColorSpace::Luma),
        3 => (3, ColorSpace::RGB),
        n => {
            return Err(Fault {
                found: format!("is a JPEG of {n} components"),
                expected: "1 (grey) or 3 (colour)",
                remedy: "convert it to RGB",
            });
        }
    };
    decoder.set_options(options.jpeg_set_out_colorspace(colours));
    let pixels = decoder.decode().map_err(broken)?;
    // The decoder does without the last bytes; coded pixels never hold this marker.
    if !bytes.windows(2).any(|pair| pair == END_OF_JPEG) {
        return Err(Fault::broken("JPEG", "its end is missing"));
    }
    if pixels.len() != channels * height * width {
        return Err(Fault::broken("JPEG", format!("{} values", pixels.len())));
    }
    Ok(Picture {
        pixels,
        shape: [channels, height, width],
        lossy: true,
    })
}

fn check_size(height: usize, width: usize) -> Result<(), Fault> {
    if (1..=LARGEST).contains(&height) && (1..=LARGEST).contains(&width) {
        return Ok(());
    }
    Err(Fault {
        found: format!("is an image of {height}x{width} pixels"),
        expected: "1 to 4096 each way",
        remedy: "scale it to the classifier's input",
    })
}

/// Pictures of one shape, as they come.
pub(crate) struct Album {
    /// `[C, H, W]`; of the first picture where nothing is expected.
    shape: Option<[usize; 3]>,
    images: Vec<f32>,
    labels: Vec<u32>,
    lossy: bool,
}

impl Album {
    /// For pictures of that shape `[C, H, W]`, or of whichever the first one has.
    pub(crate) fn new(shape: Option<[usize; 3]>) -> Self {
        Self {
            shape,
            images: vec![],
            labels: vec![],
            lossy: false,
        }
    }

    /// Adds a picture; `at` says where it is from, for errors.
    pub(crate) fn add(&mut self, at: impl Fn() -> String, bytes: &[u8], label: u32) -> Result<(), DataError> {
        let picture = decode(bytes).map_err(|fault| {
            let Fault {
                found,
                expected,
                remedy,
            } = fault;
            DataError::unfit(at(), found, expected, remedy)
        })?;
        let shape = *self.shape.get_or_insert(picture.shape);
        if picture.shape != shape {
            let [of, first] = [picture.shape, shape].map(|[c, h, w]| {
                let colours = if c == 1 { "grey" } else { "RGB" };
                format!("{h}x{w} {colours}")
            });
            return Err(DataError::unfit(
                at(),
                format!("is an image of {of}"),
                format!("{first} as all of them"),
                "bring all images to one size and kind",
            ));
        }
        let [c, h, w] = shape;
        for channel in 0..c {
            let plane = picture.pixels.iter().skip(channel).step_by(c).take(h * w);
            self.images.extend(plane.map(|&byte| f32::from(byte) / 255.0));
        }
        self.labels.push(label);
        self.lossy |= picture.lossy;
        Ok(())
    }

    /// The dataset of the pictures, with their positions as ids.
    ///
    /// # Errors
    /// As [`Dataset::new`].
    pub(crate) fn dataset(self, name: &str, classes: usize) -> Result<Dataset, DataError> {
        let ids = (0..self.labels.len() as u64).collect();
        let shape = self.shape.unwrap_or_default();
        let dataset = Dataset::new(name, self.images, self.labels, ids, shape, classes)?;
        Ok(Dataset {
            lossy: self.lossy,
            ..dataset
        })
    }
}
