//! The classifiers. ReLU follows every convolution and every hidden linear layer; weights are Glorot-uniform, biases 0.

use advae_sdk::nn::{Conv2d, Dropout, Linear, Padding, flatten, max_pool2d, relu};
use advae_sdk::prelude::*;

fn conv(
    weights: &Weights,
    name: &str,
    from: usize,
    to: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
) -> Result<Conv2d> {
    Conv2d::new(&weights.pp(name), from, to, kernel, stride, padding)
}

fn linear(weights: &Weights, name: &str, from: usize, to: usize) -> Result<Linear> {
    Linear::new(&weights.pp(name), from, to)
}

/// What the five have in common: the plugin's side of a network, given as features and a last linear layer.
macro_rules! classifier {
    ($model:ty) => {
        impl Classifier for $model {
            type Settings = NoSettings;
            const INPUT: [usize; 3] = crate::INPUT;
            const CLASSES: usize = crate::CLASSES;
            const THREADING: Threading = Threading::Caller;

            fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
                <$model>::build(weights)
            }

            fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
                self.logits.forward(pass, &self.penultimate(pass, x)?)
            }

            fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
                self.penultimate(pass, x).map(Some)
            }
        }
    };
}

/// X: c3-32, c3-32, maxpool 2, c3-64, c3-64, maxpool 2 (all valid), FC200, dropout .5, FC200, FC10. 312,202 parameters.
pub struct ModelX {
    convs: [Conv2d; 4],
    hidden: [Linear; 2],
    dropout: Dropout,
    logits: Linear,
}

classifier!(ModelX);

impl ModelX {
    fn build(weights: &Weights) -> Result<Self> {
        let conv = |name: &str, from, to| conv(weights, name, from, to, 3, 1, Padding::Valid);
        Ok(Self {
            convs: [
                conv("conv1", 1, 32)?,
                conv("conv2", 32, 32)?,
                conv("conv3", 32, 64)?,
                conv("conv4", 64, 64)?,
            ],
            hidden: [linear(weights, "fc1", 1024, 200)?, linear(weights, "fc2", 200, 200)?],
            dropout: Dropout::new(0.5, 1),
            logits: linear(weights, "fc3", 200, 10)?,
        })
    }

    fn penultimate(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let [conv1, conv2, conv3, conv4] = &self.convs;
        let x = relu(&conv1.forward(pass, x)?)?; // [N, 32, 26, 26]
        let x = max_pool2d(&relu(&conv2.forward(pass, &x)?)?, 2)?; // [N, 32, 12, 12]
        let x = relu(&conv3.forward(pass, &x)?)?; // [N, 64, 10, 10]
        let x = max_pool2d(&relu(&conv4.forward(pass, &x)?)?, 2)?; // [N, 64, 4, 4]
        let x = relu(&self.hidden[0].forward(pass, &flatten(&x)?)?)?;
        relu(&self.hidden[1].forward(pass, &self.dropout.forward(pass, &x)?)?) // [N, 200]
    }
}

/// A: c5-64 same, c5-64 stride 2 valid, dropout .25, FC128, dropout .5, FC10. 1,285,194 parameters.
pub struct ModelA {
    convs: [Conv2d; 2],
    hidden: Linear,
    dropouts: [Dropout; 2],
    logits: Linear,
}

classifier!(ModelA);

impl ModelA {
    fn build(weights: &Weights) -> Result<Self> {
        Ok(Self {
            convs: [
                conv(weights, "conv1", 1, 64, 5, 1, Padding::Same)?,
                conv(weights, "conv2", 64, 64, 5, 2, Padding::Valid)?,
            ],
            hidden: linear(weights, "fc1", 9216, 128)?,
            dropouts: [Dropout::new(0.25, 1), Dropout::new(0.5, 2)],
            logits: linear(weights, "fc2", 128, 10)?,
        })
    }

    fn penultimate(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let x = relu(&self.convs[0].forward(pass, x)?)?; // [N, 64, 28, 28]
        let x = relu(&self.convs[1].forward(pass, &x)?)?; // [N, 64, 12, 12]
        let x = self.dropouts[0].forward(pass, &flatten(&x)?)?;
        let x = relu(&self.hidden.forward(pass, &x)?)?;
        self.dropouts[1].forward(pass, &x) // [N, 128]
    }
}

/// B: dropout .2 on the input, c8-64 stride 2 same, c6-128 stride 2 valid, c5-128 valid, dropout .5, FC10. 710,218 parameters.
pub struct ModelB {
    convs: [Conv2d; 3],
    dropouts: [Dropout; 2],
    logits: Linear,
}

classifier!(ModelB);

impl ModelB {
    fn build(weights: &Weights) -> Result<Self> {
        Ok(Self {
            convs: [
                conv(weights, "conv1", 1, 64, 8, 2, Padding::Same)?,
                conv(weights, "conv2", 64, 128, 6, 2, Padding::Valid)?,
                conv(weights, "conv3", 128, 128, 5, 1, Padding::Valid)?,
            ],
            dropouts: [Dropout::new(0.2, 1), Dropout::new(0.5, 2)],
            logits: linear(weights, "fc1", 128, 10)?,
        })
    }

    fn penultimate(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let x = self.dropouts[0].forward(pass, x)?;
        let x = relu(&self.convs[0].forward(pass, &x)?)?; // [N, 64, 14, 14]
        let x = relu(&self.convs[1].forward(pass, &x)?)?; // [N, 128, 5, 5]
        let x = relu(&self.convs[2].forward(pass, &x)?)?; // [N, 128, 1, 1]
        self.dropouts[1].forward(pass, &flatten(&x)?) // [N, 128]
    }
}

/// C: c3-128 same, c3-64 stride 2 valid, dropout .25, FC128, dropout .5, FC10. 1,460,938 parameters.
pub struct ModelC {
    convs: [Conv2d; 2],
    hidden: Linear,
    dropouts: [Dropout; 2],
    logits: Linear,
}

classifier!(ModelC);

impl ModelC {
    fn build(weights: &Weights) -> Result<Self> {
        Ok(Self {
            convs: [
                conv(weights, "conv1", 1, 128, 3, 1, Padding::Same)?,
                conv(weights, "conv2", 128, 64, 3, 2, Padding::Valid)?,
            ],
            hidden: linear(weights, "fc1", 10816, 128)?,
            dropouts: [Dropout::new(0.25, 1), Dropout::new(0.5, 2)],
            logits: linear(weights, "fc2", 128, 10)?,
        })
    }

    fn penultimate(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let x = relu(&self.convs[0].forward(pass, x)?)?; // [N, 128, 28, 28]
        let x = relu(&self.convs[1].forward(pass, &x)?)?; // [N, 64, 13, 13]
        let x = self.dropouts[0].forward(pass, &flatten(&x)?)?;
        let x = relu(&self.hidden.forward(pass, &x)?)?;
        self.dropouts[1].forward(pass, &x) // [N, 128]
    }
}

/// D: FC200, dropout .5, FC200, dropout .5, FC10. 199,210 parameters.
pub struct ModelD {
    hidden: [Linear; 2],
    dropouts: [Dropout; 2],
    logits: Linear,
}

classifier!(ModelD);

impl ModelD {
    fn build(weights: &Weights) -> Result<Self> {
        Ok(Self {
            hidden: [linear(weights, "fc1", 784, 200)?, linear(weights, "fc2", 200, 200)?],
            dropouts: [Dropout::new(0.5, 1), Dropout::new(0.5, 2)],
            logits: linear(weights, "fc3", 200, 10)?,
        })
    }

    fn penultimate(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        let mut x = flatten(x)?; // [N, 784]
        for (linear, dropout) in self.hidden.iter().zip(&self.dropouts) {
            x = dropout.forward(pass, &relu(&linear.forward(pass, &x)?)?)?;
        }
        Ok(x) // [N, 200]
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
