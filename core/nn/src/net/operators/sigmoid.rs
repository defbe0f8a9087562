//! `1 / (1 + e^-x)`.

use candle_core::{Result, Tensor};

use super::{Elementwise, Map, Operator, Run, Slope, each, only, place};
use crate::kernels::Real;
use crate::kernels::elementwise::logistic;
use crate::kernels::frame::Frame;
use crate::sigmoid;

#[derive(Debug)]
pub(in crate::net) struct Sigmoid;

impl Operator for Sigmoid {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        only(inputs)
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        sigmoid(only(inputs)?)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Sigmoid)
    }
}

impl<T: Real> Run<T> for Sigmoid {
    fn kept(&self, target: &Frame) -> [usize; 2] {
        [0, target.shape().iter().product()]
    }

    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], numbers: &mut [T]) {
        let (frame, from) = sources[0];
        each(target, |i, c, y, x| {
            let v = logistic(from[place(frame, c, y, x)]);
            if let Some(number) = numbers.get_mut(i) {
                *number = v;
            }
            to[place(target, c, y, x)] = v;
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], numbers: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        each(own, |i, c, y, x| {
            let dy = dy[place(frame, c, y, x)];
            to.give(place(own, c, y, x), dy * numbers[i] * (T::ONE - numbers[i]));
        });
    }
}
