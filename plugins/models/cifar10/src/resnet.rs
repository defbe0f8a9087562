//! ResNetV2-29 (He et al. 2016, "Identity mappings in deep residual networks"), as the AdvAE paper has it.

use advae_sdk::nn::net::Node;
use advae_sdk::nn::{BatchNorm2d, Conv2d, Init, Linear, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

/// Channels inside the blocks of a stage, channels they give, and the stride of the first one.
const STAGES: [(usize, usize, usize); 3] = [(16, 64, 1), (64, 128, 2), (128, 256, 2)];
/// Blocks of a stage.
const BLOCKS: usize = 3;

/// Convolutions with bias, He-normal; batch norm and ReLU before each but the first.
///
/// Stem [c3-16, BN, ReLU]; three stages of three bottleneck blocks [BN, ReLU, c1-mid, BN, ReLU, c3-mid, BN, ReLU, c1-out], each
/// added to what it read; BN, ReLU, mean of the 8 x 8 places, FC10. The very first block begins with its convolution. The first
/// block of a stage has the stage's stride in its first convolution, and a 1 x 1 convolution of that stride in place of
/// the identity. 849,002 parameters, of which 5,216 are running statistics.
pub struct ResNet29 {
    features: Net,
    logits: Net,
}

/// A network under construction: names its layers.
struct Layers<'a> {
    net: NetBuilder,
    weights: &'a Weights,
}

impl Layers<'_> {
    fn conv(&mut self, name: &str, x: Node, to: usize, kernel: usize, stride: usize) -> Result<Node> {
        let [from, ..] = self.net.shape(x);
        let fan_in = from * kernel * kernel;
        let (weights, init) = (self.weights.pp(name), Init::HeNormal { fan_in });
        let layer = Conv2d::with_init(&weights, [from, to], kernel, stride, Padding::Same, init)?;
        self.net.conv2d(x, &layer)
    }

    /// Batch norm and ReLU.
    fn activate(&mut self, name: &str, x: Node) -> Result<Node> {
        let [channels, ..] = self.net.shape(x);
        let x = self
            .net
            .batch_norm(x, &BatchNorm2d::new(&self.weights.pp(name), channels)?)?;
        Ok(self.net.relu(x))
    }

    /// Block number `block` of a stage, as `name`.
    fn bottleneck(&mut self, name: &str, x: Node, stage: usize, block: usize) -> Result<Node> {
        let (mid, out, stride) = STAGES[stage];
        let stride = if block == 0 { stride } else { 1 };
        let at = |layer: &str| format!("{name}.{layer}");
        let mut y = x;
        if (stage, block) != (0, 0) {
            y = self.activate(&at("bn1"), y)?;
        }
        y = self.conv(&at("conv1"), y, mid, 1, stride)?;
        y = self.activate(&at("bn2"), y)?;
        y = self.conv(&at("conv2"), y, mid, 3, 1)?;
        y = self.activate(&at("bn3"), y)?;
        y = self.conv(&at("conv3"), y, out, 1, 1)?;
        let shortcut = match block {
            0 => self.conv(&at("shortcut"), x, out, 1, stride)?,
            _ => x,
        };
        self.net.add(y, shortcut)
    }
}

impl Classifier for ResNet29 {
    type Settings = NoSettings;
    const THREADING: Threading = Threading::Caller;
    const BATCH: Option<usize> = Some(24);

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let mut layers = Layers {
            net: NetBuilder::new(crate::INPUT),
            weights,
        };
        let mut x = layers.net.input();
        x = layers.conv("stem.conv", x, 16, 3, 1)?;
        x = layers.activate("stem.bn", x)?; // [16, 32, 32]
        for stage in 0..STAGES.len() {
            for block in 0..BLOCKS {
                x = layers.bottleneck(&format!("stage{stage}.block{block}"), x, stage, block)?;
            }
        }
        x = layers.activate("bn", x)?; // [256, 8, 8]
        let mut net = layers.net;
        x = net.global_avg_pool2d(x)?;
        let features = net.flatten(x);
        let logits = net.linear(features, &Linear::new(&weights.pp("fc"), STAGES[2].1, crate::CLASSES)?)?;
        Ok(Self {
            features: net.build(features)?,
            logits: net.build(logits)?,
        })
    }

    fn input(&self) -> [usize; 3] {
        crate::INPUT
    }

    fn classes(&self) -> usize {
        crate::CLASSES
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.logits.forward(pass, x)
    }

    fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        self.features.forward(pass, x).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{DType, Device, Var};
    use advae_sdk::nn::{vjp, with_composed_ops};

    #[test]
    fn it_has_the_papers_parameters_and_shapes() {
        let weights = Weights::init(1);
        let model = ResNet29::new(NoSettings {}, &weights).unwrap();
        let all: usize = weights.params().iter().map(|p| p.var().elem_count()).sum();
        assert_eq!((all, all - weights.parameter_count()), (849_002, 5_216));
        let x = Tensor::zeros((2, 3, 32, 32), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(model.forward(&Pass::eval(), &x).unwrap().dims(), [2, 10]);
        assert_eq!(model.features(&Pass::eval(), &x).unwrap().unwrap().dims(), [2, 256]);
    }

    /// Logits, gradient at the images, and gradients at all parameters.
    fn everything(model: &ResNet29, weights: &Weights, pass: &Pass, x: &Var) -> Vec<Tensor> {
        let y = model.forward(pass, x.as_tensor()).unwrap();
        let cotangent = Tensor::arange(0f64, y.elem_count() as f64, &Device::Cpu).unwrap();
        let cotangent = (cotangent.sin().unwrap()).reshape(y.shape()).unwrap();
        let (dx, gradients) = vjp(x.as_tensor(), &y, &cotangent).unwrap();
        let params = weights.params();
        let at_weights = params.iter().filter_map(|p| gradients.get(p.var().as_tensor()));
        let at_weights: Vec<Tensor> = at_weights.cloned().collect();
        assert_eq!(at_weights.len(), if pass.track { 2 * (32 + 28) } else { 0 });
        [y.detach(), dx.unwrap()].into_iter().chain(at_weights).collect()
    }

    #[test]
    fn training_and_attacking_it_fused_is_layer_by_layer() {
        let weights = Weights::init(1).with_dtype(DType::F64);
        let model = ResNet29::new(NoSettings {}, &weights).unwrap();
        let x = Var::rand_f64(0., 1., (3, 3, 32, 32), DType::F64, &Device::Cpu).unwrap();
        for pass in [Pass::eval(), Pass::training(1)] {
            let fused = everything(&model, &weights, &pass, &x);
            let layers = with_composed_ops(|| everything(&model, &weights, &pass, &x));
            for (i, (a, b)) in fused.iter().zip(&layers).enumerate() {
                let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
                // The gradient of a bias before a norm by batch statistics is 0 but for rounding.
                let apart = largest(&(a - b).unwrap()) / largest(b).max(1.);
                assert!(apart < 1e-10, "number {i}: {apart}");
            }
        }
    }
}
