//! A number, a choice or a row for every sample.

use crate::{Ball, Norm, Oracle};
use candle_core::{Result, Tensor, bail};
use std::borrow::Borrow;

/// Numbers, one a sample, as a column `[N,1,1,1]` beside `like` `[N,C,H,W]`.
///
/// # Errors
/// Where there is not one number a sample.
pub fn column(values: &[f32], like: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; like.rank()];
    shape[0] = like.dim(0)?;
    Tensor::new(values, like.device())?.reshape(shape)
}

/// The rows of `a` `[N,...]` where the flag of their sample is set, those of `b` elsewhere.
///
/// # Errors
/// Where the shapes differ, or there is not one flag a sample.
pub fn choose(flags: &[bool], a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if flags.len() != a.dim(0)? {
        bail!("{} flags for {} samples", flags.len(), a.dim(0)?)
    }
    let mut shape = vec![1; a.rank()];
    shape[0] = flags.len();
    let flags: Vec<u8> = flags.iter().map(|flag| u8::from(*flag)).collect();
    Tensor::from_vec(flags, shape, a.device())?
        .broadcast_as(a.shape())?
        .where_cond(a, b)
}

/// The positions that hold `value`.
pub fn positions(flags: &[bool], value: bool) -> Vec<usize> {
    (0..flags.len()).filter(|i| flags[*i] == value).collect()
}

/// The values of `x` `[N,...]`, a row a sample.
///
/// # Errors
/// Where `x` is not `f32`.
pub fn rows(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    x.flatten_from(1)?.to_vec2()
}

/// Rows as images `[n,C,H,W]` of the shape of `like` `[N,C,H,W]`.
///
/// # Errors
/// Where a row has another number of values.
pub fn stack<R: Borrow<[f32]>>(rows: &[R], like: &Tensor) -> Result<Tensor> {
    let mut shape = like.dims().to_vec();
    shape[0] = rows.len();
    Tensor::from_vec(rows.concat(), shape, like.device())
}

/// Distance of every image of `x` `[N,C,H,W]` from the farthest one within bounds, `[N]`.
///
/// # Errors
/// Where `x` is not `f32`.
pub fn farthest(norm: Norm, oracle: &Oracle, x: &Tensor) -> Result<Vec<f32>> {
    let (low, high) = oracle.bounds();
    let room = (x - low)?.maximum(&x.affine(-1., high)?)?;
    norm.length(&room)?.to_vec1()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn the_farthest_image_lies_in_a_corner() {
        let target = crate::testing::Testbed::linear([1, 1, 2], &[vec![1., 0.], vec![0., 1.]], &[0., 0.]).unwrap();
        let x = stack(
            &[[0.2f32, 0.75].as_slice()],
            &Tensor::zeros((1, 1, 1, 2), candle_core::DType::F32, &Device::Cpu).unwrap(),
        );
        let x = x.unwrap();
        for (norm, expected) in [(Norm::Linf, 0.8), (Norm::L2, (0.64f32 + 0.5625).sqrt())] {
            let far = target.with_oracle(&[1], |oracle| farthest(norm, oracle, &x)).unwrap();
            assert!((far[0] - expected).abs() < 1e-6, "{norm} {far:?}");
        }
    }

    #[test]
    fn every_sample_has_its_own() {
        let x = Tensor::arange(0f32, 12., &Device::Cpu)
            .unwrap()
            .reshape((3, 2, 1, 2))
            .unwrap();
        let scaled = x.broadcast_mul(&column(&[1., 0., 10.], &x).unwrap()).unwrap();
        let expected = [[0., 1., 2., 3.], [0.; 4], [80., 90., 100., 110.]];
        assert_eq!(rows(&scaled).unwrap(), expected);
        let chosen = choose(&[true, false, false], &x, &scaled).unwrap();
        assert_eq!(rows(&chosen).unwrap(), expected);
        let one = stack(&[expected[2].as_slice()], &x).unwrap();
        assert_eq!(one.dims(), [1, 2, 1, 2]);
        assert!(choose(&[true], &x, &x).is_err() && column(&[1.], &x).is_err());
        assert_eq!(positions(&[true, false, true], true), [0, 2]);
    }
}
