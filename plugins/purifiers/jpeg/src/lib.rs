//! JPEG compression (Dziugaite, Ghahramani and Roy 2016): an image is written as a JPEG file and read again.

use advae_sdk::candle_core::{DType, Device, Error, bail};
use advae_sdk::prelude::*;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageFormat, load_from_memory_with_format};

settings! {
    /// Strength of the compression.
    pub struct JpegSettings {
        /// JPEG quality, 1 to 100.
        quality: u64 = 75,
    }
}

struct Jpeg {
    quality: u8,
}

impl Purifier for Jpeg {
    type Settings = JpegSettings;
    /// It rounds: the true derivative is 0 almost everywhere, and whoever attacks takes it for the identity (BPDA).
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Identity];
    const THREADING: Threading = Threading::Caller;

    fn new(settings: JpegSettings, _: &Weights) -> Result<Self> {
        Ok(Self {
            quality: in_range("quality", settings.quality, 1..=100)? as u8,
        })
    }

    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        let (n, c, h, w) = x.dims4()?;
        let color = match c {
            1 => ExtendedColorType::L8,
            3 => ExtendedColorType::Rgb8,
            _ => bail!("images of {c} channels: JPEG has 1 or 3"),
        };
        // Channels last, as in a file.
        let bytes = (x.detach().to_device(&Device::Cpu)?.to_dtype(DType::F32)? * 255.)?;
        let bytes = bytes.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>()?;
        let bytes: Vec<u8> = bytes.iter().map(|v| v.round().clamp(0., 255.) as u8).collect();
        let mut decoded = Vec::with_capacity(bytes.len());
        for image in bytes.chunks_exact(c * h * w) {
            decoded.extend(self.again(image, [w as u32, h as u32], color).map_err(Error::wrap)?);
        }
        let decoded: Vec<f32> = decoded.iter().map(|v| f32::from(*v) / 255.).collect();
        let decoded = Tensor::from_vec(decoded, (n, h, w, c), &Device::Cpu)?.permute((0, 3, 1, 2))?;
        decoded.contiguous()?.to_device(x.device())?.to_dtype(x.dtype())
    }
}

impl Jpeg {
    /// Writes and reads an image.
    fn again(&self, image: &[u8], [w, h]: [u32; 2], color: ExtendedColorType) -> image::ImageResult<Vec<u8>> {
        let mut file = vec![];
        JpegEncoder::new_with_quality(&mut file, self.quality).encode(image, w, h, color)?;
        let read = load_from_memory_with_format(&file, ImageFormat::Jpeg)?;
        Ok(match color {
            ExtendedColorType::L8 => read.into_luma8().into_raw(),
            _ => read.into_rgb8().into_raw(),
        })
    }
}

export_plugin! { purifier: Jpeg }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smooth_images_survive_and_noise_does_not() {
        let jpeg = |quality| Jpeg::new(JpegSettings { quality }, &Weights::init(0)).unwrap();
        let change = |quality, x: &Tensor| {
            let y = jpeg(quality).purify(&Pass::eval(), x).unwrap();
            assert_eq!(y.dims(), x.dims());
            let change = (y - x).unwrap().abs().unwrap().mean_all().unwrap();
            change.to_scalar::<f32>().unwrap()
        };
        for channels in [1, 3] {
            let ramp: Vec<f32> = (0..channels * 28 * 28).map(|i| (i % 28) as f32 / 27.).collect();
            let ramp = Tensor::from_vec(ramp, (1, channels, 28, 28), &Device::Cpu).unwrap();
            assert!(change(75, &ramp) < 0.02, "{}", change(75, &ramp));
            let noise = Pass::eval()
                .rand_uniform(&[1, channels, 28, 28], 0., 1., 0, &Device::Cpu)
                .unwrap();
            assert!(change(5, &noise) > 0.1 && change(100, &noise) < change(5, &noise));
        }
        assert!(Jpeg::new(JpegSettings { quality: 0 }, &Weights::init(0)).is_err());
    }
}
