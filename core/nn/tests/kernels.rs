//! Values of the kernels: against naive loops, and the same for any batch and any number of threads.

#![allow(clippy::unwrap_used)]

mod common;

use advae_nn::*;
use candle_core::{DType, Tensor, Var};
use common::{distance, random, random_f32, values};

/// Convolution as its definition.
fn naive_conv(
    [x, w, b]: [&Tensor; 3],
    stride: usize,
    (top, left): (usize, usize),
    (h_out, w_out): (usize, usize),
) -> Vec<f64> {
    let (n, c_in, h, width) = x.dims4().unwrap();
    let (c_out, _, kh, kw) = w.dims4().unwrap();
    let (x, w, b) = (values(x), values(w), values(b));
    let mut y = Vec::new();
    for image in 0..n {
        for co in 0..c_out {
            for i in 0..h_out {
                for j in 0..w_out {
                    let mut sum = b[co];
                    for ci in 0..c_in {
                        for r in 0..kh {
                            for s in 0..kw {
                                let (row, column) = (i * stride + r, j * stride + s);
                                if row < top || column < left || row - top >= h || column - left >= width {
                                    continue;
                                }
                                sum += w[((co * c_in + ci) * kh + r) * kw + s]
                                    * x[((image * c_in + ci) * h + row - top) * width + column - left];
                            }
                        }
                    }
                    y.push(sum);
                }
            }
        }
    }
    y
}

#[test]
fn convolution_is_its_definition() {
    // (channels in, out, height, width, kernel, stride, zeros before for same padding)
    for (c_in, c_out, h, w, k, stride, before) in [
        (3, 5, 13, 17, 3, 1, (1, 1)),
        (3, 5, 13, 17, 3, 2, (1, 1)),
        (1, 2, 28, 28, 8, 2, (3, 3)),
        (1, 4, 14, 13, 3, 2, (0, 1)),
        (2, 3, 10, 9, 6, 2, (2, 2)),
        (4, 3, 9, 9, 5, 1, (2, 2)),
        (40, 33, 28, 28, 3, 1, (1, 1)),
        (16, 32, 9, 10, 3, 1, (1, 1)),
        (32, 16, 11, 9, 5, 2, (2, 2)),
    ] {
        let x = random(1, &[2, c_in, h, w]);
        let weight = random(2, &[c_out, c_in, k, k]);
        let bias = random(3, &[c_out]);
        for padding in [Padding::Valid, Padding::Same, Padding::Zeros(1), Padding::Zeros(k - 1)] {
            let zeros = |zeros: usize| ((h + 2 * zeros - k) / stride + 1, (w + 2 * zeros - k) / stride + 1);
            let (first, size) = match padding {
                Padding::Valid => ((0, 0), zeros(0)),
                Padding::Same => (before, (h.div_ceil(stride), w.div_ceil(stride))),
                Padding::Zeros(count) => ((count, count), zeros(count)),
            };
            let y = conv2d(&x, &weight, Some(&bias), stride, padding).unwrap();
            let expected = naive_conv([&x, &weight, &bias], stride, first, size);
            assert_eq!(y.elem_count(), expected.len());
            for (a, b) in values(&y).iter().zip(&expected) {
                assert!((a - b).abs() < 1e-11, "{a} {b}");
            }
            let f32 = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let single = conv2d(&f32(&x), &f32(&weight), Some(&f32(&bias)), stride, padding);
            assert!(distance(&single.unwrap(), &y) < 1e-5);
        }
    }
}

#[test]
fn same_padding_is_tensorflows() {
    // Height 4, kernel 3, stride 2: one row of zeros, below. Sums of a row of ones tell where it is.
    let x = Tensor::ones((1, 1, 4, 1), DType::F32, &candle_core::Device::Cpu).unwrap();
    let w = Tensor::ones((1, 1, 3, 1), DType::F32, &candle_core::Device::Cpu).unwrap();
    let y = conv2d(&x, &w, None, 2, Padding::Same).unwrap();
    assert_eq!(values(&y), [3.0, 2.0]);
}

#[test]
fn impossible_convolutions_are_errors() {
    let x = random(1, &[1, 2, 4, 4]);
    let conv = |w: &[usize], stride| conv2d(&x, &random(2, w), None, stride, Padding::Valid);
    assert!(conv(&[1, 2, 5, 5], 1).is_err());
    assert!(conv(&[1, 3, 3, 3], 1).is_err());
    assert!(conv(&[1, 2, 3, 3], 0).is_err());
    assert!(conv2d(&x, &random(2, &[3, 2, 3, 3]), Some(&random(3, &[2])), 1, Padding::Same).is_err());
    assert!(linear(&random(1, &[2, 3]), &random(1, &[4, 2]), None).is_err());
    assert!(max_pool2d(&random(1, &[1, 1, 1, 4]), 2).is_err());
}

/// A small network with every kind of operator: output, input gradient, and gradient of the first weight.
fn network(x: &Tensor, track: bool) -> [Tensor; 3] {
    let channels = [3, 9, 20];
    let w1 = Var::from_tensor(&random_f32(1, &[channels[1], channels[0], 3, 3])).unwrap();
    let w2 = random_f32(2, &[channels[2], channels[1], 5, 5]);
    let w3 = random_f32(3, &[11, channels[2] * 16]);
    let b1 = random_f32(4, &[channels[1]]);
    let b3 = random_f32(5, &[11]);
    let x = Var::from_tensor(x).unwrap();
    let first = match track {
        true => w1.as_tensor().clone(),
        false => w1.as_detached_tensor(),
    };
    let y = conv2d(x.as_tensor(), &first, Some(&b1), 1, Padding::Same).unwrap();
    let y = max_pool2d(&relu(&y).unwrap(), 2).unwrap();
    let y = sigmoid(&conv2d(&y, &w2, None, 2, Padding::Same).unwrap()).unwrap();
    let y = linear(&flatten(&y).unwrap(), &w3, Some(&b3)).unwrap();
    let (dx, rest) = vjp(x.as_tensor(), &y, &y).unwrap();
    let dw = rest.get(w1.as_tensor()).unwrap_or(&y).clone();
    [y.detach(), dx.unwrap(), dw]
}

#[test]
fn a_sample_does_not_notice_its_batch() {
    let x = random_f32(6, &[37, 3, 16, 16]);
    let [y, dx, _] = network(&x, false);
    for i in [0, 7, 16, 31, 32, 36] {
        let [y_alone, dx_alone, _] = network(&x.narrow(0, i, 1).unwrap(), false);
        assert_eq!(values(&y_alone), values(&y.narrow(0, i, 1).unwrap()));
        assert_eq!(values(&dx_alone), values(&dx.narrow(0, i, 1).unwrap()));
    }
}

#[test]
fn threads_change_nothing() {
    let x = random_f32(6, &[37, 3, 16, 16]);
    let one = network(&x, true);
    for n in [2, 3] {
        let many = with_threads(n, || network(&x, true));
        for (a, b) in one.iter().zip(&many) {
            assert_eq!(values(a), values(b), "{n} threads");
        }
    }
    assert_eq!(threads(), 1);
}

#[test]
fn inputs_need_not_be_contiguous() {
    let x = random(7, &[2, 5, 6, 3]).permute((0, 3, 1, 2)).unwrap();
    let w = random(8, &[3, 3, 3, 4]).permute((3, 2, 0, 1)).unwrap();
    let packed = |t: &Tensor| t.contiguous().unwrap();
    let y = conv2d(&x, &w, None, 1, Padding::Same).unwrap();
    let z = conv2d(&packed(&x), &packed(&w), None, 1, Padding::Same).unwrap();
    assert_eq!(values(&y), values(&z));
    let narrow = x.narrow(0, 1, 1).unwrap();
    let pooled = max_pool2d(&narrow, 2).unwrap();
    assert_eq!(values(&pooled), values(&max_pool2d(&packed(&narrow), 2).unwrap()));
}

#[test]
fn empty_batches_pass() {
    let x = random_f32(9, &[0, 3, 8, 8]);
    let w = random_f32(10, &[4, 3, 3, 3]);
    let y = conv2d(&x, &w, None, 1, Padding::Same).unwrap();
    assert_eq!(relu(&y).unwrap().dims(), [0, 4, 8, 8]);
    assert_eq!(max_pool2d(&y, 2).unwrap().dims(), [0, 4, 4, 4]);
    let flat = linear(&flatten(&x).unwrap(), &random_f32(11, &[5, 192]), None);
    assert_eq!(flat.unwrap().dims(), [0, 5]);
}
