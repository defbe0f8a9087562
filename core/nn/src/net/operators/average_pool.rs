//! Average pooling, of blocks or of whole maps.

use candle_core::{Result, Tensor};

use super::{Elementwise, Map, Operator, Run, Slope, blocks, each, only, place};
use crate::kernels::frame::Frame;
use crate::kernels::{Real, simd};
use crate::ops::pool::average_blocks;

/// Height and width of a block.
#[derive(Debug)]
pub(in crate::net) struct AveragePool(pub [usize; 2]);

impl AveragePool {
    fn count<T: Real>(&self) -> T {
        T::from_f64((self.0[0] * self.0[1]) as f64)
    }
}

impl Operator for AveragePool {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        blocks("avg_pool2d", only(inputs)?, self.0)
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        average_blocks(only(inputs)?, self.0)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::AveragePool(self.0))
    }
}

impl<T: Real> Run<T> for AveragePool {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let (frame, from) = sources[0];
        let ([kh, kw], count) = (self.0, self.count::<T>());
        if frame.narrow {
            return each(target, |_, c, y, x| {
                let block = (0..kh * kw).map(|i| from[place(frame, c, y * kh + i / kw, x * kw + i % kw)]);
                to[place(target, c, y, x)] = block.fold(T::ZERO, |sum, v| sum + v) / count;
            });
        }
        simd(|| {
            for (y, x) in places(target) {
                let sums = &mut to[target.at(y, x)..][..frame.channels()];
                sums.fill(T::ZERO);
                for i in 0..kh * kw {
                    let at = frame.at(y * kh + i / kw, x * kw + i % kw);
                    sums.iter_mut().zip(&from[at..]).for_each(|(sum, v)| *sum += *v);
                }
                sums.iter_mut().for_each(|sum| *sum /= count);
            }
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], _: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        let ([kh, kw], count) = (self.0, self.count::<T>());
        let inside = |y, x| y / kh < frame.h && x / kw < frame.w;
        if frame.narrow {
            return each(own, |_, c, y, x| {
                let share = match inside(y, x) {
                    true => dy[place(frame, c, y / kh, x / kw)] / count,
                    false => T::ZERO,
                };
                to.give(place(own, c, y, x), share);
            });
        }
        let channels = own.channels();
        simd(|| {
            for (y, x) in places(own) {
                let at = own.at(y, x);
                match inside(y, x) {
                    true => {
                        let dy = &dy[frame.at(y / kh, x / kw)..][..channels];
                        to.give_all(at, dy.iter().map(|dy| *dy / count));
                    }
                    // Of no block.
                    false => to.give_all(at, std::iter::repeat_n(T::ZERO, channels)),
                }
            }
        });
    }
}

/// All places of a map.
#[inline(always)]
fn places(frame: &Frame) -> impl Iterator<Item = (usize, usize)> + use<> {
    let (h, w) = (frame.h, frame.w);
    (0..h).flat_map(move |y| (0..w).map(move |x| (y, x)))
}
