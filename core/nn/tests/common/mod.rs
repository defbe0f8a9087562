//! What the tests share.
#![allow(dead_code)]

use advae_nn::{Result, key_rng};
use candle_core::{DType, Device, Tensor};
use rand::Rng;

/// Uniform numbers in `+-1`, `f64`.
pub fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = key_rng(&[0x7e57, seed]);
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| 2.0 * rng.random::<f64>() - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The same in `f32`.
pub fn random_f32(seed: u64, shape: &[usize]) -> Tensor {
    random(seed, shape).to_dtype(DType::F32).unwrap()
}

/// Distinct numbers, at least 0.01 apart and from 0, shuffled: no kink and no tie is near.
pub fn distinct(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = key_rng(&[0xd157, seed]);
    let n = shape.iter().product::<usize>();
    let mut values: Vec<f64> = (0..n).map(|i| 0.01 * (i as f64 - n as f64 / 2.0 + 0.37)).collect();
    for i in (1..n).rev() {
        values.swap(i, rng.random_range(0..=i));
    }
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// All elements.
pub fn values(x: &Tensor) -> Vec<f64> {
    let x = x.to_dtype(DType::F64).unwrap();
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Largest absolute difference, relative to the largest value.
pub fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let scale = a.iter().chain(&b).fold(1e-12, |m: f64, v| m.max(v.abs()));
    let worst = a.iter().zip(&b).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
    worst / scale
}

/// Asserts that the gradient of `f` at `x` is right, by our kernels and composed of candle's operators,
/// and that the two outputs agree.
pub fn check_gradient(what: &str, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) {
    check_gradient_along(what, x, None, f);
}

/// The same along some random directions.
pub fn check_gradient_along(what: &str, x: &Tensor, directions: Option<usize>, f: impl Fn(&Tensor) -> Result<Tensor>) {
    let options = advae_nn::GradcheckOptions {
        directions,
        ..Default::default()
    };
    let report = advae_nn::gradcheck(&f, x, &options).unwrap();
    assert!(report.max_relative_error < 1e-7, "{what}: {report:?}");
    let composed = advae_nn::with_composed_ops(|| advae_nn::gradcheck(&f, x, &options)).unwrap();
    assert!(composed.max_relative_error < 1e-7, "{what}, composed: {composed:?}");
    let (ours, theirs) = (f(x).unwrap(), advae_nn::with_composed_ops(|| f(x)).unwrap());
    assert!(distance(&ours, &theirs) < 1e-12, "{what}: outputs differ");
}
