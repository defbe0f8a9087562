//! Sums of two maps: residuals and their shortcuts.

use candle_core::{Result, Tensor, bail};

use super::{Elementwise, Map, Operator, Run, Slope, give_map};
use crate::kernels::frame::Frame;
use crate::kernels::{Real, simd};

#[derive(Debug)]
pub(in crate::net) struct Add;

impl Operator for Add {
    fn shape(&self, inputs: &[[usize; 3]]) -> Result<[usize; 3]> {
        match inputs {
            [a, b] if a == b => Ok(*a),
            _ => bail!("sum of maps of shapes {inputs:?}: there must be two that agree"),
        }
    }

    fn layer(&self, inputs: &[&Tensor]) -> Result<Tensor> {
        match inputs {
            [a, b] => *a + *b,
            _ => bail!("sum of {} maps: there must be two", inputs.len()),
        }
    }

    fn elementwise(&self) -> Option<Elementwise> {
        Some(Elementwise::Add)
    }
}

impl<T: Real> Run<T> for Add {
    fn forward(&self, sources: &[Map<T>], target: &Frame, to: &mut [T], _: &mut [u8], _: &mut [T]) {
        let [(a, from), (b, more)] = [sources[0], sources[1]];
        simd(|| {
            for ((to_row, a), b) in target.rows().zip(a.rows()).zip(b.rows()) {
                let terms = from[a].iter().zip(&more[b]);
                to[to_row].iter_mut().zip(terms).for_each(|(to, (a, b))| *to = *a + *b);
            }
        });
    }

    fn backward(&self, source: usize, sources: &[Frame], target: Map<T>, to: Slope<T>, _: &[u8], _: &[T]) {
        give_map(&sources[source], target, to);
    }
}
