//! The auto-encoder that purifies MNIST images.

use advae_sdk::nn::{BatchNorm2d, Conv2d, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

/// The paper's auto-encoder: 28,609 parameters, of which 128 are running statistics.
///
/// Two encoder blocks [c3-32 same, BN, ReLU, maxpool 2] give a code of 7x7x32; two decoder blocks [c3-32 same, ReLU,
/// nearest upsample 2] without batch norm and c3-1 same with a sigmoid give the purified image. (The paper's "3
/// channels" of the last layer is a slip for MNIST.)
pub struct AutoEncoder(Net);

impl Purifier for AutoEncoder {
    type Settings = NoSettings;
    const INPUT: Option<[usize; 3]> = Some(crate::INPUT);
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let mut net = NetBuilder::new(crate::INPUT);
        let conv = |name: &str, from, to| Conv2d::new(&weights.pp(name), from, to, 3, 1, Padding::Same);
        let mut x = net.input(); // [1, 28, 28]
        for (name, norm, from) in [("enc1", "bn1", 1), ("enc2", "bn2", 32)] {
            x = net.conv2d(x, &conv(name, from, 32)?)?;
            x = net.batch_norm(x, &BatchNorm2d::new(&weights.pp(norm), 32)?)?;
            x = net.relu(x);
            x = net.max_pool2d(x, 2)?;
        }
        // [32, 7, 7]
        for name in ["dec1", "dec2"] {
            x = net.conv2d(x, &conv(name, 32, 32)?)?;
            x = net.relu(x);
            x = net.upsample_nearest2d(x, 2)?;
        }
        x = net.conv2d(x, &conv("out", 32, 1)?)?;
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
        let model = AutoEncoder::new(NoSettings {}, &weights).unwrap();
        let all: usize = weights.params().iter().map(|p| p.var().elem_count()).sum();
        assert_eq!((all, weights.parameter_count()), (28_609, 28_481));
        let x = Tensor::zeros(
            (2, 1, 28, 28),
            advae_sdk::candle_core::DType::F32,
            &advae_sdk::candle_core::Device::Cpu,
        )
        .unwrap();
        assert_eq!(model.purify(&Pass::eval(), &x).unwrap().dims(), [2, 1, 28, 28]);
    }
}
