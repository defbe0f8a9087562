//! The classifiers. ReLU follows every convolution and every hidden linear layer; weights are Glorot-uniform, biases 0.

use advae_sdk::nn::net::Node;
use advae_sdk::nn::{Conv2d, Dropout, Linear, Net, NetBuilder, Padding};
use advae_sdk::prelude::*;

/// A network under construction: names its layers.
struct Layers<'a> {
    net: NetBuilder,
    weights: &'a Weights,
}

impl Layers<'_> {
    /// Convolution and ReLU.
    fn conv(&mut self, name: &str, x: Node, to: usize, kernel: usize, stride: usize, padding: Padding) -> Result<Node> {
        let [from, ..] = self.net.shape(x);
        let layer = Conv2d::new(&self.weights.pp(name), from, to, kernel, stride, padding)?;
        let x = self.net.conv2d(x, &layer)?;
        Ok(self.net.relu(x))
    }

    fn linear(&mut self, name: &str, x: Node, to: usize) -> Result<Node> {
        let from = self.net.shape(x).iter().product();
        self.net.linear(x, &Linear::new(&self.weights.pp(name), from, to)?)
    }

    /// Fully connected layer and ReLU.
    fn hidden(&mut self, name: &str, x: Node, to: usize) -> Result<Node> {
        let x = self.linear(name, x, to)?;
        Ok(self.net.relu(x))
    }

    /// Dropout with probability `p`, the model's number `stream`.
    fn dropout(&mut self, x: Node, p: f64, stream: u64) -> Node {
        self.net.dropout(x, Dropout::new(p, stream))
    }
}

/// A classifier given by its penultimate layer and the name of its last, linear one.
macro_rules! classifier {
    ($(#[$doc:meta])* $model:ident, $last:literal, |$net:ident, $x:ident| $penultimate:expr) => {
        $(#[$doc])*
        pub struct $model {
            features: Net,
            logits: Net,
        }

        impl Classifier for $model {
            type Settings = NoSettings;
            const THREADING: Threading = Threading::Caller;
            const BATCH: Option<usize> = Some(24);

            fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
                let mut $net = Layers { net: NetBuilder::new(crate::INPUT), weights };
                let $x = $net.net.input();
                let features = $penultimate;
                let features = $net.net.flatten(features);
                let logits = $net.linear($last, features, crate::CLASSES)?;
                Ok(Self { features: $net.net.build(features)?, logits: $net.net.build(logits)? })
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
    };
}

classifier! {
    /// X: c3-32, c3-32, maxpool 2, c3-64, c3-64, maxpool 2 (all valid), FC200, dropout .5, FC200, FC10. 312,202 parameters.
    ModelX, "fc3", |net, x| {
        let x = net.conv("conv1", x, 32, 3, 1, Padding::Valid)?; // [32, 26, 26]
        let x = net.conv("conv2", x, 32, 3, 1, Padding::Valid)?;
        let x = net.net.max_pool2d(x, 2)?; // [32, 12, 12]
        let x = net.conv("conv3", x, 64, 3, 1, Padding::Valid)?; // [64, 10, 10]
        let x = net.conv("conv4", x, 64, 3, 1, Padding::Valid)?;
        let x = net.net.max_pool2d(x, 2)?; // [64, 4, 4]
        let x = net.hidden("fc1", x, 200)?;
        let x = net.dropout(x, 0.5, 1);
        net.hidden("fc2", x, 200)?
    }
}

classifier! {
    /// A: c5-64 same, c5-64 stride 2 valid, dropout .25, FC128, dropout .5, FC10. 1,285,194 parameters.
    ModelA, "fc2", |net, x| {
        let x = net.conv("conv1", x, 64, 5, 1, Padding::Same)?; // [64, 28, 28]
        let x = net.conv("conv2", x, 64, 5, 2, Padding::Valid)?; // [64, 12, 12]
        let x = net.dropout(x, 0.25, 1);
        let x = net.hidden("fc1", x, 128)?;
        net.dropout(x, 0.5, 2)
    }
}

classifier! {
    /// B: dropout .2 on the input, c8-64 stride 2 same, c6-128 stride 2 valid, c5-128 valid, dropout .5, FC10. 710,218 parameters.
    ModelB, "fc1", |net, x| {
        let x = net.dropout(x, 0.2, 1);
        let x = net.conv("conv1", x, 64, 8, 2, Padding::Same)?; // [64, 14, 14]
        let x = net.conv("conv2", x, 128, 6, 2, Padding::Valid)?; // [128, 5, 5]
        let x = net.conv("conv3", x, 128, 5, 1, Padding::Valid)?; // [128, 1, 1]
        net.dropout(x, 0.5, 2)
    }
}

classifier! {
    /// C: c3-128 same, c3-64 stride 2 valid, dropout .25, FC128, dropout .5, FC10. 1,460,938 parameters.
    ModelC, "fc2", |net, x| {
        let x = net.conv("conv1", x, 128, 3, 1, Padding::Same)?; // [128, 28, 28]
        let x = net.conv("conv2", x, 64, 3, 2, Padding::Valid)?; // [64, 13, 13]
        let x = net.dropout(x, 0.25, 1);
        let x = net.hidden("fc1", x, 128)?;
        net.dropout(x, 0.5, 2)
    }
}

classifier! {
    /// D: FC200, dropout .5, FC200, dropout .5, FC10. 199,210 parameters.
    ModelD, "fc3", |net, x| {
        let x = net.hidden("fc1", x, 200)?;
        let x = net.dropout(x, 0.5, 1);
        let x = net.hidden("fc2", x, 200)?;
        net.dropout(x, 0.5, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advae_sdk::candle_core::{DType, Device};

    fn check<C: Classifier<Settings = NoSettings>>(parameters: usize, features: usize) {
        let weights = Weights::init(1);
        let model = C::new(NoSettings {}, &weights).unwrap();
        assert_eq!(weights.parameter_count(), parameters);
        let x = Tensor::zeros((3, 1, 28, 28), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(model.forward(&Pass::eval(), &x).unwrap().dims(), [3, 10]);
        assert_eq!(
            model.features(&Pass::eval(), &x).unwrap().unwrap().dims(),
            [3, features]
        );
    }

    #[test]
    fn the_classifiers_have_the_papers_parameters() {
        check::<ModelX>(312_202, 200);
        check::<ModelA>(1_285_194, 128);
        check::<ModelB>(710_218, 128);
        check::<ModelC>(1_460_938, 128);
        check::<ModelD>(199_210, 200);
    }
}
