//! A gradient against central differences of the output, both through the plugin's `.so`.

use super::checklist::Finding;
use super::sample::{IDS, images, input, signed};
use crate::wire::model::{Model, Tape};
use crate::wire::tensor::{Call, Tensor, difference, dot, moved};
use anyhow::{Context, Result};

/// Lengths of the steps. Long ones bend, short ones drown in rounding.
const STEPS: [f64; 6] = [0.3, 0.1, 0.03, 0.01, 0.003, 0.001];
/// Directions per sample, of either kind.
const ROUNDS: u64 = 3;
/// Relative error from which on a gradient is told to be wrong, or impossible to measure.
const LIMIT: f64 = 1e-2;
/// How many times the error of the differences themselves a gradient may be off.
const MARGIN: f64 = 3.;
/// What candle gets wrong, and what to use instead.
pub const OPERATORS: &str = "check every operator's backward pass (candle's softmax_last_dim, rms_norm and layer_norm pass no \
     gradient on, its max_pool2d and upsample_nearest2d a wrong one: use the layers of advae_sdk::nn)";

/// A direction that a slope is measured along.
#[derive(Clone, Copy)]
enum Along {
    /// Random lengths in the gradient's own signs: the slope is steep, so that little error is left to rounding.
    Gradient,
    /// Random: sees what is missing from the gradient, but through more rounding.
    Anywhere,
}

impl Along {
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

/// A slope by differences, with what steps of other lengths say of its error.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Estimate {
    slope: f64,
    error: f64,
}

impl Estimate {
    /// The best of several: `measured` are slopes by [`STEPS`], `noise` what rounding moves a difference of outputs by.
    ///
    /// Between two lengths an estimate moves by at least what is wrong with one of them (bending falls with the step, rounding
    /// grows). The neighbours on both sides are asked, since two may agree by chance.
    fn of(measured: &[f64], noise: f64) -> Self {
        let around = measured.windows(3).zip(&STEPS[1..]).map(|(slopes, step)| {
            let moved = (slopes[0] - slopes[1]).abs().max((slopes[1] - slopes[2]).abs());
            Self {
                slope: slopes[1],
                error: moved + noise / step,
            }
        });
        let best = around.min_by(|a, b| a.error.total_cmp(&b.error));
        best.unwrap_or(Self {
            slope: f64::NAN,
            error: f64::INFINITY,
        })
    }
}

/// How far a gradient is off along one direction of one sample, relative to the slope.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Error {
    /// In all.
    off: f64,
    /// By what the differences do not explain.
    unexplained: f64,
}

impl Error {
    /// `typical`: what a random direction is expected to see of a gradient of this length. Absent where nothing moves.
    fn of(gradient: f64, estimate: Estimate, typical: f64) -> Option<Self> {
        let size = gradient.abs().max(estimate.slope.abs()).max(typical);
        let off = (gradient - estimate.slope).abs();
        (size > 0. && estimate.error < size).then_some(Self {
            off: off / size,
            unexplained: (off - MARGIN * estimate.error).max(0.) / size,
        })
    }
}

/// Medians over samples and directions: a direction may cross a kink of the network, the median does not mind.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Medians {
    off: f64,
    unexplained: f64,
}

impl Medians {
    fn of(errors: &[Error]) -> Option<Self> {
        let median = |of: fn(&Error) -> f64| {
            let mut values: Vec<f64> = errors.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values.get(values.len() / 2).copied()
        };
        Some(Self {
            off: median(|e| e.off)?,
            unexplained: median(|e| e.unexplained)?,
        })
    }
}

/// Compares the rule `exact` with central differences. `default`: the purifier's own rule, where that is another.
pub fn examine(model: &Model, default: Option<&str>) -> Result<Finding> {
    if vanishes(model)? {
        let text = "it is zero, though the output moves with the images";
        return Ok(match default {
            Some(rule) => Finding::Warn(format!("{text}: attacks go by {rule} unless told otherwise")),
            None => Finding::Fail(format!("{text}: {OPERATORS}")),
        });
    }
    let along = |along| Ok::<_, anyhow::Error>(Medians::of(&errors(model, along)?));
    let (Some(steep), Some(any)) = (along(Along::Gradient)?, along(Along::Anywhere)?) else {
        let text = "it is too small to be measured with these weights: try others, as PLUGIN@WEIGHTS";
        return Ok(Finding::Warn(text.into()));
    };
    Ok(judge(steep, any, default))
}

/// Whether the gradient is zero everywhere, and the output changes nevertheless.
fn vanishes(model: &Model) -> Result<bool> {
    let (x, call) = (images(IDS.len(), input(model)), Call::craft(0, &IDS));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let gradient = backward(&tape, &call, &signed(&y.shape, 10))?;
    let elsewhere = model.forward(&call, &moved(&x, &unit(signed(&x.shape, 20)), STEPS[0] as f32))?;
    Ok(gradient.data.iter().all(|v| *v == 0.) && difference(&y, &elsewhere) > 0.)
}

fn judge(steep: Medians, any: Medians, default: Option<&str>) -> Finding {
    let text = format!(
        "off by {:.1e} along itself, {:.1e} along random directions (medians)",
        steep.off, any.off
    );
    if steep.off < LIMIT && any.off < LIMIT {
        return Finding::Pass(text);
    }
    if let Some(rule) = default {
        // Used only if requested with `--backward`.
        return Finding::Warn(format!(
            "{text}: no guide for steps of 0.01 to 0.3; attacks go by {rule} unless told otherwise"
        ));
    }
    if steep.unexplained < LIMIT && any.unexplained < LIMIT {
        return Finding::Warn(format!(
            "{text}, no more than differences by steps of other lengths are: the output bends or jumps too much to be sure"
        ));
    }
    Finding::Fail(format!("{text}: it is not the derivative of the output: {OPERATORS}"))
}

fn errors(model: &Model, along: Along) -> Result<Vec<Error>> {
    let rounds = (0..ROUNDS).map(|round| round_of_errors(model, along, round));
    Ok(rounds.collect::<Result<Vec<_>>>()?.concat())
}

/// Error of every sample's slope along its direction, where rounding lets it be measured.
fn round_of_errors(model: &Model, along: Along, round: u64) -> Result<Vec<Error>> {
    let (x, call) = (images(IDS.len(), input(model)), Call::craft(round, &IDS));
    let (y, tape) = model.forward_tape(&call, &x)?;
    let cotangent = signed(&y.shape, 10 + round);
    let gradient = backward(&tape, &call, &cotangent)?;
    let direction = along.direction(&gradient, 20 + round);
    let (slopes, noise) = (dots(&gradient, &direction), rounding(&y, &cotangent));
    let mut measured = vec![vec![]; x.rows()];
    for step in STEPS {
        let up = dots(&model.forward(&call, &moved(&x, &direction, step as f32))?, &cotangent);
        let down = dots(&model.forward(&call, &moved(&x, &direction, -step as f32))?, &cotangent);
        for (i, of_sample) in measured.iter_mut().enumerate() {
            of_sample.push((up[i] - down[i]) / (2. * step));
        }
    }
    let error = |i: usize| {
        let typical = (dot(gradient.row(i), gradient.row(i)) / x.row_len() as f64).sqrt();
        Error::of(slopes[i], Estimate::of(&measured[i], noise[i]), typical)
    };
    Ok((0..x.rows()).filter_map(error).collect())
}

/// By how much rounding moves `<cotangent, y>`, for every sample.
fn rounding(y: &Tensor, cotangent: &Tensor) -> Vec<f64> {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) * f64::from(*b)).powi(2);
    let of_row = |i| y.row(i).iter().zip(cotangent.row(i)).map(square).sum::<f64>().sqrt();
    (0..y.rows()).map(|i| f64::from(f32::EPSILON) * of_row(i)).collect()
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

/// The input gradient.
pub fn backward(tape: &Tape, call: &Call, cotangent: &Tensor) -> Result<Tensor> {
    let gradient = tape.backward(call, cotangent)?;
    gradient.context("the tape gave no input gradient, though no parameter gradients were asked for")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Slopes by [`STEPS`] of a function with slope 1, a third derivative, and rounding.
    fn measured(bend: f64, noise: f64) -> Vec<f64> {
        let sign = |i: usize| if i.is_multiple_of(2) { 1. } else { -1. };
        let slope = |(i, step): (usize, &f64)| 1. + bend * step * step + sign(i) * noise / step;
        STEPS.iter().enumerate().map(slope).collect()
    }

    #[test]
    fn the_estimate_lies_between_bending_and_rounding_and_knows_its_error() {
        for (bend, noise) in [(0., 0.), (2., 1e-7), (50., 1e-7), (0.1, 1e-4)] {
            let estimate = Estimate::of(&measured(bend, noise), noise);
            let off = (estimate.slope - 1.).abs();
            assert!(off <= estimate.error, "{bend} {noise}: {off} {}", estimate.error);
            assert!(estimate.error < 0.05, "{bend} {noise}: {}", estimate.error);
        }
    }

    #[test]
    fn what_the_differences_explain_is_no_mistake_of_the_gradient() {
        let estimate = Estimate { slope: 1., error: 0.02 };
        let error = Error::of(1.05, estimate, 0.).unwrap();
        assert!((error.off - 0.05 / 1.05).abs() < 1e-12 && error.unexplained == 0.);
        let error = Error::of(1.1, estimate, 0.).unwrap();
        assert!((error.unexplained - 0.04 / 1.1).abs() < 1e-12, "{error:?}");
        assert_eq!(Error::of(0., Estimate { slope: 0., error: 0. }, 0.), None);
        assert_eq!(Error::of(0.1, Estimate { slope: 0.2, error: 0.3 }, 0.), None);
    }

    #[test]
    fn a_gradient_fails_only_beyond_what_the_differences_explain() {
        let at = |off, unexplained| Medians { off, unexplained };
        assert!(matches!(judge(at(9e-3, 9e-3), at(9e-3, 9e-3), None), Finding::Pass(_)));
        assert!(matches!(judge(at(1e-4, 0.), at(5e-2, 0.), None), Finding::Warn(_)));
        assert!(matches!(judge(at(1e-4, 0.), at(5e-2, 4e-2), None), Finding::Fail(_)));
        assert!(matches!(judge(at(2e-2, 2e-2), at(1e-4, 0.), None), Finding::Fail(_)));
        assert!(matches!(
            judge(at(1., 1.), at(1., 1.), Some("custom")),
            Finding::Warn(_)
        ));
    }
}
