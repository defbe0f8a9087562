use super::*;
use advae_sdk::candle_core::{DType, Device};

#[test]
fn images_become_one_logit_a_class() {
    let weights = Weights::init(0);
    let model = SoftmaxRegression::new(NoSettings {}, &weights).unwrap();
    assert_eq!(weights.parameter_count(), 784 * 10 + 10);
    let x = Tensor::zeros((3, 1, 28, 28), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(model.forward(&Pass::eval(), &x).unwrap().dims(), [3, 10]);
}
