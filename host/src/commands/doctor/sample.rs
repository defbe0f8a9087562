//! What plugins are tried on: images of noise, keyed so that every run sees the same.

use crate::wire::model::Model;
use crate::wire::tensor::Tensor;
use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Shape of an image where the plugin takes any.
pub const ANY: [usize; 3] = [1, 28, 28];

/// Shape of the images a model is tried on.
pub fn input(model: &Model) -> [usize; 3] {
    model.info().input.unwrap_or(ANY)
}

/// Ids of the samples; gaps, so that an id cannot be mistaken for a position.
pub const IDS: [u64; 7] = [3, 17, 4, 100, 41, 8, 260];

/// Images in `[0.2, 0.8]`, away from the bounds, where a clamp would bend the gradient.
pub fn images(n: usize, shape: [usize; 3]) -> Tensor {
    uniform(&[n, shape[0], shape[1], shape[2]], 1, 0.2, 0.8)
}

/// Real images `[N, C, H, W]`, the first of the embedded sample of that shape, and what they are called; none where there is no such
/// sample.
///
/// # Errors
/// Where the embedded images cannot be read.
pub fn real(n: usize, shape: [usize; 3]) -> Result<Option<(Tensor, String)>> {
    let Some(set) = advae_data::sample_for(shape) else {
        return Ok(None);
    };
    let images = set.find(None)?.dataset.take(n);
    let [c, h, w] = shape;
    let x = Tensor::new(vec![images.len(), c, h, w], images.images)?;
    Ok(Some((x, format!("images of {}", set.family.name))))
}

/// Numbers in `[-1, 1]`.
pub fn signed(shape: &[usize], seed: u64) -> Tensor {
    uniform(shape, seed, -1., 1.)
}

/// Numbers in `[low, high)`.
pub fn uniform(shape: &[usize], seed: u64, low: f32, high: f32) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let data = (0..shape.iter().product())
        .map(|_| rng.random_range(low..high))
        .collect();
    Tensor {
        shape: shape.to_vec(),
        data,
    }
}

/// Largest absolute value, 1 where all are zero.
pub fn scale(a: &Tensor) -> f64 {
    let largest = a.data.iter().fold(0f64, |m, v| m.max(f64::from(v.abs())));
    if largest > 0. { largest } else { 1. }
}
