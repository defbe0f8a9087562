//! Batch norms in training: what they do to maps, found from sums over a whole batch, and what their gradient is.

use std::ops::Range;

use candle_core::{Result, Tensor};

use super::buffers::{Tape, Workspace, pair};
use crate::BatchNorm2d;
use crate::kernels::Real;
use crate::kernels::channels::{Gradient, Masked, Moments, add_products};
use crate::net::step::{Norm, numbers};

/// What a norm does in one pass, by the statistics of its batch or by the running ones. Numbers of channels, the stored ones.
pub(in crate::net) struct Scale<T> {
    pub scale: Vec<T>,
    pub shift: Vec<T>,
    mean: Vec<T>,
    weight: Vec<f64>,
    /// `1 / sqrt(variance + epsilon)`.
    inverse: Vec<f64>,
    /// Places whose statistics these are; none of the running ones.
    places: Option<f64>,
}

impl<T: Real> Scale<T> {
    /// By the moments of a batch, with `channels` stored ones.
    pub fn by_batch(layer: &BatchNorm2d, moments: Moments) -> Result<(Self, Statistics)> {
        let (places, mean, variance) = moments.finish();
        let statistics = Statistics {
            mean: mean[..layer.channels()].to_vec(),
            variance: variance[..layer.channels()].to_vec(),
            places,
        };
        Ok((Self::new(layer, mean, variance, Some(places))?, statistics))
    }

    /// By the running statistics, for so many stored channels.
    pub fn by_running(layer: &BatchNorm2d, channels: usize) -> Result<Self> {
        let [.., mean, variance] = layer.params();
        let [mut mean, mut variance] = [numbers(mean)?, numbers(variance)?];
        mean.resize(channels, 0.);
        variance.resize(channels, 0.);
        Self::new(layer, mean, variance, None)
    }

    fn new(layer: &BatchNorm2d, mean: Vec<f64>, variance: Vec<f64>, places: Option<f64>) -> Result<Self> {
        let [weight, bias, ..] = layer.params();
        let [mut weight, mut bias] = [numbers::<f64>(weight)?, numbers::<f64>(bias)?];
        weight.resize(mean.len(), 0.);
        bias.resize(mean.len(), 0.);
        let inverse: Vec<f64> = variance
            .iter()
            .map(|v| 1. / (v + BatchNorm2d::EPSILON).sqrt())
            .collect();
        let scale: Vec<f64> = weight.iter().zip(&inverse).map(|(w, i)| w * i).collect();
        let shift = bias.iter().zip(mean.iter().zip(&scale)).map(|(b, (m, s))| b - m * s);
        let rounded = |numbers: &[f64]| numbers.iter().map(|v| T::from_f64(*v)).collect();
        Ok(Self {
            scale: rounded(&scale),
            shift: rounded(&shift.collect::<Vec<_>>()),
            mean: rounded(&mean),
            weight,
            inverse,
            places,
        })
    }
}

/// Statistics of a batch, for the running ones.
pub(in crate::net) struct Statistics {
    mean: Vec<f64>,
    variance: Vec<f64>,
    places: f64,
}

impl Statistics {
    /// Moves a norm's running statistics.
    pub fn update(self, layer: &BatchNorm2d) -> Result<()> {
        let tensor = |numbers: Vec<f64>| Tensor::new(numbers, &candle_core::Device::Cpu);
        layer.update(&tensor(self.mean)?, &tensor(self.variance)?, self.places)
    }
}

/// Takes in the moments of what a norm reads.
pub(in crate::net) fn add_moments<T: Real>(
    norm: &Norm,
    work: &Workspace<T>,
    images: &Range<usize>,
    moments: &mut Moments,
) {
    let source = &work.values[norm.source];
    for image in images.clone() {
        moments.add(&Moments::of(&source.frame, source.map(image, images)));
    }
}

/// Sums over images that a norm's gradients are made of: of `dy`, and of `dy (x - mean)`.
#[derive(Clone, Default)]
pub(in crate::net) struct Products([Vec<f64>; 2]);

impl Products {
    /// Of no images, for so many stored channels.
    pub fn none(channels: usize) -> Self {
        Self([vec![0.; channels], vec![0.; channels]])
    }

    /// Takes in some images; step `i` is the norm.
    pub fn add_images<T: Real>(
        &mut self,
        (i, norm): (usize, &Norm),
        scale: &Scale<T>,
        work: &Workspace<T>,
        tape: &mut Tape<T>,
        images: &Range<usize>,
    ) {
        let (source, slope) = (&work.values[norm.source], &work.slopes[norm.target]);
        for image in images.clone() {
            let (positive, ..) = tape.marks[i].of(&(image..image + 1), tape.images);
            let dy = Masked {
                frame: &slope.frame,
                values: slope.map(image, images),
                positive,
            };
            let [by_one, by_apart] = &mut self.0;
            let x = (&source.frame, source.map(image, images));
            add_products(x, dy, &scale.mean, [by_one, by_apart]);
        }
    }

    /// Takes in others.
    pub fn add(&mut self, other: &Self) {
        for (sums, more) in self.0.iter_mut().zip(&other.0) {
            sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
    }

    /// The gradients of a norm's weight and bias, `channels` each, and what takes its output's gradient to its input's.
    pub fn finish<T: Real>(self, scale: &Scale<T>, channels: usize) -> ([Vec<T>; 2], Pullback<T>) {
        let [by_one, by_apart] = self.0;
        let rounded = |v: f64| T::from_f64(v);
        let weight = by_apart.iter().zip(&scale.inverse).map(|(sum, i)| rounded(sum * i));
        let gradients = [
            weight.take(channels).collect(),
            by_one[..channels].iter().map(|v| rounded(*v)).collect(),
        ];
        // Where the statistics are the batch's own, its mean and its variance answer to every element.
        let share = scale.places.map_or(0., |places| 1. / places);
        let by = scale.weight.iter().zip(&scale.inverse);
        let b = by
            .clone()
            .zip(&by_apart)
            .map(|((w, i), sum)| rounded(-w * i * i * i * sum * share));
        let d = by.zip(&by_one).map(|((w, i), sum)| rounded(-w * i * sum * share));
        let pullback = Pullback {
            b: b.collect(),
            d: d.collect(),
        };
        (gradients, pullback)
    }
}

/// `dx = scale dy + b (x - mean) + d`.
pub(in crate::net) struct Pullback<T> {
    b: Vec<T>,
    d: Vec<T>,
}

impl<T: Real> Pullback<T> {
    /// Takes a norm's gradient to what it read; step `i` is the norm.
    pub fn run(
        &self,
        (i, norm): (usize, &Norm),
        scale: &Scale<T>,
        work: &mut Workspace<T>,
        tape: &mut Tape<T>,
        images: &Range<usize>,
    ) {
        let source = &work.values[norm.source];
        let [target, to] = pair(&mut work.slopes, norm.target, norm.source);
        let frame = to.frame;
        for image in images.clone() {
            let (positive, ..) = tape.marks[i].of(&(image..image + 1), tape.images);
            Gradient {
                x: (&source.frame, source.map(image, images)),
                dy: Masked {
                    frame: &target.frame,
                    values: target.map(image, images),
                    positive,
                },
                dx: (&frame, to.map_mut(image, images)),
                by: [&scale.scale, &self.b, &self.d, &scale.mean],
                add: norm.add,
            }
            .compute();
        }
    }
}
