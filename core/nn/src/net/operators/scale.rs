//! Fixed numbers a channel that are no part of a norm, such as the mean and the deviation by which images are normalised.

use candle_core::{Result, Tensor, bail};

use super::{Elementwise, Map, Operator, Run, Slope, each, only, place};
use crate::kernels::Real;
use crate::kernels::frame::Frame;
use crate::ops::norm::channel_affine;

/// `scale[c] x + shift[c]`.
#[derive(Debug)]
pub(in crate::net) struct Scale {
    pub scale: Vec<f64>,
    pub shift: Vec<f64>,
}

impl Operator for Scale {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        let shape = only(inputs)?;
        let given = [self.scale.len(), self.shift.len()];
        if given != [shape[0]; 2] {
            bail!(
                "{} factors and {} terms for a map of {} channels: there must be as many",
                given[0],
                given[1],
                shape[0]
            );
        }
        Ok(shape)
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        let x = only(inputs)?;
        let constant = |values: &[f64]| Tensor::new(values, x.device())?.to_dtype(x.dtype());
        let (scale, shift) = (constant(&self.scale)?, constant(&self.shift)?);
        match x.rank() {
            2 => x.broadcast_mul(&scale)?.broadcast_add(&shift),
            _ => channel_affine(x, &scale, &shift),
        }
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Scale(self.scale.clone(), self.shift.clone()))
    }
}

impl<T: Real> Run<T> for Scale {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let (frame, from) = sources[0];
        let [scale, shift] = [&self.scale, &self.shift].map(|v| v.iter().map(|v| T::from_f64(*v)).collect::<Vec<T>>());
        each(target, |_, c, y, x| {
            to[place(target, c, y, x)] = scale[c] * from[place(frame, c, y, x)] + shift[c];
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, mut to: Slope<T>, _: &[u8], _: &[T]) {
        let (own, (frame, dy)) = (&sources[source], target);
        let scale: Vec<T> = self.scale.iter().map(|v| T::from_f64(*v)).collect();
        each(own, |_, c, y, x| {
            to.give(place(own, c, y, x), scale[c] * dy[place(frame, c, y, x)])
        });
    }
}
