//! Every operator against central differences in f64, by our kernels and composed of candle's.

#![allow(clippy::unwrap_used)]

mod common;

use advae_nn::*;
use candle_core::{DType, Device, Tensor, Var};
use common::{check_gradient, check_gradient_along, distinct, random, values};

/// Gradient at `x` of `<f(x), cotangent>`.
fn gradient(x: &Tensor, cotangent: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>) -> Vec<f64> {
    let x = Var::from_tensor(x).unwrap();
    let y = f(x.as_tensor()).unwrap();
    let cotangent = Tensor::from_slice(cotangent, y.shape(), &Device::Cpu).unwrap();
    values(&vjp(x.as_tensor(), &y, &cotangent).unwrap().0.unwrap())
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

/// Asserts a gradient by our kernels and composed.
fn assert_both(x: &Tensor, cotangent: &[f64], f: impl Fn(&Tensor) -> Result<Tensor>, expected: &[f64]) {
    assert_eq!(gradient(x, cotangent, &f), expected, "kernels");
    let composed = with_composed_ops(|| gradient(x, cotangent, &f));
    assert_eq!(composed, expected, "composed");
}

#[test]
fn activations() {
    let x = distinct(1, &[2, 3, 5, 7]);
    check_gradient("relu", &x, relu);
    check_gradient("leaky_relu", &x, |x| leaky_relu(x, 0.2));
    check_gradient("sigmoid", &x, sigmoid);
    check_gradient("clamp", &x, |x| clamp(x, -0.5, 0.251));
}

#[test]
fn kinks_have_torchs_derivatives() {
    let x = tensor(&[-1.0, 0.0, -0.0, 2.0], &[4]);
    assert_both(&x, &[1.0; 4], relu, &[0.0, 0.0, 0.0, 1.0]);
    assert_both(&x, &[1.0; 4], |x| leaky_relu(x, 0.25), &[0.25, 0.25, 0.25, 1.0]);
    let x = tensor(&[-2.0, -1.0, 0.0, 1.0, 2.0], &[5]);
    let f = |x: &Tensor| clamp(x, -1.0, 1.0);
    assert_both(&x, &[3.0; 5], f, &[0.0, 3.0, 3.0, 3.0, 0.0]);
}

#[test]
fn not_a_number_stays_one() {
    let x = tensor(&[f64::NAN, 1.0, 0.0, 2.0], &[1, 1, 2, 2]);
    for f in [
        relu,
        sigmoid,
        |x: &Tensor| clamp(x, 0.0, 1.0),
        |x: &Tensor| leaky_relu(x, 0.2),
    ] {
        assert!(values(&f(&x).unwrap())[0].is_nan());
    }
    assert!(values(&max_pool2d(&x, 2).unwrap())[0].is_nan());
}

#[test]
fn sigmoid_does_not_overflow() {
    let x = tensor(&[-800.0, 800.0], &[2]);
    assert_eq!(values(&sigmoid(&x).unwrap()), [0.0, 1.0]);
}

#[test]
fn pooling_and_upsampling() {
    for (shape, k) in [
        ([2, 3, 4, 6], 2),
        ([1, 1, 13, 17], 2),
        ([5, 3, 7, 7], 2),
        ([1, 2, 10, 7], 3),
        ([2, 1, 3, 3], 1),
    ] {
        let x = distinct(k as u64, &shape);
        check_gradient("max_pool2d", &x, |x| max_pool2d(x, k));
        check_gradient("avg_pool2d", &x, |x| avg_pool2d(x, k));
        check_gradient("global_avg_pool2d", &x, global_avg_pool2d);
        check_gradient("upsample_nearest2d", &x, |x| upsample_nearest2d(x, k));
    }
}

#[test]
fn averages_by_hand() {
    let x = tensor(&[1.0, 2.0, 9.0, 3.0, 6.0, 9.0], &[1, 1, 2, 3]);
    assert_eq!(values(&avg_pool2d(&x, 2).unwrap()), [3.0]);
    assert_eq!(values(&global_avg_pool2d(&x).unwrap()), [5.0]);
    let expected = [2.0, 2.0, 0.0, 2.0, 2.0, 0.0];
    assert_both(&x, &[8.0], |x| avg_pool2d(x, 2), &expected);
    assert!(avg_pool2d(&x, 3).is_err() && avg_pool2d(&x, 0).is_err());
}

/// PyTorch's padding puts the patches of stride 2 elsewhere than TensorFlow's: here at every first, not at every second place.
#[test]
fn zeros_on_all_sides_by_hand() {
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 1, 4]);
    let weight = tensor(&[0.0, 0.0, 0.0, 1.0, 10.0, 100.0, 0.0, 0.0, 0.0], &[1, 1, 3, 3]);
    let conv = |padding| values(&conv2d(&x, &weight, None, 2, padding).unwrap());
    assert_eq!(conv(Padding::Zeros(1)), [210.0, 432.0]);
    assert_eq!(conv(Padding::Same), [321.0, 43.0]);
    // A row of zeros above and below, whose patches see the map by their outer taps.
    let tall = conv2d(&x, &weight, None, 1, Padding::Zeros(2)).unwrap();
    assert_eq!(tall.dims(), [1, 1, 3, 6]);
    assert_eq!(values(&tall)[6..12], [100.0, 210.0, 321.0, 432.0, 43.0, 4.0]);
    let error = conv2d(&x, &weight, None, 1, Padding::Zeros(3)).unwrap_err().to_string();
    assert!(error.contains("Zeros(3)"), "{error}");
}

#[test]
fn first_of_equals_has_the_whole_gradient() {
    let x = tensor(
        &[
            1.0, 5.0, 2.0, 2.0, 4.0, 5.0, 2.0, 2.0, 0.0, 0.0, -1.0, -3.0, 0.0, 0.0, -1.0, -1.0,
        ],
        &[1, 1, 4, 4],
    );
    let expected = [
        0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 3.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0,
    ];
    assert_both(&x, &[1.0, 2.0, 3.0, 4.0], |x| max_pool2d(x, 2), &expected);
}

/// What rounding makes unequal is equal where operators are composed, as on a GPU.
#[test]
fn first_of_nearly_equals_has_the_whole_gradient() {
    for (least, winner) in [(1. - 1e-6, 0), (1. - 1e-5, 1)] {
        let x = Tensor::new(&[[[[least as f32, 1.], [0.5, 0.]]]], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let y = with_composed_ops(|| max_pool2d(x.as_tensor(), 2)).unwrap();
        assert_eq!(values(&y), [1.], "the value is the largest all the same");
        let dx = vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap().0.unwrap();
        assert_eq!(values(&dx)[winner], 1., "{least}");
    }
}

/// Rounding must not fill the zeros of a gradient: a step along its sign would make a whole step of it.
#[test]
fn an_input_that_no_output_hears_of_has_no_gradient() {
    let x = Var::from_tensor(&random(30, &[2, 16, 12, 12]).to_dtype(DType::F32).unwrap()).unwrap();
    let weight = random(31, &[16, 16, 3, 3]).to_dtype(DType::F32).unwrap();
    let y = conv2d(x.as_tensor(), &weight, None, 1, Padding::Same).unwrap();
    let cotangent = random(32, &[2, 16, 12, 6]).pad_with_zeros(3, 0, 6).unwrap();
    let dx = vjp(x.as_tensor(), &y, &cotangent.to_dtype(DType::F32).unwrap())
        .unwrap()
        .0
        .unwrap();
    assert!(values(&dx.narrow(3, 0, 7).unwrap()).iter().all(|g| *g != 0.0));
    assert!(values(&dx.narrow(3, 7, 5).unwrap()).iter().all(|g| *g == 0.0));
}

#[test]
fn a_gradient_of_ones_own() {
    let x = Var::from_tensor(&tensor(&[1., -2.], &[2])).unwrap();
    let y = (x.as_tensor().detach() * 3.).unwrap();
    let f = |pullback: fn(&Tensor) -> Result<Tensor>| custom_vjp(x.as_tensor(), &y, pullback).unwrap();
    let straight = f(|dy| dy * 10.);
    assert_eq!(values(&straight), [3., -6.]);
    let twice = (&straight * x.as_tensor()).unwrap();
    let dx = vjp(x.as_tensor(), &twice, &twice.ones_like().unwrap()).unwrap().0;
    assert_eq!(values(&dx.unwrap()), [10. + 3., -20. - 6.]);
    let wrong = f(|dy| dy.narrow(0, 0, 1));
    let error = vjp(x.as_tensor(), &wrong, &y).unwrap_err().to_string();
    assert!(error.contains("an input [2] was given as [1]"), "{error}");
    let constant = custom_vjp(&y, &y, |_| unreachable!("nobody asks")).unwrap();
    assert!(!constant.track_op());
    let view = custom_vjp(x.as_tensor(), &y.narrow(0, 1, 1).unwrap(), |dy| dy.broadcast_as(2)).unwrap();
    assert_eq!(values(&view), [-6.]);
}

#[test]
fn used_twice() {
    // candle's own upsampling overwrites one of the two gradients.
    let x = distinct(3, &[2, 2, 4, 5]);
    check_gradient("upsample and skip", &x, |x| {
        let up = upsample_nearest2d(x, 2)?;
        let again = upsample_nearest2d(&(x * 3.0)?, 2)?;
        max_pool2d(&(up * again)?, 2)? * x
    });
    let w = random(4, &[2, 2, 3, 3]);
    check_gradient("conv and skip", &x, |x| {
        let y = relu(&conv2d(x, &w, None, 1, Padding::Same)?)?;
        let y = conv2d(&(y + x)?, &w, None, 1, Padding::Same)?;
        Tensor::cat(&[&y, x], 1)
    });
}

/// (batch, in, out, height, width, kernel, stride, padding)
type Case = (usize, usize, usize, usize, usize, usize, usize, Padding);

const CONVOLUTIONS: [Case; 23] = [
    (1, 1, 1, 1, 1, 1, 1, Padding::Valid),
    (2, 3, 4, 5, 5, 1, 1, Padding::Valid),
    (2, 3, 2, 5, 6, 1, 2, Padding::Same),
    (1, 3, 5, 13, 17, 3, 1, Padding::Valid),
    (2, 3, 2, 13, 17, 3, 1, Padding::Same),
    (5, 2, 3, 7, 9, 3, 2, Padding::Valid),
    (2, 2, 3, 8, 9, 3, 2, Padding::Same),
    (1, 2, 3, 11, 10, 5, 1, Padding::Same),
    (2, 1, 7, 12, 12, 5, 2, Padding::Valid),
    (1, 3, 2, 9, 8, 5, 2, Padding::Same),
    (1, 2, 2, 9, 13, 6, 2, Padding::Valid),
    (2, 2, 2, 8, 8, 6, 1, Padding::Same),
    (1, 1, 3, 14, 15, 8, 2, Padding::Same),
    (1, 2, 1, 9, 8, 8, 1, Padding::Valid),
    (2, 1, 2, 4, 3, 8, 1, Padding::Same),
    (1, 1, 2, 11, 12, 3, 3, Padding::Same),
    (1, 9, 13, 6, 7, 3, 1, Padding::Same),
    (2, 3, 2, 8, 8, 3, 2, Padding::Zeros(1)),
    (2, 2, 6, 9, 8, 3, 2, Padding::Zeros(1)),
    (1, 7, 6, 7, 10, 3, 1, Padding::Zeros(2)),
    (1, 2, 3, 11, 10, 7, 2, Padding::Zeros(3)),
    (2, 6, 7, 6, 5, 1, 2, Padding::Zeros(0)),
    (1, 6, 5, 6, 6, 2, 2, Padding::Zeros(1)),
];

#[test]
fn convolution() {
    for case in CONVOLUTIONS {
        let (n, c_in, c_out, h, w, k, stride, padding) = case;
        let x = random(5, &[n, c_in, h, w]);
        let weight = random(6, &[c_out, c_in, k, k]);
        let bias = random(7, &[c_out]);
        let conv = |x: &Tensor, w: &Tensor, b: &Tensor| conv2d(x, w, Some(b), stride, padding);
        let what = |at: &str| format!("conv2d {case:?} at {at}");
        check_gradient(&what("x"), &x, |x| conv(x, &weight, &bias));
        check_gradient(&what("weight"), &weight, |w| conv(&x, w, &bias));
        check_gradient(&what("bias"), &bias, |b| conv(&x, &weight, b));
        check_gradient(&what("x, no bias"), &x, |x| conv2d(x, &weight, None, stride, padding));
    }
}

#[test]
fn transposed_convolution() {
    for case in CONVOLUTIONS {
        let (n, c_in, c_out, h, w, k, stride, padding) = case;
        let x = random(5, &[n, c_in, h, w]);
        let weight = random(6, &[c_in, c_out, k, k]);
        let bias = random(7, &[c_out]);
        let conv = |x: &Tensor, w: &Tensor, b: &Tensor| conv_transpose2d(x, w, Some(b), stride, padding);
        let what = |at: &str| format!("conv_transpose2d {case:?} at {at}");
        check_gradient(&what("x"), &x, |x| conv(x, &weight, &bias));
        check_gradient(&what("weight"), &weight, |w| conv(&x, w, &bias));
        check_gradient(&what("bias"), &bias, |b| conv(&x, &weight, b));
    }
}

#[test]
fn transposed_convolution_by_hand() {
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 2, 2]);
    let weight = tensor(&[1.0, 10.0, 100.0, 1000.0], &[1, 1, 2, 2]);
    let blocks = conv_transpose2d(&x, &weight, None, 2, Padding::Valid).unwrap();
    #[rustfmt::skip]
    let expected = [
        1.0, 10.0, 2.0, 20.0,
        100.0, 1000.0, 200.0, 2000.0,
        3.0, 30.0, 4.0, 40.0,
        300.0, 3000.0, 400.0, 4000.0,
    ];
    assert_eq!(values(&blocks), expected);
    let overlapping = conv_transpose2d(&x, &weight, None, 1, Padding::Valid).unwrap();
    let expected = [1.0, 12.0, 20.0, 103.0, 1234.0, 2040.0, 300.0, 3400.0, 4000.0];
    assert_eq!(values(&overlapping), expected);
    // TensorFlow's zeros: one row and column more behind than before, so that the last ones fall off.
    let same = conv_transpose2d(&x, &weight, None, 1, Padding::Same).unwrap();
    assert_eq!(values(&same), [1.0, 12.0, 103.0, 1234.0]);
    assert!(conv_transpose2d(&x, &random(1, &[2, 1, 2, 2]), None, 1, Padding::Same).is_err());
    assert!(conv_transpose2d(&x, &weight, Some(&random(1, &[2])), 1, Padding::Same).is_err());
}

#[test]
fn convolution_of_many_channels_and_images() {
    let x = random(8, &[19, 32, 14, 14]);
    let weight = random(9, &[64, 32, 3, 3]);
    let bias = random(10, &[64]);
    let same = |x: &Tensor, w: &Tensor| conv2d(x, w, Some(&bias), 1, Padding::Same);
    check_gradient_along("x", &x, Some(3), |x| same(x, &weight));
    check_gradient_along("weight", &weight, Some(3), |w| same(&x, w));
}

#[test]
fn fully_connected() {
    for (n, inputs, outputs) in [(1, 1, 1), (1, 7, 3), (5, 3, 10), (16, 4, 33), (37, 5, 2)] {
        let x = random(11, &[n, inputs]);
        let weight = random(12, &[outputs, inputs]);
        let bias = random(13, &[outputs]);
        check_gradient("x", &x, |x| linear(x, &weight, Some(&bias)));
        check_gradient("weight", &weight, |w| linear(&x, w, Some(&bias)));
        check_gradient("bias", &bias, |b| linear(&x, &weight, Some(b)));
        check_gradient("no bias", &x, |x| linear(x, &weight, None));
    }
    check_gradient("flatten", &random(14, &[2, 3, 2, 2]), flatten);
}

#[test]
fn losses() {
    let x = (distinct(15, &[6, 10]) * 4.0).unwrap();
    let labels = Tensor::from_vec(vec![0i64, 9, 3, 3, 5, 1], 6, &Device::Cpu).unwrap();
    check_gradient("softmax", &x, softmax);
    check_gradient("log_softmax", &x, log_softmax);
    check_gradient("cross_entropy", &x, |x| cross_entropy(x, &labels));
    check_gradient("log_odds_against", &x, |x| log_odds_against(x, &labels));
    check_gradient("margin", &x, |x| margin(x, &labels));
    let parity = Tensor::from_vec(vec![0i64, 1, 1, 1, 1, 1], 6, &Device::Cpu).unwrap();
    check_gradient("two classes", &x.narrow(1, 3, 2).unwrap(), |x| margin(x, &parity));
    check_gradient("two classes", &x.narrow(1, 3, 2).unwrap(), |x| {
        log_odds_against(x, &parity)
    });
}

#[test]
fn cross_entropy_by_hand() {
    // log(e^0 + e^ln2 + e^ln5) = ln 8; the softmax is 1/8, 2/8, 5/8.
    let x = tensor(&[0.0, 2f64.ln(), 5f64.ln()], &[1, 3]);
    let label = Tensor::from_vec(vec![1u32], 1, &Device::Cpu).unwrap();
    let loss = values(&cross_entropy(&x, &label).unwrap());
    assert!((loss[0] - 4f64.ln()).abs() < 1e-15);
    let g = gradient(&x, &[2.0], |x| cross_entropy(x, &label));
    for (g, expected) in g.iter().zip([0.25, -1.5, 1.25]) {
        assert!((g - expected).abs() < 1e-15, "{g} {expected}");
    }
}

#[test]
fn cross_entropy_of_huge_logits_is_finite() {
    let x = Tensor::from_vec(vec![1e30f32, 0.0, -1e30], (1, 3), &Device::Cpu).unwrap();
    let label = Tensor::from_vec(vec![1u32], 1, &Device::Cpu).unwrap();
    assert_eq!(values(&cross_entropy(&x, &label).unwrap()), [f64::from(1e30f32)]);
}

/// Where a model is sure, `p_y - 1` in f32 is 0 or noise; the gradient must be right all the same, since an attack
/// starts there.
#[test]
fn losses_of_a_sure_model_keep_their_gradient() {
    let z = [-4.25f64, 19.5, -1.75, 2.5, -7.125];
    let total: f64 = z.iter().map(|z| (z - 19.5).exp()).sum();
    let p: Vec<f64> = z.iter().map(|z| (z - 19.5).exp() / total).collect();
    let others = p[0] + p[2] + p[3] + p[4];
    let x = tensor(&z, &[1, 5]).to_dtype(DType::F32).unwrap();
    let label = Tensor::from_vec(vec![1u32], 1, &Device::Cpu).unwrap();
    let check = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>, expected: &[f64]| {
        let x = Var::from_tensor(&x).unwrap();
        let grads = f(x.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        for (g, expected) in values(grads.get(&x).unwrap()).iter().zip(expected) {
            assert!((g / expected - 1.0).abs() < 1e-5, "{name}: {g} {expected}");
        }
    };
    let by_loss = [p[0], -others, p[2], p[3], p[4]];
    let loss = |x: &Tensor| cross_entropy(x, &label);
    check("cross_entropy", &loss, &by_loss);
    with_composed_ops(|| check("cross_entropy, composed", &loss, &by_loss));
    check("log_softmax", &|x| log_softmax(x)?.narrow(1, 1, 1)?.neg(), &by_loss);
    let by_softmax: Vec<f64> = by_loss.iter().map(|g| -p[1] * g).collect();
    check("softmax", &|x| softmax(x)?.narrow(1, 1, 1), &by_softmax);
}

#[test]
fn cross_entropy_is_the_softplus_of_the_log_odds_against_the_label() {
    let x = tensor(&[0.0, 2f64.ln(), 5f64.ln()], &[1, 3]);
    for (label, odds) in [(0u32, 7.), (1, 3.), (2, 3. / 5.)] {
        let label = Tensor::new(&[label], &Device::Cpu).unwrap();
        let t = values(&log_odds_against(&x, &label).unwrap())[0];
        let loss = values(&cross_entropy(&x, &label).unwrap())[0];
        assert!((t - f64::ln(odds)).abs() < 1e-15 && (t.exp().ln_1p() - loss).abs() < 1e-15);
    }
}

/// Scaled logits keep their predictions. In `f32` the gradient of cross-entropy is 0 from the second scale on; what an attack
/// ascends must keep its direction at every scale, for labels that lead and for labels that are far behind.
#[test]
fn log_odds_have_the_direction_of_cross_entropy_however_sure_the_model() {
    let z = [-4.25f64, 19.5, -1.75, 2.5, 2.25];
    for (scale, label) in [1., 10., 100., 1000.].into_iter().flat_map(|s| [(s, 1u32), (s, 4)]) {
        let wide = tensor(&z.map(|z| z * scale), &[1, 5]);
        let y = Tensor::new(&[label], &Device::Cpu).unwrap();
        let others = (0..5).filter(|i| *i != label as usize);
        let top = others.clone().map(|i| scale * z[i]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = others.map(|i| (scale * z[i] - top).exp()).sum();
        let mut expected = z.map(|z| (scale * z - top).exp() / total);
        expected[label as usize] = -1.;

        let narrow = Var::from_tensor(&wide.to_dtype(DType::F32).unwrap()).unwrap();
        let check = |what: &str| {
            let t = log_odds_against(narrow.as_tensor(), &y).unwrap();
            let dx = vjp(narrow.as_tensor(), &t, &t.ones_like().unwrap()).unwrap().0.unwrap();
            for (g, expected) in values(&dx).iter().zip(expected) {
                assert!((g - expected).abs() <= 1e-6, "{what}, {scale}, {label}: {g} {expected}");
            }
            let t_exact = top + total.ln() - scale * z[label as usize];
            assert!((values(&t)[0] / t_exact - 1.).abs() < 1e-6, "{what}, {scale}, {label}");
        };
        check("kernels");
        with_composed_ops(|| check("composed"));

        // Where cross-entropy has a gradient in f64, it is a positive multiple.
        let by_loss = gradient(&wide, &[1.], |x| cross_entropy(x, &y));
        let size = -by_loss[label as usize];
        if size > 1e-290 {
            for (g, expected) in by_loss.iter().zip(expected) {
                assert!((g / size - expected).abs() < 1e-12, "{scale}, {label}: {g} {expected}");
            }
        }
    }
}

#[test]
fn margin_of_equals() {
    let x = tensor(&[3.0, 1.0, 3.0, 3.0], &[1, 4]);
    let label = Tensor::from_vec(vec![0i64], 1, &Device::Cpu).unwrap();
    assert_eq!(values(&margin(&x, &label).unwrap()), [0.0]);
    assert_both(&x, &[2.0], |x| margin(x, &label), &[2.0, 0.0, -2.0, 0.0]);
}

#[test]
fn wrong_labels_are_errors() {
    let x = random(16, &[2, 3]);
    let label = |v: Vec<i64>| Tensor::new(v, &Device::Cpu).unwrap();
    for labels in [vec![0, 3], vec![-1, 0], vec![0]] {
        assert!(cross_entropy(&x, &label(labels.clone())).is_err());
        assert!(log_odds_against(&x, &label(labels.clone())).is_err());
        assert!(margin(&x, &label(labels)).is_err());
    }
    let one_class = log_odds_against(&random(1, &[2, 1]), &label(vec![0, 0])).unwrap_err();
    assert!(one_class.to_string().contains("have 1"), "{one_class}");
    assert!(cross_entropy(&x, &random(1, &[2])).is_err());
}

#[test]
fn only_wanted_gradients_are_there() {
    let x = Var::from_tensor(&random(17, &[1, 2, 5, 5])).unwrap();
    let w = Var::from_tensor(&random(18, &[3, 2, 3, 3])).unwrap();
    let constant = |v: &Var| v.as_detached_tensor();
    let conv = |x: &Tensor, w: &Tensor| conv2d(x, w, None, 1, Padding::Valid).unwrap();
    let y = conv(x.as_tensor(), &constant(&w));
    let (dx, rest) = vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap();
    assert!(dx.is_some() && rest.get(w.as_tensor()).is_none());
    let y = conv(&constant(&x), w.as_tensor());
    let (dx, rest) = vjp(x.as_tensor(), &y, &y.ones_like().unwrap()).unwrap();
    assert!(dx.is_none() && rest.get(w.as_tensor()).is_some());
}

#[test]
fn a_tape_runs_again_with_another_cotangent() {
    let x = Var::from_tensor(&tensor(&[1.0, 2.0], &[2])).unwrap();
    let y = relu(&(x.as_tensor() * x.as_tensor()).unwrap()).unwrap();
    for (cotangent, expected) in [([1.0, 0.0], [2.0, 0.0]), ([0.5, -1.0], [1.0, -4.0])] {
        let g = vjp(x.as_tensor(), &y, &tensor(&cotangent, &[2])).unwrap().0;
        assert_eq!(values(&g.unwrap()), expected);
    }
    assert!(vjp(x.as_tensor(), &y, &tensor(&[1.0], &[1])).is_err());
    let independent = tensor(&[1.0], &[1]);
    assert!(vjp(x.as_tensor(), &independent, &independent).unwrap().0.is_none());
}

#[test]
fn gradcheck_finds_candles_wrong_pooling() {
    let x = distinct(19, &[1, 1, 4, 4]);
    let report = gradcheck(|x| x.max_pool2d(2), &x, &GradcheckOptions::default()).unwrap();
    assert!(report.max_relative_error > 0.5, "{report:?}");
}
