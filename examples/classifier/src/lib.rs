//! Softmax regression on MNIST: clean accuracy 90.7 % on mnist-1k.
//!
//! cargo build --release && advae-host eval --classifier target/release/libmy_classifier.so

use advae_sdk::nn::{Linear, flatten};
use advae_sdk::prelude::*;

struct SoftmaxRegression {
    linear: Linear,
}

impl Classifier for SoftmaxRegression {
    type Settings = NoSettings;
    // Its layers are advae_sdk::nn's, which stay on the thread that calls them.
    const THREADING: Threading = Threading::Caller;

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        let linear = Linear::new(&weights.pp("linear"), 784, 10)?;
        Ok(Self { linear })
    }

    fn input(&self) -> [usize; 3] {
        [1, 28, 28]
    }

    fn classes(&self) -> usize {
        10
    }

    fn forward(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        self.linear.forward(pass, &flatten(x)?) // [N, 1, 28, 28] to [N, 10]
    }
}

// Without weights, it starts from random ones, to be trained with `advae-host train`.
export_plugin! { classifier: SoftmaxRegression, weights: { "mnist" => include_bytes!("mnist.safetensors") } }

#[cfg(test)]
mod tests;
