//! Bit-depth reduction (Xu et al. 2018): my_classifier behind it has clean accuracy 90.1 % on mnist-1k.
//!
//! cargo build --release
//! advae-host eval --purifier target/release/libmy_purifier.so:bits=1 --classifier model_d.so

use advae_sdk::prelude::*;

settings! {
    /// How much is left of an image.
    pub struct BitDepth {
        /// Bits a pixel.
        bits: u64 = 1,
    }
}

struct Squeezer {
    levels: f64,
}

impl Purifier for Squeezer {
    type Settings = BitDepth;
    // Rounding has no useful derivative: an adaptive attacker takes it for the identity (BPDA).
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Identity, BackwardRule::None];

    fn new(settings: BitDepth, _: &Weights) -> Result<Self> {
        let bits = in_range("bits", settings.bits, 1..=8)?;
        Ok(Self {
            levels: f64::from((1 << bits) - 1),
        })
    }

    fn purify(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        (x * self.levels)?.round()? / self.levels // [N, C, H, W]
    }
}

export_plugin! { purifier: Squeezer }

#[cfg(test)]
mod tests;
