//! A few samples of every cell as pictures, for pages that show what an attack does.

use super::score::{Batch, Scorer};
use crate::results::{Look, Picture, Row};
use crate::wire::attack::Perturbed;
use crate::wire::tensor::Call;
use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// How much a difference is enlarged.
const ENLARGED: f32 = 10.;

/// An image `[C,H,W]` with values in `[0,1]` as PNG of 8 bits; of other channels than 1 and 3 the first.
///
/// # Errors
/// Where it cannot be encoded.
pub fn encode([c, h, w]: [usize; 3], image: impl Fn(usize) -> f32) -> Result<Vec<u8>> {
    let channels = if c == 3 { 3 } else { 1 };
    let pixel = |i: usize| (image((i % channels) * h * w + i / channels).clamp(0., 1.) * 255.).round() as u8;
    let pixels: Vec<u8> = (0..channels * h * w).map(pixel).collect();
    png([w, h], channels, &pixels)
}

/// Pixels of 8 bits, row by row, a byte a channel, as PNG; 1 or 3 channels.
///
/// # Errors
/// Where they cannot be encoded.
pub fn png([width, height]: [usize; 2], channels: usize, pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(match channels {
        1 => png::ColorType::Grayscale,
        _ => png::ColorType::Rgb,
    });
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

impl Scorer {
    /// Pictures of the samples of `batch` at these places, with the rows that came of them. Of a random pipeline the first draw.
    ///
    /// # Errors
    /// Where a plugin fails, or an image cannot be encoded.
    pub fn pictures(&self, batch: &Batch, p: &Perturbed, rows: &[Row], places: &[usize]) -> Result<Vec<Picture>> {
        if places.is_empty() {
            return Ok(vec![]);
        }
        let some = batch.select(places);
        let call = Call::score(self.seed, &some.scoring_ids).with_threads(self.call_threads);
        let mut adversarial = some.x.clone();
        let len = adversarial.row_len();
        for (i, place) in places.iter().enumerate() {
            // What was refused or not found is scored as the clean image.
            if rows[*place].refused.is_none() && rows[*place].found != Some(false) {
                adversarial.data[i * len..][..len].copy_from_slice(p.x_adv.row(*place));
            }
        }
        let purified = self.pipeline.purified(&call, &adversarial)?;
        let [clean_logits, adversarial_logits] = [&some.x, &adversarial].map(|x| self.pipeline.forward(&call, x));
        let (clean_logits, adversarial_logits) = (clean_logits?, adversarial_logits?);
        let shape = [some.x.shape[1], some.x.shape[2], some.x.shape[3]];
        let encoded =
            |image: &dyn Fn(usize) -> f32| -> Result<String> { Ok(BASE64_STANDARD.encode(encode(shape, image)?)) };
        let picture = |(i, place): (usize, &usize)| -> Result<Picture> {
            let (x, x_adv) = (some.x.row(i), adversarial.row(i));
            let purified = purified.as_ref().map(|purified| encoded(&|at| purified.row(i)[at]));
            Ok(Picture {
                id: some.ids[i],
                label: some.y[i],
                shape,
                clean: look(encoded(&|at| x[at])?, clean_logits.row(i)),
                adversarial: look(encoded(&|at| x_adv[at])?, adversarial_logits.row(i)),
                difference: encoded(&|at| 0.5 + ENLARGED * (x_adv[at] - x[at]))?,
                purified: purified.transpose()?,
                robust: rows[*place].robust,
            })
        };
        places.iter().enumerate().map(picture).collect()
    }
}

/// An image, and what its logits say.
fn look(png: String, logits: &[f32]) -> Look {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let prediction = logits.iter().position(|z| *z == best).unwrap_or(0) as u32;
    let sum: f64 = logits.iter().map(|z| f64::from(z - best).exp()).sum();
    Look {
        png,
        prediction,
        confidence: 1. / sum,
    }
}

/// The places in a batch of samples that pictures are wanted of.
pub fn wanted(pictured: &[u64], batch: &Batch, has: impl Fn(u64) -> bool) -> Vec<usize> {
    let ids = batch.ids.iter().enumerate();
    ids.filter(|(_, id)| pictured.contains(id) && !has(**id))
        .map(|(i, _)| i)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(bytes: &[u8]) -> (u32, u32, Vec<u8>) {
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        pixels.truncate(info.buffer_size());
        (info.width, info.height, pixels)
    }

    #[test]
    fn an_image_comes_back_rounded_to_eight_bits() {
        let grey = [0., 0.5, 1., 2., -1., 0.25];
        let bytes = encode([1, 2, 3], |i| grey[i]).unwrap();
        assert_eq!(decoded(&bytes), (3, 2, vec![0, 128, 255, 255, 0, 64]));
        // Planes become pixels.
        let colours = [1., 0., 0.2, 0.4, 0., 1.];
        let bytes = encode([3, 1, 2], |i| colours[i]).unwrap();
        assert_eq!(decoded(&bytes), (2, 1, vec![255, 51, 0, 0, 102, 255]));
    }

    #[test]
    fn confidence_is_the_softmax_of_the_predicted_class() {
        let look = look(String::new(), &[0., 3f32.ln(), 0.]);
        assert_eq!(look.prediction, 1);
        assert!((look.confidence - 0.6).abs() < 1e-6);
        let sure = super::look(String::new(), &[-1000., 1000.]);
        assert_eq!((sure.prediction, sure.confidence), (1, 1.));
    }
}
