//! `relu` that no convolution or norm takes in.

use candle_core::{Result, Tensor};

use super::{Elementwise, Epilogue, Map, Operator, Run, Slope, each, only, place};
use crate::kernels::Real;
use crate::kernels::frame::Frame;
use crate::relu;

#[derive(Debug)]
pub(in crate::net) struct Relu;

impl Operator for Relu {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        only(inputs)
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        relu(only(inputs)?)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Relu)
    }

    fn epilogue(&self) -> Option<Epilogue> {
        Some(Epilogue::Relu)
    }
}

impl<T: Real> Run<T> for Relu {
    fn kept(&self, target: &Frame) -> [usize; 2] {
        [target.shape().iter().product(), 0]
    }

    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], bytes: &mut [u8], _: &mut [T]) {
        let (frame, from) = sources[0];
        each(target, |i, c, y, x| {
            let v = from[place(frame, c, y, x)];
            if let Some(byte) = bytes.get_mut(i) {
                *byte = u8::from(v > T::ZERO);
            }
            to[place(target, c, y, x)] = if v <= T::ZERO { T::ZERO } else { v };
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, bytes: &[u8], _: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        each(own, |i, c, y, x| {
            to.give(place(own, c, y, x), dy[place(frame, c, y, x)].keep_if(bytes[i] == 1))
        });
    }
}
