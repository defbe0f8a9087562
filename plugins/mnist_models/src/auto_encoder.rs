//! The auto-encoder that purifies MNIST images.

use advae_sdk::candle_core::bail;
use advae_sdk::nn::{BatchNorm2d, Conv2d, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019).
    pub struct AutoEncoderSettings {
        /// Channels of every hidden layer; weights fit the number that they were trained with.
        channels: u64 = 32,
    }
}

/// The paper's auto-encoder: 28,609 parameters, of which 128 are running statistics.
///
/// Two encoder blocks [c3-32 same, BN, ReLU, maxpool 2] give a code of 7x7x32; two decoder blocks [c3-32 same, ReLU,
/// nearest upsample 2] without batch norm and c3-1 same with a sigmoid give the purified image. (The paper's "3
/// channels" of the last layer is a slip for MNIST.)
pub struct AutoEncoder(Net);

impl Purifier for AutoEncoder {
    type Settings = AutoEncoderSettings;
    const INPUT: Option<[usize; 3]> = Some(crate::INPUT);
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(settings: AutoEncoderSettings, weights: &Weights) -> Result<Self> {
        let wide = settings.channels as usize;
        if wide == 0 {
            bail!("channels is 0: it must be 1 or more")
        }
        let mut net = NetBuilder::new(crate::INPUT);
        let conv = |name: &str, from, to| Conv2d::new(&weights.pp(name), from, to, 3, 1, Padding::Same);
        let mut x = net.input(); // [1, 28, 28]
        for (name, norm, from) in [("enc1", "bn1", 1), ("enc2", "bn2", wide)] {
            x = net.conv2d(x, &conv(name, from, wide)?)?;
            x = net.batch_norm(x, &BatchNorm2d::new(&weights.pp(norm), wide)?)?;
            x = net.relu(x);
            x = net.max_pool2d(x, 2)?;
        }
        // [32, 7, 7]
        for name in ["dec1", "dec2"] {
            x = net.conv2d(x, &conv(name, wide, wide)?)?;
            x = net.relu(x);
            x = net.upsample_nearest2d(x, 2)?;
        }
        x = net.conv2d(x, &conv("out", wide, 1)?)?;
        let x = net.sigmoid(x); // [1, 28, 28]
        Ok(Self(net.build(x)?))
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.0.forward(pass, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_papers_parameters_and_keeps_the_shape() {
        let weights = Weights::init(1);
        let model = AutoEncoder::new(AutoEncoderSettings::default(), &weights).unwrap();
        let all: usize = weights.params().iter().map(|p| p.var().elem_count()).sum();
        assert_eq!((all, weights.parameter_count()), (28_609, 28_481));
        let x = Tensor::zeros(
            (2, 1, 28, 28),
            advae_sdk::candle_core::DType::F32,
            &advae_sdk::candle_core::Device::Cpu,
        )
        .unwrap();
        assert_eq!(model.purify(&Pass::eval(), &x).unwrap().dims(), [2, 1, 28, 28]);
        let half = Weights::init(1);
        AutoEncoder::new(AutoEncoderSettings { channels: 16 }, &half).unwrap();
        // 3 x 3 taps: 1 to 16, three times 16 to 16, 16 to 1; biases; scale and shift of two norms.
        assert_eq!(half.parameter_count(), 9 * (16 + 3 * 256 + 16) + 4 * 16 + 1 + 4 * 16);
    }
}
