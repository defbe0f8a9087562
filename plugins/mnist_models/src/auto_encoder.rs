//! The auto-encoder that purifies MNIST images.

use advae_sdk::nn::{BatchNorm2d, Conv2d, Padding, max_pool2d, relu, sigmoid, upsample_nearest2d};
use advae_sdk::prelude::*;

/// The paper's auto-encoder: 28,609 parameters, of which 128 are running statistics.
///
/// Two encoder blocks [c3-32 same, BN, ReLU, maxpool 2] give a code of 7x7x32; two decoder blocks [c3-32 same, ReLU,
/// nearest upsample 2] without batch norm and c3-1 same with a sigmoid give the purified image. (The paper's "3
/// channels" of the last layer is a slip for MNIST.)
pub struct AutoEncoder {
    encoder: [(Conv2d, BatchNorm2d); 2],
    decoder: [Conv2d; 2],
    output: Conv2d,
}

impl Purifier for AutoEncoder {
    type Settings = NoSettings;
    const INPUT: Option<[usize; 3]> = Some(crate::INPUT);
    const THREADING: Threading = Threading::Caller;

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let conv = |name: &str, from, to| Conv2d::new(&weights.pp(name), from, to, 3, 1, Padding::Same);
        let norm = |name: &str| BatchNorm2d::new(&weights.pp(name), 32);
        Ok(Self {
            encoder: [
                (conv("enc1", 1, 32)?, norm("bn1")?),
                (conv("enc2", 32, 32)?, norm("bn2")?),
            ],
            decoder: [conv("dec1", 32, 32)?, conv("dec2", 32, 32)?],
            output: conv("out", 32, 1)?,
        })
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone(); // [N, 1, 28, 28]
        for (conv, norm) in &self.encoder {
            x = max_pool2d(&relu(&norm.forward(pass, &conv.forward(pass, &x)?)?)?, 2)?;
        }
        // [N, 32, 7, 7]
        for conv in &self.decoder {
            x = upsample_nearest2d(&relu(&conv.forward(pass, &x)?)?, 2)?;
        }
        sigmoid(&self.output.forward(pass, &x)?) // [N, 1, 28, 28]
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
