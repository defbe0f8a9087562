//! A norm by fixed statistics that no convolution takes in, such as one behind a sum, with the `relu` behind it.

use super::{Map, Run, Slope};
use crate::kernels::frame::Frame;
use crate::kernels::{Real, channels};

/// `x scale[c] + shift[c]`, or the positive part of it.
pub(in crate::net) struct Affine<T> {
    /// As long as the stored channels, as the others are.
    scale: Vec<T>,
    shift: Vec<T>,
    zeros: Vec<T>,
    relu: bool,
}

impl<T: Real> Affine<T> {
    /// For maps of this layout; numbers of its channels.
    pub fn new(frame: &Frame, mut scale: Vec<T>, mut shift: Vec<T>, relu: bool) -> Self {
        scale.resize(frame.channels(), T::ZERO);
        shift.resize(frame.channels(), T::ZERO);
        Self {
            zeros: vec![T::ZERO; frame.channels()],
            scale,
            shift,
            relu,
        }
    }
}

impl<T: Real> Run<T> for Affine<T> {
    fn kept(&self, target: &Frame) -> [usize; 2] {
        match self.relu {
            true => [channels::Affine::<T>::marks(target), 0],
            false => [0, 0],
        }
    }

    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], bytes: &mut [u8], _: &mut [T]) {
        channels::Affine {
            x: sources[0],
            y: (target, to),
            scale: &self.scale,
            shift: &self.shift,
            relu: self.relu,
            positive: bytes,
        }
        .compute();
    }

    /// Of `a dy + b (x - mean) + d` the first term, with any map for `x`.
    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, to: Slope<T>, bytes: &[u8], _: &[T]) {
        let zeros = self.zeros.as_slice();
        channels::Gradient {
            x: target,
            dy: channels::Masked {
                frame: target.0,
                values: target.1,
                positive: bytes,
            },
            dx: (&sources[source], to.values),
            by: [&self.scale, zeros, zeros, zeros],
            add: to.add,
        }
        .compute();
    }
}
