//! Layers: normalisation by hand, dropout's keys, and gradients at their parameters.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashSet;

use advae_nn::*;
use candle_core::{DType, Device, Tensor};
use common::{check_gradient, distance, random, values};

fn weights() -> Weights {
    Weights::init(1).with_dtype(DType::F64)
}

/// Sets every parameter of `weights` to random numbers, variances to positive ones.
fn randomise(weights: &Weights) {
    for (i, param) in weights.params().iter().enumerate() {
        let value = random(100 + i as u64, param.var().dims());
        let value = match param.name().ends_with("running_var") {
            true => value.affine(0.4, 1.0).unwrap(),
            false => value,
        };
        param.set(&value).unwrap();
    }
}

#[test]
fn batch_norm_gradients() {
    for train in [false, true] {
        let w = weights();
        let layer = BatchNorm2d::new(&w, 3).unwrap();
        randomise(&w);
        let mut pass = Pass::eval().with_track(true);
        pass.train = train;
        for shape in [[4, 3, 3, 5], [1, 3, 7, 7]] {
            let x = random(1, &shape);
            let keep = w.params();
            let running: Vec<Tensor> = keep.iter().map(|p| p.var().as_tensor().copy().unwrap()).collect();
            check_gradient("batch norm", &x, |x| {
                for (param, value) in keep.iter().zip(&running).skip(2) {
                    param.set(value)?;
                }
                layer.forward(&pass, x)
            });
        }
    }
}

/// What training computes, without what it changes: alone and in a network.
#[test]
fn batch_statistics_alone_leave_the_running_ones() {
    let w = weights();
    let layer = BatchNorm2d::new(&w, 3).unwrap();
    let mut net = NetBuilder::new([3, 4, 5]);
    let input = net.input();
    let out = net.batch_norm(input, &layer).unwrap();
    let net = net.build(out).unwrap();
    randomise(&w);
    let x = random(1, &[4, 3, 4, 5]);
    let running = || [2, 3].map(|i| values(w.params()[i].var().as_tensor()));
    let (before, pass) = (
        running(),
        Pass {
            batch_statistics: true,
            ..Pass::eval()
        },
    );
    let alone = [layer.forward(&pass, &x).unwrap(), net.forward(&pass, &x).unwrap()];
    assert_eq!(running(), before);
    let trained = layer.forward(&Pass::training(0), &x).unwrap();
    assert!(running() != before);
    for y in alone {
        assert!(distance(&y, &trained) < 1e-6);
    }
}

#[test]
fn gradients_at_every_parameter() {
    let w = weights();
    let conv = Conv2d::new(&w.pp("conv"), 2, 3, 3, 1, Padding::Same).unwrap();
    let norm = BatchNorm2d::new(&w.pp("norm"), 3).unwrap();
    let full = Linear::new(&w.pp("fc"), 27, 4).unwrap();
    randomise(&w);
    let x = random(2, &[5, 2, 6, 6]);
    for train in [false, true] {
        let mut pass = Pass::eval().with_track(true);
        pass.train = train;
        let forward = || -> Result<Tensor> {
            let h = norm.forward(&pass, &conv.forward(&pass, &x)?)?;
            full.forward(&pass, &flatten(&max_pool2d(&sigmoid(&h)?, 2)?)?)
        };
        let y = forward().unwrap();
        let cotangent = random(3, y.dims());
        let (_, grads) = vjp(&x, &y, &cotangent).unwrap();
        for param in w.params().iter().filter(|p| p.trainable()) {
            let analytic = values(grads.get(param.var().as_tensor()).unwrap());
            let value = param.var().as_tensor().copy().unwrap();
            let direction = random(4, value.dims());
            let mut sides = [0.0; 2];
            for (side, sign) in sides.iter_mut().zip([1e-5, -1e-5]) {
                param.set(&(&value + (&direction * sign).unwrap()).unwrap()).unwrap();
                let y = (forward().unwrap() * &cotangent).unwrap();
                *side = y.sum_all().unwrap().to_scalar::<f64>().unwrap();
            }
            param.set(&value).unwrap();
            let numeric = (sides[0] - sides[1]) / 2e-5;
            let analytic: f64 = analytic.iter().zip(values(&direction)).map(|(a, d)| a * d).sum();
            // The bias of a convolution before train-mode normalisation has no effect: both are 0.
            let scale = analytic.abs().max(0.1);
            assert!(
                (numeric - analytic).abs() / scale < 1e-6,
                "{}: {numeric} {analytic}",
                param.name()
            );
        }
    }
}

#[test]
fn parameters_are_constants_unless_tracked() {
    let w = weights();
    let conv = Conv2d::new(&w.pp("conv"), 1, 1, 1, 1, Padding::Valid).unwrap();
    let y = conv.forward(&Pass::eval(), &random(1, &[1, 1, 2, 2])).unwrap();
    assert!(!y.track_op());
    let y = conv
        .forward(&Pass::eval().with_track(true), &random(1, &[1, 1, 2, 2]))
        .unwrap();
    assert!(y.track_op());
}

#[test]
fn running_statistics_by_hand() {
    let w = weights();
    let layer = BatchNorm2d::new(&w, 1).unwrap();
    // Mean 3, sum of squares 2 * (4 + 1) + 0 = 20 over 5... values 1, 2, 4, 5 twice: m = 8, mean 3.
    let x = [1.0, 2.0, 4.0, 5.0, 5.0, 4.0, 2.0, 1.0];
    let x = Tensor::from_slice(&x, (2, 1, 2, 2), &Device::Cpu).unwrap();
    let y = layer.forward(&Pass::training(0), &x).unwrap();
    let biased: f64 = 20.0 / 8.0;
    let expected = (1.0 - 3.0) / (biased + 1e-5).sqrt();
    assert!((values(&y)[0] - expected).abs() < 1e-12);
    let running: Vec<f64> = w.params()[2..].iter().map(|p| values(p.var())[0]).collect();
    assert!((running[0] - 0.3).abs() < 1e-12);
    assert!((running[1] - (0.9 + 0.1 * 20.0 / 7.0)).abs() < 1e-12);
    let y = layer.forward(&Pass::eval(), &x).unwrap();
    let expected = (1.0 - running[0]) / (running[1] + 1e-5).sqrt();
    assert!((values(&y)[0] - expected).abs() < 1e-12);
    assert_eq!(
        running,
        w.params()[2..].iter().map(|p| values(p.var())[0]).collect::<Vec<_>>()
    );
}

#[test]
fn dropout_keeps_the_expectation() {
    let x = Tensor::ones((8, 4000), DType::F32, &Device::Cpu).unwrap();
    let dropout = Dropout::new(0.25, 1);
    let y = values(&dropout.forward(&Pass::training(3), &x).unwrap());
    let levels: HashSet<u64> = y.iter().map(|v| v.to_bits()).collect();
    assert_eq!(
        levels,
        HashSet::from([0f64.to_bits(), f64::from(1f32 / 0.75).to_bits()])
    );
    let mean = y.iter().sum::<f64>() / y.len() as f64;
    // Standard error: sqrt(.25 / .75 / 32000) = 0.0032.
    assert!((mean - 1.0).abs() < 0.013, "{mean}");
    let same = dropout.forward(&Pass::eval(), &x).unwrap();
    assert_eq!(values(&same), values(&x));
    assert!(Dropout::new(1.0, 1).forward(&Pass::training(3), &x).is_err());
}

#[test]
fn dropout_is_keyed_by_sample() {
    let x = Tensor::ones((3, 50), DType::F32, &Device::Cpu).unwrap();
    let run = |pass: &Pass, stream| values(&Dropout::new(0.5, stream).forward(pass, &x).unwrap());
    let pass = Pass::training(1).with_ids([10, 20, 30]);
    let base = run(&pass, 0);
    let turned = run(&pass.clone().with_ids([30, 10, 20]), 0);
    assert_eq!(base[..50], turned[50..100]);
    assert_eq!(base[100..], turned[..50]);
    assert_eq!(base, run(&pass, 0));
    for other in [
        run(&pass, 1),
        run(&pass.clone().with_draw(1), 0),
        run(&pass.clone().with_seed(2), 0),
        run(&pass.clone().with_phase(Phase::Score), 0),
    ] {
        assert_ne!(base[..50], other[..50]);
    }
    let wrong = pass.with_ids([1, 2]);
    assert!(Dropout::new(0.5, 0).forward(&wrong, &x).is_err());
}

#[test]
fn random_tensors_are_keyed_by_sample() {
    let pass = Pass::eval().with_seed(5).with_ids([7, 8]);
    let turned = pass.clone().with_ids([8, 7]);
    let x = Tensor::zeros((2, 1, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let (a, b) = (pass.randn_like(&x, 2).unwrap(), turned.randn_like(&x, 2).unwrap());
    assert_eq!(values(&a)[..9], values(&b)[9..]);
    let uniform = |p: &Pass| p.rand_uniform(&[2, 400], -0.3, 0.3, 2, &Device::Cpu).unwrap();
    let (a, b) = (values(&uniform(&pass)), values(&uniform(&turned)));
    assert_eq!(a[..400], b[400..]);
    assert!(a.iter().all(|v| v.abs() <= 0.3 + 1e-7));
    assert!((a.iter().sum::<f64>() / 800.0).abs() < 0.03);
    assert!(pass.randn_like(&x.narrow(0, 0, 1).unwrap(), 2).is_err());
}

#[test]
fn normal_numbers_are_normal() {
    let x = Tensor::zeros((1, 40001), DType::F64, &Device::Cpu).unwrap();
    let v = values(&Pass::eval().randn_like(&x, 0).unwrap());
    let n = v.len() as f64;
    let moment = |k| v.iter().map(|v| v.powi(k)).sum::<f64>() / n;
    assert!(
        moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.03,
        "{} {}",
        moment(1),
        moment(2)
    );
    assert!((moment(4) - 3.0).abs() < 0.2);
}

#[test]
fn single_and_double_precision_agree() {
    let outputs = [DType::F32, DType::F64].map(|dtype| {
        let w = Weights::init(9).with_dtype(dtype);
        let conv = Conv2d::new(&w.pp("conv"), 3, 8, 3, 1, Padding::Same).unwrap();
        let norm = BatchNorm2d::new(&w.pp("norm"), 8).unwrap();
        let x = random(1, &[4, 3, 9, 9]).to_dtype(dtype).unwrap();
        let y = conv.forward(&Pass::training(0), &x).unwrap();
        relu(&norm.forward(&Pass::training(0), &y).unwrap()).unwrap()
    });
    assert!(distance(&outputs[0], &outputs[1]) < 1e-5);
}
