//! Nearest-neighbour upsampling that no convolution takes along.

use candle_core::{Result, Tensor, bail};

use super::{Elementwise, Epilogue, Map, Operator, Run, Slope, each, only, place};
use crate::kernels::Real;
use crate::kernels::frame::Frame;
use crate::upsample_nearest2d;

/// How often each element is repeated both ways.
#[derive(Debug)]
pub(in crate::net) struct Upsample(pub usize);

impl Operator for Upsample {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        let [c, h, w] = only(inputs)?;
        if self.0 == 0 {
            bail!("upsample_nearest2d by 0 is empty");
        }
        Ok([c, h * self.0, w * self.0])
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        upsample_nearest2d(only(inputs)?, self.0)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Upsample(self.0))
    }

    fn epilogue(&self) -> Option<Epilogue> {
        (self.0 == 2).then_some(Epilogue::Upsample)
    }
}

impl<T: Real> Run<T> for Upsample {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let ((frame, from), k) = (sources[0], self.0);
        each(target, |_, c, y, x| {
            to[place(target, c, y, x)] = from[place(frame, c, y / k, x / k)]
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], _: &[T]) {
        let (own, (frame, dy), k) = (&sources[source], target, self.0);
        each(own, |_, c, y, x| {
            let block = (0..k * k).map(|i| dy[place(frame, c, y * k + i / k, x * k + i % k)]);
            to.give(place(own, c, y, x), block.fold(T::ZERO, |sum, v| sum + v));
        });
    }
}
