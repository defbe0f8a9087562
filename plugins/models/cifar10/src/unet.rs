//! The U-net that purifies CIFAR-10 images.

use advae_sdk::nn::net::Node;
use advae_sdk::nn::{Conv2d, ConvTranspose2d, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

settings! {
    /// Defaults of the AdvAE paper's code (Li et al. 2019).
    pub struct UNetSettings {
        /// Convolutions per level, 1 (the paper's text) or 2 (its code). Default: as in the weights; 2 without weights.
        convolutions: Option<u64> = None,
    }
}

/// Channels of the levels, from the images' size to a sixteenth of it.
const LEVELS: [usize; 5] = [32, 64, 128, 256, 512];

/// Encoder: at each level two [c3 same, ReLU], max pooling 2 between levels. Decoder: at each level a transposed convolution 2 x 2 of
/// stride 2, the encoder's map of that level beside it, and two [c3 same, ReLU]. Then c3-3, added to the image, and a
/// sigmoid. 7,760,931 parameters; with one convolution a level 3,833,443.
pub struct UNet(Net);

impl UNet {
    /// The convolutions of a level, `name1` and on.
    fn level(net: &mut NetBuilder, weights: &Weights, name: &str, mut x: Node, to: usize, count: u64) -> Result<Node> {
        for i in 1..=count {
            let [from, ..] = net.shape(x);
            let layer = Conv2d::new(&weights.pp(&format!("{name}.conv{i}")), from, to, 3, 1, Padding::Same)?;
            x = net.conv2d(x, &layer)?;
            x = net.relu(x);
        }
        Ok(x)
    }
}

impl Purifier for UNet {
    type Settings = UNetSettings;
    const INPUT: Option<[usize; 3]> = Some(crate::INPUT);
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(settings: UNetSettings, weights: &Weights) -> Result<Self> {
        let there = weights
            .shape("enc0.conv1.weight")
            .map(|_| match weights.shape("enc0.conv2.weight") {
                Some(_) => 2,
                None => 1,
            });
        let count = match settings.convolutions {
            Some(count) => in_range("convolutions", count, 1..=2)?,
            None => there.unwrap_or(2),
        };
        let mut net = NetBuilder::new(crate::INPUT);
        let image = net.input();
        let (mut x, mut levels) = (image, vec![]);
        for (i, to) in LEVELS.into_iter().enumerate() {
            if i > 0 {
                x = net.max_pool2d(x, 2)?;
            }
            x = Self::level(&mut net, weights, &format!("enc{i}"), x, to, count)?;
            levels.push(x);
        }
        // [512, 2, 2]
        for (i, skip) in levels.into_iter().enumerate().rev().skip(1) {
            let ([from, ..], to) = (net.shape(x), LEVELS[i]);
            let up = ConvTranspose2d::new(&weights.pp(&format!("dec{i}.up")), from, to, 2, 2, Padding::Valid)?;
            x = net.conv_transpose2d(x, &up)?;
            x = net.concat(&[x, skip])?;
            x = Self::level(&mut net, weights, &format!("dec{i}"), x, to, count)?;
        }
        // [32, 32, 32]
        x = net.conv2d(x, &Conv2d::new(&weights.pp("out"), LEVELS[0], 3, 3, 1, Padding::Same)?)?;
        x = net.add(x, image)?;
        let x = net.sigmoid(x);
        Ok(Self(net.build(x)?))
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.0.forward(pass, x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{DType, Device, Var};
    use advae_sdk::nn::{save_safetensors, vjp, with_composed_ops};

    fn build(convolutions: Option<u64>, weights: &Weights) -> UNet {
        UNet::new(UNetSettings { convolutions }, weights).unwrap()
    }

    #[test]
    fn it_has_the_parameters_of_the_papers_code_and_of_its_text() {
        for (convolutions, parameters) in [(None, 7_760_931), (Some(2), 7_760_931), (Some(1), 3_833_443)] {
            let weights = Weights::init(1);
            let model = build(convolutions, &weights);
            assert_eq!(weights.parameter_count(), parameters);
            let x = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
            assert_eq!(model.purify(&Pass::eval(), &x).unwrap().dims(), [2, 3, 32, 32]);
        }
        let error = UNet::new(UNetSettings { convolutions: Some(3) }, &Weights::init(1));
        assert!(error.err().unwrap().to_string().contains("convolutions"));
    }

    #[test]
    fn weights_say_how_many_convolutions_there_are() {
        let narrow = Weights::init(1);
        build(Some(1), &narrow);
        let weights = Weights::from_safetensors(&save_safetensors(&narrow.params()).unwrap()).unwrap();
        build(None, &weights);
        weights.finish().unwrap();
        assert_eq!(weights.parameter_count(), 3_833_443);
    }

    #[test]
    fn training_and_attacking_through_it_fused_is_layer_by_layer() {
        let weights = Weights::init(1).with_dtype(DType::F64);
        let model = build(Some(1), &weights);
        let x = Var::rand_f64(0., 1., (2, 3, 32, 32), DType::F64, &Device::Cpu).unwrap();
        for pass in [Pass::eval(), Pass::training(1)] {
            let everything = || -> Vec<Tensor> {
                let y = model.purify(&pass, x.as_tensor()).unwrap();
                let cotangent = Tensor::arange(0f64, y.elem_count() as f64, &Device::Cpu).unwrap();
                let cotangent = cotangent.sin().unwrap().reshape(y.shape()).unwrap();
                let (dx, gradients) = vjp(x.as_tensor(), &y, &cotangent).unwrap();
                let params = weights.params();
                let at_weights = params.iter().filter_map(|p| gradients.get(p.var().as_tensor()));
                [y.detach(), dx.unwrap()]
                    .into_iter()
                    .chain(at_weights.cloned())
                    .collect()
            };
            let (fused, layers) = (everything(), with_composed_ops(everything));
            assert_eq!(fused.len(), if pass.track { 2 + 28 } else { 2 });
            for (i, (a, b)) in fused.iter().zip(&layers).enumerate() {
                let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                let apart = largest(&(a - b).unwrap()) / largest(b);
                assert!(apart < 1e-10, "number {i}: {apart}");
            }
        }
    }
}
