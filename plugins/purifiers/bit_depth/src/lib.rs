//! Bit-depth reduction (Xu, Evans and Qi 2018): pixels are rounded to few levels.

use advae_sdk::prelude::*;

settings! {
    /// How many grey levels remain in an image.
    pub struct BitDepthSettings {
        /// Bits per pixel, 1 to 8.
        bits: u64 = 1,
    }
}

struct BitDepth {
    steps: f64,
}

impl Purifier for BitDepth {
    type Settings = BitDepthSettings;
    /// The true derivative is 0 almost everywhere: whoever attacks takes it for the identity (BPDA).
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Identity];
    const THREADING: Threading = Threading::Caller;

    fn new(settings: BitDepthSettings, _: &Weights) -> Result<Self> {
        let bits = in_range("bits", settings.bits, 1..=8)?;
        Ok(Self {
            steps: f64::from((1 << bits) - 1),
        })
    }

    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        (x * self.steps)?.round()? / self.steps
    }
}

export_plugin! { purifier: BitDepth }

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::Device;

    #[test]
    fn pixels_go_to_the_nearest_level() {
        let weights = Weights::init(0);
        assert!(BitDepth::new(BitDepthSettings { bits: 9 }, &weights).is_err());
        let two = BitDepth::new(BitDepthSettings { bits: 2 }, &weights).unwrap();
        let x = Tensor::new(&[0f32, 0.16, 0.17, 0.6, 1.], &Device::Cpu).unwrap();
        let y = two.purify(&Pass::eval(), &x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(y, [0., 0., 1. / 3., 2. / 3., 1.]);
    }
}
