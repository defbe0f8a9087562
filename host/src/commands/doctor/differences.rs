//! A gradient against central differences of the output, both through the plugin's `.so`.

use super::checklist::Finding;
use super::gradient::backward;
use super::model::input;
use super::sample::{IDS, images, signed};
use crate::wire::model::Model;
use crate::wire::tensor::{Call, Tensor};
use anyhow::Result;

/// Lengths of the steps. Long ones bend, short ones drown in rounding: the best one counts.
const STEPS: [f64; 4] = [0.3, 0.1, 0.03, 0.01];
/// Directions a sample, of either kind.
const ROUNDS: u64 = 3;

/// A direction that a slope is measured along.
#[derive(Clone, Copy)]
enum Along {
    /// Random lengths in the gradient's own signs: the slope is steep, so that little error is left to rounding.
    Gradient,
    /// Random: sees what is missing from the gradient, but through more rounding.
    Anywhere,
}

impl Along {
    /// Relative error from which on a gradient is wrong.
    fn limit(self) -> f64 {
        match self {
            Self::Gradient => 1e-2,
            Self::Anywhere => 1e-1,
        }
    }

    /// A direction of unit length for every sample.
    fn direction(self, gradient: &Tensor, seed: u64) -> Tensor {
        let mut direction = signed(&gradient.shape, seed);
        if matches!(self, Self::Gradient) {
            let pairs = direction.data.iter_mut().zip(&gradient.data);
            pairs
                .filter(|(_, g)| **g != 0.)
                .for_each(|(d, g)| *d = d.abs() * g.signum());
        }
        unit(direction)
    }
}

/// Compares the rule `exact` with central differences. `default`: the purifier's own rule, where that is another.
pub fn examine(model: &Model, default: Option<&str>) -> Result<Finding> {
    let (steep, any) = (errors(model, Along::Gradient)?, errors(model, Along::Anywhere)?);
    let (Some(steep), Some(any)) = (median(steep), median(any)) else {
        let text = "it is too small to be measured with these weights: try others, as PLUGIN@WEIGHTS";
        return Ok(Finding::Warn(text.into()));
    };
    let fine = steep <= Along::Gradient.limit() && any <= Along::Anywhere.limit();
    let text = format!("off by {steep:.1e} along itself, {any:.1e} along random directions (medians)");
    Ok(match default {
        // What nobody goes by who does not ask for it.
        Some(rule) => {
            let advice = format!("no guide for steps of 0.01 to 0.3; attacks go by {rule} unless told otherwise");
            Finding::hope(fine, text, &advice)
        }
        None => {
            let advice = "it is not the derivative of the output: check every operator's backward pass";
            Finding::expect(fine, text, advice)
        }
    })
}

/// A direction may cross a kink of the network: the median does not mind.
fn median(mut errors: Vec<f64>) -> Option<f64> {
    errors.sort_by(f64::total_cmp);
    errors.get(errors.len() / 2).copied()
}

fn errors(model: &Model, along: Along) -> Result<Vec<f64>> {
    let rounds = (0..ROUNDS).map(|round| round_of_errors(model, along, round));
    Ok(rounds.collect::<Result<Vec<_>>>()?.concat())
}

/// Relative error of every sample's slope along its direction, where rounding lets it be measured.
fn round_of_errors(model: &Model, along: Along, round: u64) -> Result<Vec<f64>> {
    let (x, call) = (images(IDS.len(), input(model)), Call::craft(round, &IDS));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 10 + round);
    let gradient = backward(&tape, &call, &cotangent)?;
    let direction = along.direction(&gradient, 20 + round);
    let (slopes, noise) = (dots(&gradient, &direction), rounding(&y, &cotangent));
    let mut best = vec![None::<f64>; x.rows()];
    for step in STEPS {
        let up = dots(&model.forward(&call, &moved(&x, &direction, step))?, &cotangent);
        let down = dots(&model.forward(&call, &moved(&x, &direction, -step))?, &cotangent);
        for (i, slope) in slopes.iter().enumerate() {
            let measured = (up[i] - down[i]) / (2. * step);
            // What a random direction is expected to see of a gradient of this length.
            let typical = (dot(gradient.row(i), gradient.row(i)) / x.row_len() as f64).sqrt();
            let size = slope.abs().max(measured.abs()).max(typical);
            if noise[i] / step <= along.limit() * size {
                let error = (slope - measured).abs() / size;
                best[i] = Some(best[i].map_or(error, |best| best.min(error)));
            }
        }
    }
    Ok(best.into_iter().flatten().collect())
}

/// By how much rounding moves `<cotangent, y>`, for every sample.
fn rounding(y: &Tensor, cotangent: &Tensor) -> Vec<f64> {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) * f64::from(*b)).powi(2);
    let of_row = |i| y.row(i).iter().zip(cotangent.row(i)).map(square).sum::<f64>().sqrt();
    (0..y.rows()).map(|i| f64::from(f32::EPSILON) * of_row(i)).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn dots(a: &Tensor, b: &Tensor) -> Vec<f64> {
    (0..a.rows()).map(|i| dot(a.row(i), b.row(i))).collect()
}

/// Every sample's direction brought to unit length.
fn unit(mut direction: Tensor) -> Tensor {
    for i in 0..direction.rows() {
        let length = dot(direction.row(i), direction.row(i)).sqrt() as f32;
        let row: Vec<f32> = direction.row(i).iter().map(|v| v / length).collect();
        direction.set_row(i, &row);
    }
    direction
}

/// `x` and `step` times the direction.
pub fn moved(x: &Tensor, direction: &Tensor, step: f64) -> Tensor {
    let mut moved = direction.clone();
    moved.scale(step as f32);
    moved.add(x);
    moved
}
