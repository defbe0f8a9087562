//! Small targets and images that the tests of several attacks share. What fails here panics, as a test does.
#![allow(clippy::missing_panics_doc)]

use super::Testbed;
use crate::{Ball, Norm};
use candle_core::{Device, Tensor};

/// Shape of the images: `[C,H,W]`.
pub const INPUT: [usize; 3] = [1, 3, 3];

/// A network of two layers with five classes.
pub fn network() -> Testbed {
    Testbed::mlp(INPUT, 16, 5, 3).expect("it has units and classes")
}

/// From class 0 the plane of class 1 is the nearest to [`grey`]; class 2 is farther away. Also the nearer plane's weights.
pub fn planes() -> (Testbed, Vec<f32>) {
    let weight: Vec<f32> = (0..9).map(|i| i as f32 - 4.).collect();
    let weights = [vec![0.; 9], weight.clone(), weight.iter().rev().copied().collect()];
    let target = Testbed::linear(INPUT, &weights, &[0.6, 0., -1.]).expect("rows are equally long");
    (target, weight)
}

/// `n` images of pixels in `[0,1]`, some of them at the bounds.
pub fn images(n: usize) -> Tensor {
    images_of(INPUT, n)
}

/// The same of another shape `[C,H,W]`.
pub fn images_of([c, h, w]: [usize; 3], n: usize) -> Tensor {
    let pixel = |i: usize| ((i * 37 % 23) as f32 / 15. - 0.2).clamp(0., 1.);
    let pixels: Vec<f32> = (0..n * c * h * w).map(pixel).collect();
    Tensor::from_vec(pixels, (n, c, h, w), &Device::Cpu).expect("there are as many pixels")
}

/// One image, grey all over.
pub fn grey() -> Tensor {
    let [c, h, w] = INPUT;
    Tensor::full(0.5f32, (1, c, h, w), &Device::Cpu).expect("a tensor can be filled")
}

/// Ids of `n` samples.
pub fn ids(n: usize) -> Vec<u64> {
    (100..100 + n as u64).collect()
}

/// All numbers of `x` (`f32`), in the order of memory.
pub fn values(x: &Tensor) -> Vec<f32> {
    let flat = x.flatten_all().and_then(|x| x.to_vec1());
    flat.expect("they are f32")
}

/// Distance of every image of `a` from that of `b`, `[N,C,H,W]` both.
pub fn lengths(norm: Norm, a: &Tensor, b: &Tensor) -> Vec<f32> {
    let lengths = (a - b)
        .and_then(|apart| norm.length(&apart))
        .and_then(|lengths| lengths.to_vec1());
    lengths.expect("both have one shape")
}
