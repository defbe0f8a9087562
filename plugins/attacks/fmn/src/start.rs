//! Where a search starts.

use advae_sdk::attack::{Best, column};
use advae_sdk::candle_core::Tensor;
use advae_sdk::prelude::*;
use advae_sdk::serde::{Deserialize, Serialize};

/// The starts that the paper names, or both, one search after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(crate = "advae_sdk::serde", rename_all = "lowercase")]
pub enum Start {
    /// The clean image.
    Clean,
    /// An adversarial image near the boundary; the clean image where none is found.
    Adversarial,
    /// Both, of which the nearer result is kept.
    Both,
}

/// Images of noise per sample.
const IMAGES: u64 = 8;
/// Halvings of the distance to the boundary, the paper's.
const HALVINGS: u64 = 10;
/// Stream of the noise among a sample's generators.
const NOISE: u64 = 0x464d;

/// Questions that [`beyond`] asks.
pub const QUESTIONS: u64 = 1 + IMAGES * (1 + HALVINGS);

/// For every sample the nearest adversarial image on the way to [`IMAGES`] images of noise, and whether there is one; the clean image if
/// that is adversarial itself.
///
/// The paper goes from the clean image to one of another class, and halves the distance to the boundary 10 times; but an attack has no other
/// images than those it perturbs. The way is through the balls of the norm: their projections of the noise.
pub fn beyond(norm: Norm, oracle: &Oracle, objective: &Objective, x: &Tensor) -> Result<(Vec<bool>, Tensor)> {
    let n = oracle.samples();
    let places: Vec<usize> = (0..n).collect();
    let (mut best, mut asked) = (Best::new(n), 0);
    let mut offer = |images: &Tensor, lengths: &[f32]| {
        let logits = oracle.draw(oracle.pass().draw + asked).logits(images)?;
        asked += 1;
        let adversarial = objective.is_adversarial(&logits)?;
        let scores: Vec<f32> = lengths.iter().map(|length| -length).collect();
        best.offer(&places, images, &adversarial, &scores)?;
        Result::Ok(adversarial)
    };
    offer(x, &vec![0.; n])?;
    for k in 0..IMAGES {
        let noise = noise(oracle, x, k)?;
        let mut far: Vec<f32> = norm.length(&(&noise - x)?)?.to_vec1()?;
        let mut near = vec![0.; n];
        offer(&noise, &far)?;
        for _ in 0..HALVINGS {
            let middle: Vec<f32> = near.iter().zip(&far).map(|(near, far)| (near + far) / 2.).collect();
            let radii = column(&middle, x)?.flatten_all()?;
            let images = oracle.clip(&norm.project_each(&noise, x, &radii)?)?;
            for (i, adversarial) in offer(&images, &middle)?.into_iter().enumerate() {
                let end = if adversarial { &mut far[i] } else { &mut near[i] };
                *end = middle[i];
            }
        }
    }
    let out = best.nearest(x, f64::INFINITY)?;
    Ok((out.found.unwrap_or_default(), out.x_adv))
}

/// The `k`-th image of noise: uniform in squares of side 1, 2, 4 and 8, then of 1 again. Fine noise alone is of one class to many networks.
fn noise(oracle: &Oracle, x: &Tensor, k: u64) -> Result<Tensor> {
    let (n, c, h, w) = x.dims4()?;
    let (side, (low, high)) = (1 << (k % 4), oracle.bounds());
    let shape = [n, c, h.div_ceil(side), w.div_ceil(side)];
    let squares = oracle.pass().rand_uniform(&shape, low, high, NOISE + k, x.device())?;
    squares.upsample_nearest2d(h, w)
}
