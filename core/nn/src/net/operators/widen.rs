//! A map stored plane by plane as a vector with channels last, for fully connected layers.

use super::{Map, Run, Slope, each, place};
use crate::kernels::Real;
use crate::kernels::frame::Frame;

pub(in crate::net) struct Widen;

impl<T: Real> Run<T> for Widen {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let (frame, from) = sources[0];
        each(frame, |i, c, y, x| {
            to[place(target, i, 0, 0)] = from[place(frame, c, y, x)]
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], _: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        each(own, |i, c, y, x| {
            to.give(place(own, c, y, x), dy[place(frame, i, 0, 0)])
        });
    }
}
