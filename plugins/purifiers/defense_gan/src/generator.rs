//! The generator of DefenseGAN for MNIST.

use advae_sdk::nn::{ConvTranspose2d, Init, Linear, Net, NetBuilder, Padding, Param, relu};
use advae_sdk::prelude::*;

/// Numbers that an image is made from.
pub const LATENT: usize = 128;

/// 1,554,177 parameters: FC to 4x4x256, transposed convolutions 5x5 of stride 2 to 7x7x128, 14x14x64 and 28x28x1, ReLU between
/// them and a sigmoid at the end. (The authors make 8x8 and cut it to 7x7; here the layer is asked for 7x7.)
#[derive(Clone)]
pub struct Generator {
    first: Linear,
    net: Net,
    /// Parameters, in training.
    pub params: Vec<Param>,
    /// Training iterations, thousands and the rest: both exact in 16 bits.
    iterations: Param,
}

impl Generator {
    /// Asks for its parameters.
    pub fn new(weights: &Weights) -> Result<Self> {
        let first = Linear::new(&weights.pp("fc"), LATENT, 256 * 16)?;
        let mut net = NetBuilder::new([256, 4, 4]);
        let mut x = net.input();
        for (name, from, to, size) in [("up1", 256, 128, 7), ("up2", 128, 64, 14), ("up3", 64, 1, 28)] {
            let layer = ConvTranspose2d::new(&weights.pp(name), from, to, 5, 2, Padding::Same)?;
            x = net.conv_transpose2d(x, &layer.with_output([size, size]))?;
            x = if to == 1 { net.sigmoid(x) } else { net.relu(x) };
        }
        let net = net.build(x)?;
        let params = weights.params();
        Ok(Self {
            first,
            net,
            params: params.into_iter().filter(Param::trainable).collect(),
            iterations: weights.buffer("iterations", &[2], Init::Zeros)?,
        })
    }

    /// `z` `[N, 128]` to images `[N, 1, 28, 28]`.
    pub fn forward(&self, pass: &Pass, z: &Tensor) -> Result<Tensor> {
        let map = relu(&self.first.forward(pass, z)?)?.reshape((z.dim(0)?, 256, 4, 4))?;
        self.net.forward(pass, &map)
    }

    /// How many iterations it was trained for.
    pub fn trained(&self) -> u64 {
        let digits = self.iterations.var().to_vec1::<f32>().unwrap_or_default();
        digits.iter().fold(0, |count, digit| 1000 * count + *digit as u64)
    }

    /// Notes that number.
    pub fn set_trained(&self, iterations: u64) -> Result<()> {
        let digits = [(iterations / 1000) as f32, (iterations % 1000) as f32];
        self.iterations
            .set(&Tensor::new(&digits, self.iterations.var().device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_papers_parameters_and_counts_its_training() {
        let weights = Weights::init(1);
        let generator = Generator::new(&weights).unwrap();
        assert_eq!(weights.parameter_count(), 1_554_177);
        let z = Tensor::ones(
            (3, LATENT),
            advae_sdk::candle_core::DType::F32,
            &advae_sdk::candle_core::Device::Cpu,
        )
        .unwrap();
        assert_eq!(generator.forward(&Pass::eval(), &z).unwrap().dims(), [3, 1, 28, 28]);
        assert_eq!(generator.trained(), 0);
        generator.set_trained(21_607).unwrap();
        assert_eq!(generator.trained(), 21_607);
    }
}
