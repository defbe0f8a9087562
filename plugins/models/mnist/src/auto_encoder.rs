//! The auto-encoder that purifies MNIST images.

use advae_sdk::candle_core::Device;
use advae_sdk::nn::{BatchNorm2d, Conv2d, Init, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the AdvAE paper (Li et al. 2019).
    pub struct AutoEncoderSettings {
        /// Channels of every hidden layer, 1 to 512. Default: as in the weights; 32 (the paper's) without weights. Weights with fewer
        /// channels are widened, so that training can continue from them.
        channels: Option<u64> = None,
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
        let there = weights.shape("enc1.weight").map(|shape| shape[0]);
        let wide = match settings.channels {
            Some(channels) => in_range("channels", channels, 1..=512)? as usize,
            None => there.unwrap_or(32),
        };
        let weights = &match there {
            Some(narrow) if narrow < wide => widen(weights, [narrow, wide])?,
            _ => weights.clone(),
        };
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

/// The same function on more hidden channels (Net2Net: Chen, Goodfellow and Shlens 2016): each new one copies an old one, and copies
/// share what went out of it. They share it unequally, at random, so that their gradients differ.
fn widen(weights: &Weights, [narrow, wide]: [usize; 2]) -> Result<Weights> {
    let copied: Vec<u32> = (0..wide).map(|channel| (channel % narrow) as u32).collect();
    let copied = Tensor::new(copied, &Device::Cpu)?;
    let noise = Weights::init(0);
    weights.map(|name, tensor| {
        let mut tensor = match name.starts_with("out.") {
            true => tensor,
            false => tensor.index_select(&copied, 0)?,
        };
        if tensor.rank() == 4 && !name.starts_with("enc1.") {
            // [outputs, wide]: 1 to 3 parts for each copy, over the sum of all copies' parts.
            let parts = noise.param(name, &[tensor.dim(0)?, wide], Init::Uniform { bound: 1. })?;
            let parts = (parts.var().as_tensor().detach() + 2.)?;
            let sums = Tensor::zeros((parts.dim(0)?, narrow), parts.dtype(), &Device::Cpu)?;
            let sums = sums.index_add(&copied, &parts, 1)?.index_select(&copied, 1)?;
            let shares = (parts / sums)?.unsqueeze(2)?.unsqueeze(3)?;
            tensor = tensor.index_select(&copied, 1)?.broadcast_mul(&shares)?;
        }
        Ok(tensor)
    })
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
        AutoEncoder::new(AutoEncoderSettings { channels: Some(16) }, &half).unwrap();
        // 3 x 3 taps: 1 to 16, three times 16 to 16, 16 to 1; biases; scale and shift of two norms.
        assert_eq!(half.parameter_count(), 9 * (16 + 3 * 256 + 16) + 4 * 16 + 1 + 4 * 16);
    }

    #[test]
    fn weights_of_fewer_channels_are_widened_to_the_same_function() {
        let narrow = Weights::init(1);
        let old = AutoEncoder::new(AutoEncoderSettings { channels: Some(4) }, &narrow).unwrap();
        // Biases and norms start at 0 and 1, where a mistaken copy would not show.
        let other = Weights::init(2);
        for param in narrow.params().iter().filter(|param| param.var().rank() == 1) {
            let value = other
                .param(param.name(), param.var().dims(), Init::Uniform { bound: 0.5 })
                .unwrap();
            param.set(&(value.var().as_tensor() + 1.).unwrap()).unwrap();
        }
        let file = advae_sdk::nn::save_safetensors(&narrow.params()).unwrap();
        let x = Tensor::rand(0f32, 1., (3, 1, 28, 28), &Device::Cpu).unwrap();
        let expected = old.purify(&Pass::eval(), &x).unwrap();
        for (channels, has) in [(None, 4), (Some(4), 4), (Some(8), 8), (Some(10), 10)] {
            let weights = Weights::from_safetensors(&file).unwrap();
            let new = AutoEncoder::new(AutoEncoderSettings { channels }, &weights).unwrap();
            weights.finish().unwrap();
            assert_eq!(weights.params()[0].var().dims(), [has, 1, 3, 3]);
            let off = (new.purify(&Pass::eval(), &x).unwrap() - &expected)
                .unwrap()
                .abs()
                .unwrap();
            let off = off.max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-6, "{channels:?}: {off}");
        }
        let weights = Weights::from_safetensors(&file).unwrap();
        let error = AutoEncoder::new(AutoEncoderSettings { channels: Some(3) }, &weights);
        assert!(error.err().unwrap().to_string().contains("enc1.weight"));
    }
}
