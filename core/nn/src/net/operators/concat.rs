//! Channels of several maps one after the other: skips.

use candle_core::{Result, Tensor, bail};

use super::{Elementwise, Map, Operator, Run, Slope, each, place};
use crate::kernels::Real;
use crate::kernels::frame::Frame;

#[derive(Debug)]
pub(in crate::net) struct Concat;

impl Operator for Concat {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        let Some([_, h, w]) = inputs.first().copied() else {
            bail!("concat of nothing");
        };
        if inputs.iter().any(|s| s[1..] != [h, w]) {
            bail!("concat of maps of shapes {inputs:?}: heights and widths must agree");
        }
        Ok([inputs.iter().map(|s| s[0]).sum(), h, w])
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        Tensor::cat(inputs, 1)
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Concat)
    }
}

impl<T: Real> Run<T> for Concat {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let mut first = 0;
        for (frame, from) in sources {
            match frame.narrow {
                true => each(frame, |_, c, y, x| {
                    to[place(target, first + c, y, x)] = from[place(frame, c, y, x)]
                }),
                // The target has as many channels at least: they are last there, too.
                false => {
                    for (y, x) in (0..frame.h).flat_map(|y| (0..frame.w).map(move |x| (y, x))) {
                        let from = &from[frame.at(y, x)..][..frame.c];
                        to[target.at(y, x) + first..][..frame.c].copy_from_slice(from);
                    }
                }
            }
            first += frame.c;
        }
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], _: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        let first: usize = sources[..source].iter().map(|f| f.c).sum();
        if own.narrow {
            return each(own, |_, c, y, x| {
                to.give(place(own, c, y, x), dy[place(frame, first + c, y, x)])
            });
        }
        for (y, x) in (0..own.h).flat_map(|y| (0..own.w).map(move |x| (y, x))) {
            let dy = &dy[frame.at(y, x) + first..][..own.c];
            to.give_all(own.at(y, x), dy.iter().copied());
        }
    }
}
