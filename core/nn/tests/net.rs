//! Whole networks as one operator: against the same graph layer by layer, against central differences, and alike for
//! every batch, thread count and processor.

#![allow(clippy::unwrap_used)]

mod common;

use advae_nn::net::Node;
use advae_nn::*;
use candle_core::{DType, Device, Tensor, Var};
use common::{distance, distinct, random, random_f32, values};

/// A network by name: its builder, and the shape of its images.
type Case = (&'static str, [usize; 3], fn(&Weights, &mut NetBuilder) -> Result<Node>);

/// Kernel, stride, padding.
type Taps = (usize, usize, Padding);

fn conv(w: &Weights, net: &mut NetBuilder, x: Node, to: usize, (k, stride, padding): Taps) -> Result<Node> {
    let ([from, ..], name) = (net.shape(x), format!("conv{}_{to}", w.params().len()));
    net.conv2d(x, &Conv2d::new(&w.pp(&name), from, to, k, stride, padding)?)
}

fn transposed(w: &Weights, net: &mut NetBuilder, x: Node, to: usize, (k, stride, padding): Taps) -> Result<Node> {
    let ([from, ..], name) = (net.shape(x), format!("up{}_{to}", w.params().len()));
    net.conv_transpose2d(x, &ConvTranspose2d::new(&w.pp(&name), from, to, k, stride, padding)?)
}

fn linear(w: &Weights, net: &mut NetBuilder, x: Node, to: usize) -> Result<Node> {
    let from = net.shape(x).iter().product();
    net.linear(x, &Linear::new(&w.pp(&format!("fc{}", w.params().len())), from, to)?)
}

/// Batch norm whose running statistics are not those of an untrained one.
fn norm(w: &Weights, net: &mut NetBuilder, x: Node) -> Result<Node> {
    let [c, ..] = net.shape(x);
    let name = format!("norm{}", w.params().len());
    let layer = BatchNorm2d::new(&w.pp(&name), c)?;
    for (i, param) in w.params().iter().filter(|p| p.name().starts_with(&name)).enumerate() {
        let jitter = random(i as u64, &[c]).to_dtype(param.var().dtype())?;
        param.set(&(param.var().as_detached_tensor() + jitter.affine(0.3, 0.35)?)?)?;
    }
    net.batch_norm(x, &layer)
}

const CASES: [Case; 17] = [
    ("X, small", [1, 16, 16], |w, net| {
        let mut x = net.input();
        for (to, pool) in [(16, false), (16, true), (32, false)] {
            x = conv(w, net, x, to, (3, 1, Padding::Valid))?;
            x = net.relu(x);
            if pool {
                x = net.max_pool2d(x, 2)?;
            }
        }
        x = linear(w, net, x, 20)?;
        x = net.relu(x);
        x = net.dropout(x, Dropout::new(0.5, 1));
        linear(w, net, x, 10)
    }),
    ("auto-encoder", [1, 12, 12], |w, net| {
        let mut x = net.input();
        for _ in 0..2 {
            x = conv(w, net, x, 16, (3, 1, Padding::Same))?;
            x = norm(w, net, x)?;
            x = net.relu(x);
            x = net.max_pool2d(x, 2)?;
        }
        for _ in 0..2 {
            x = conv(w, net, x, 16, (3, 1, Padding::Same))?;
            x = net.relu(x);
            x = net.upsample_nearest2d(x, 2)?;
        }
        x = conv(w, net, x, 1, (3, 1, Padding::Same))?;
        Ok(net.sigmoid(x))
    }),
    ("large kernels and strides, odd images", [3, 13, 17], |w, net| {
        let mut x = net.input();
        x = net.scale(x, &[2., 0.5, -1.], &[0.1, 0., -0.2])?;
        x = net.dropout(x, Dropout::new(0.2, 1));
        for (to, k, stride, padding) in [
            (20, 5, 1, Padding::Same),
            (9, 6, 2, Padding::Same),
            (17, 3, 2, Padding::Valid),
            (24, 2, 1, Padding::Valid),
        ] {
            x = conv(w, net, x, to, (k, stride, padding))?;
            x = net.relu(x);
        }
        let [c, ..] = net.shape(x);
        let numbers: Vec<f64> = (0..c).map(|i| f64::from(i as u32) / 7. - 1.).collect();
        x = net.scale(x, &numbers, &numbers)?;
        x = net.flatten(x);
        x = net.dropout(x, Dropout::new(0.5, 2));
        x = linear(w, net, x, 5)?;
        net.scale(x, &[1., 2., -3., 0.5, 0.], &[0., 1., 0., 0., 4.])
    }),
    ("linear alone", [1, 7, 9], |w, net| {
        let mut x = net.input();
        for _ in 0..2 {
            x = linear(w, net, x, 24)?;
            x = net.relu(x);
        }
        linear(w, net, x, 10)
    }),
    ("U-net", [3, 13, 17], |w, net| {
        let x = net.input();
        let a = conv(w, net, x, 8, (3, 1, Padding::Same))?;
        let a = net.relu(a);
        let b = net.max_pool2d(a, 2)?;
        let b = conv(w, net, b, 16, (3, 1, Padding::Same))?;
        let b = net.relu(b);
        let c = net.upsample_nearest2d(b, 2)?;
        // 12 x 16 and 13 x 17 do not meet: one more place by a valid convolution of the larger.
        let a = conv(w, net, a, 8, (2, 1, Padding::Valid))?;
        let c = net.concat(&[a, c])?;
        let c = conv(w, net, c, 3, (3, 1, Padding::Same))?;
        let d = conv(w, net, x, 3, (2, 1, Padding::Valid))?;
        let c = net.add(c, d)?;
        Ok(net.sigmoid(c))
    }),
    ("residual, norm first", [3, 9, 8], |w, net| {
        let mut x = net.input();
        x = conv(w, net, x, 16, (3, 1, Padding::Same))?;
        for stride in [1, 2] {
            let y = norm(w, net, x)?;
            let y = net.relu(y);
            let y = conv(w, net, y, 16, (1, stride, Padding::Same))?;
            let y = norm(w, net, y)?;
            let y = net.relu(y);
            let y = conv(w, net, y, 16, (3, 1, Padding::Same))?;
            let short = conv(w, net, x, 16, (1, stride, Padding::Same))?;
            x = net.add(y, short)?;
        }
        x = net.max_pool2d(x, 3)?;
        linear(w, net, x, 3)
    }),
    (
        "pooling without relu, of odd maps; sizes of 3",
        [2, 11, 10],
        |w, net| {
            let mut x = net.input();
            x = conv(w, net, x, 10, (3, 1, Padding::Valid))?;
            x = net.max_pool2d(x, 2)?;
            x = conv(w, net, x, 7, (4, 1, Padding::Same))?;
            x = net.max_pool2d(x, 2)?;
            x = net.upsample_nearest2d(x, 3)?;
            x = conv(w, net, x, 5, (3, 3, Padding::Same))?;
            let y = net.sigmoid(x);
            net.concat(&[y, x])
        },
    ),
    ("few channels throughout", [1, 8, 8], |w, net| {
        let mut x = net.input();
        x = conv(w, net, x, 2, (3, 1, Padding::Same))?;
        x = norm(w, net, x)?;
        x = net.relu(x);
        x = net.max_pool2d(x, 2)?;
        x = conv(w, net, x, 4, (2, 1, Padding::Valid))?;
        x = net.sigmoid(x);
        linear(w, net, x, 2)
    }),
    ("transposed", [8, 4, 5], |w, net| {
        let mut x = net.input();
        for (to, k, stride, padding) in [
            (24, 5, 2, Padding::Same),
            (9, 2, 2, Padding::Valid),
            (16, 3, 1, Padding::Same),
        ] {
            x = transposed(w, net, x, to, (k, stride, padding))?;
            x = norm(w, net, x)?;
            x = net.relu(x);
        }
        x = net.max_pool2d(x, 2)?;
        x = transposed(w, net, x, 20, (4, 3, Padding::Same))?;
        x = net.relu(x);
        x = transposed(w, net, x, 1, (5, 2, Padding::Same))?;
        Ok(net.sigmoid(x))
    }),
    ("transposed, of few channels", [3, 6, 5], |w, net| {
        let mut x = net.input();
        x = transposed(w, net, x, 12, (2, 2, Padding::Valid))?;
        x = net.relu(x);
        x = transposed(w, net, x, 3, (3, 1, Padding::Valid))?;
        x = transposed(w, net, x, 2, (3, 1, Padding::Same))?;
        x = net.relu(x);
        linear(w, net, x, 6)
    }),
    ("transposed to a size of its own", [8, 4, 3], |w, net| {
        let mut x = net.input();
        for (to, output) in [(16, [7, 5]), (9, [13, 10])] {
            let ([from, ..], name) = (net.shape(x), format!("to{to}"));
            let layer = ConvTranspose2d::new(&w.pp(&name), from, to, 5, 2, Padding::Same)?;
            x = net.conv_transpose2d(x, &layer.with_output(output))?;
            x = net.relu(x);
        }
        linear(w, net, x, 4)
    }),
    ("bottlenecks, norm first", [3, 12, 9], |w, net| {
        let mut x = net.input();
        x = conv(w, net, x, 8, (3, 1, Padding::Same))?;
        x = norm(w, net, x)?;
        x = net.relu(x);
        for (block, (to, stride)) in [(24, 1), (24, 1), (40, 2)].into_iter().enumerate() {
            let (mut y, mut short) = (x, x);
            if block > 0 {
                y = norm(w, net, y)?;
                y = net.relu(y);
            }
            for (to, k, stride) in [(8, 1, stride), (8, 3, 1)] {
                y = conv(w, net, y, to, (k, stride, Padding::Same))?;
                y = norm(w, net, y)?;
                y = net.relu(y);
            }
            y = conv(w, net, y, to, (1, 1, Padding::Same))?;
            if block != 1 {
                short = conv(w, net, x, to, (1, stride, Padding::Same))?;
            }
            x = net.add(y, short)?;
        }
        x = norm(w, net, x)?;
        x = net.relu(x);
        x = net.global_avg_pool2d(x)?;
        x = net.flatten(x);
        linear(w, net, x, 5)
    }),
    ("norms of images and of few channels", [2, 9, 7], |w, net| {
        let x = net.input();
        let a = norm(w, net, x)?;
        let b = net.relu(a);
        let b = norm(w, net, b)?;
        let b = net.add(a, b)?;
        let b = norm(w, net, b)?;
        let b = net.relu(b);
        let b = net.concat(&[b, x])?;
        let b = conv(w, net, b, 20, (2, 1, Padding::Valid))?;
        let c = net.avg_pool2d(b, 3)?;
        let d = norm(w, net, c)?;
        let d = net.relu(d);
        let d = net.add(c, d)?;
        linear(w, net, d, 12)
    }),
    (
        "average pooling, of odd maps and few channels",
        [3, 11, 10],
        |w, net| {
            let x = net.input();
            let y = net.avg_pool2d(x, 3)?;
            let x = conv(w, net, x, 10, (3, 1, Padding::Same))?;
            let x = net.relu(x);
            let x = net.avg_pool2d(x, 3)?;
            let x = net.concat(&[y, x])?;
            let y = net.global_avg_pool2d(x)?;
            let y = net.flatten(y);
            let x = linear(w, net, x, 13)?;
            net.add(y, x)
        },
    ),
    ("without bias, padded as PyTorch pads", [3, 12, 11], |w, net| {
        let mut x = net.input();
        for (to, k, stride, zeros) in [(12, 7, 2, 3), (20, 3, 2, 1), (8, 1, 2, 0), (9, 3, 1, 2), (4, 3, 2, 1)] {
            let ([from, ..], name) = (net.shape(x), format!("conv{}", w.params().len()));
            let init = Init::HeNormal { fan_in: from * k * k };
            let padding = Padding::Zeros(zeros);
            let layer = Conv2d::without_bias(&w.pp(&name), [from, to], k, stride, padding, init)?;
            x = net.conv2d(x, &layer)?;
            x = norm(w, net, x)?;
            x = net.relu(x);
        }
        linear(w, net, x, 3)
    }),
    ("U-net of transposed convolutions", [3, 8, 12], |w, net| {
        let x = net.input();
        let a = conv(w, net, x, 8, (3, 1, Padding::Same))?;
        let a = net.relu(a);
        let b = net.max_pool2d(a, 2)?;
        let b = conv(w, net, b, 16, (3, 1, Padding::Same))?;
        let b = net.relu(b);
        let c = transposed(w, net, b, 8, (2, 2, Padding::Valid))?;
        let c = net.concat(&[a, c])?;
        let c = conv(w, net, c, 3, (3, 1, Padding::Same))?;
        let c = net.add(c, x)?;
        Ok(net.sigmoid(c))
    }),
    ("few channels at a stride", [3, 9, 9], |w, net| {
        let mut x = net.input();
        x = conv(w, net, x, 8, (3, 1, Padding::Same))?;
        conv(w, net, x, 2, (3, 2, Padding::Same))
    }),
];

fn build((_, shape, build): &Case, dtype: DType) -> Net {
    let weights = Weights::init(3).with_dtype(dtype);
    let mut net = NetBuilder::new(*shape);
    let output = build(&weights, &mut net).unwrap();
    net.build(output).unwrap()
}

fn images(n: usize, [c, h, w]: [usize; 3], dtype: DType) -> Tensor {
    distinct(5, &[n, c, h, w])
        .affine(0.02, 0.1)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// Output, and the gradient of `<output, cotangent>`.
fn run(net: &Net, x: &Tensor) -> [Tensor; 2] {
    let x = Var::from_tensor(x).unwrap();
    let y = net.forward(&Pass::eval(), x.as_tensor()).unwrap();
    let mut cotangent = random(6, &y.dims()[1..]).to_dtype(y.dtype()).unwrap();
    cotangent = cotangent.broadcast_as(y.shape()).unwrap();
    let dx = vjp(x.as_tensor(), &y, &cotangent).unwrap().0.unwrap();
    [y.detach(), dx]
}

#[test]
fn one_operator_is_its_layers() {
    for case in &CASES {
        for n in [1, 5, 37] {
            let x = images(n, case.1, DType::F64);
            let net = build(case, DType::F64);
            let (fused, layers) = (run(&net, &x), with_composed_ops(|| run(&net, &x)));
            for (what, (a, b)) in ["output", "gradient"].iter().zip(fused.iter().zip(&layers)) {
                assert!(
                    distance(a, b) < 1e-12,
                    "{}, {n} images: {what} differs by {}",
                    case.0,
                    distance(a, b)
                );
            }
            if case.0 == "few channels at a stride" {
                // Always layer by layer, whose weights have the images' type.
                continue;
            }
            // One weight set for both types: f32 numbers widened.
            let net = build(case, DType::F32);
            let narrow = run(&net, &x.to_dtype(DType::F32).unwrap());
            let wide = run(&net, &x);
            assert!(
                distance(&narrow[0], &wide[0]) < 2e-5,
                "{}: {}",
                case.0,
                distance(&narrow[0], &wide[0])
            );
            assert!(
                distance(&narrow[1], &wide[1]) < 2e-4,
                "{}: {}",
                case.0,
                distance(&narrow[1], &wide[1])
            );
        }
    }
}

/// With parameters as variables a network runs in pieces, whose maps are all kept.
#[test]
fn one_operator_is_its_pieces() {
    for case in &CASES {
        let net = build(case, DType::F32);
        let x = Var::from_tensor(&images(40, case.1, DType::F32)).unwrap();
        for threads in [1, 2] {
            let [fused, pieces] = [false, true].map(|track| {
                let pass = Pass::eval().with_track(track);
                with_threads(threads, || net.forward(&pass, x.as_tensor()).unwrap())
            });
            assert!(
                distance(&fused, &pieces) < 2e-5,
                "{}: {}",
                case.0,
                distance(&fused, &pieces)
            );
            let gradient = |y: &Tensor| vjp(x.as_tensor(), y, &y.ones_like().unwrap()).unwrap().0.unwrap();
            let (a, b) = (gradient(&fused), gradient(&pieces));
            assert!(distance(&a, &b) < 2e-4, "{}: gradients {}", case.0, distance(&a, &b));
        }
    }
}

/// Output, gradient at the images, and gradients at every parameter, of a training pass.
fn train(net: &Net, weights: &Weights, x: &Tensor) -> Vec<Tensor> {
    let x = Var::from_tensor(x).unwrap();
    let y = net.forward(&Pass::training(3), x.as_tensor()).unwrap();
    let cotangent = random(6, y.dims()).to_dtype(y.dtype()).unwrap();
    let (dx, gradients) = vjp(x.as_tensor(), &y, &cotangent).unwrap();
    let trainable = weights.params().into_iter().filter(|p| p.trainable());
    let at_weights = trainable.map(|p| gradients.get(p.var().as_tensor()).unwrap().clone());
    [y.detach(), dx.unwrap()].into_iter().chain(at_weights).collect()
}

#[test]
fn training_in_pieces_is_training_layer_by_layer() {
    for case in &CASES {
        for n in [1, 5, 37] {
            let weights = Weights::init(3).with_dtype(DType::F64);
            let mut net = NetBuilder::new(case.1);
            let output = case.2(&weights, &mut net).unwrap();
            let net = net.build(output).unwrap();
            let x = images(n, case.1, DType::F64);
            let pieces = train(&net, &weights, &x);
            let again = with_threads(2, || train(&net, &weights, &x));
            let layers = with_composed_ops(|| train(&net, &weights, &x));
            assert_eq!(pieces.len(), layers.len());
            for (i, (a, b)) in pieces.iter().zip(&layers).enumerate() {
                // The gradient of a bias before a norm by batch statistics is 0 but for rounding.
                let (a_values, b_values) = (values(a), values(b));
                let difference = a_values.iter().zip(&b_values).map(|(a, b)| (a - b).abs());
                let apart = difference.fold(0., f64::max) / b_values.iter().fold(1., |m: f64, v| m.max(v.abs()));
                assert!(apart < 1e-11, "{}, {n} images, number {i}: {apart}", case.0);
                assert_eq!(
                    values(a),
                    values(&again[i]),
                    "{}, {n} images, number {i}: threads",
                    case.0
                );
            }
        }
    }
}

#[test]
fn training_moves_running_statistics_as_layer_by_layer() {
    for case in &CASES {
        let moved = |composed: bool| {
            let weights = Weights::init(3).with_dtype(DType::F64);
            let mut net = NetBuilder::new(case.1);
            let output = case.2(&weights, &mut net).unwrap();
            let (net, x) = (net.build(output).unwrap(), images(21, case.1, DType::F64));
            let forward = || net.forward(&Pass::training(3), &x).unwrap();
            let y = if composed {
                with_composed_ops(forward)
            } else {
                forward()
            };
            let buffers: Vec<_> = weights.params().into_iter().filter(|p| !p.trainable()).collect();
            (y, buffers)
        };
        let ((_, ours), (_, theirs)) = (moved(false), moved(true));
        for (a, b) in ours.iter().zip(&theirs) {
            let apart = distance(a.var().as_tensor(), b.var().as_tensor());
            assert!(apart < 1e-12, "{}, {}: {apart}", case.0, a.name());
        }
    }
}

/// Batch statistics without training, and gradients of weights by running statistics: the other two passes with norms of their own.
#[test]
fn other_passes_with_norms_are_those_of_the_layers() {
    let passes = [
        Pass::eval().with_track(true),
        Pass {
            batch_statistics: true,
            ..Pass::eval()
        },
    ];
    for (case, pass) in CASES
        .iter()
        .flat_map(|case| passes.iter().map(move |pass| (case, pass)))
    {
        let weights = Weights::init(3).with_dtype(DType::F64);
        let mut net = NetBuilder::new(case.1);
        let output = case.2(&weights, &mut net).unwrap();
        let net = net.build(output).unwrap();
        let x = Var::from_tensor(&images(19, case.1, DType::F64)).unwrap();
        let all = || -> Vec<Tensor> {
            let y = net.forward(pass, x.as_tensor()).unwrap();
            let cotangent = random(6, y.dims());
            let (dx, gradients) = vjp(x.as_tensor(), &y, &cotangent).unwrap();
            let at_weights = weights.params();
            let at_weights = at_weights.iter().filter_map(|p| gradients.get(p.var().as_tensor()));
            [y.detach(), dx.unwrap()]
                .into_iter()
                .chain(at_weights.cloned())
                .collect()
        };
        let (ours, theirs) = (all(), with_composed_ops(all));
        let tracked = weights.params().iter().filter(|p| p.trainable()).count();
        assert_eq!(theirs.len(), 2 + if pass.track { tracked } else { 0 });
        assert_eq!(ours.len(), theirs.len(), "{}", case.0);
        for (i, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert!(distance(a, b) < 1e-11, "{}, number {i}: {}", case.0, distance(a, b));
        }
    }
}

#[test]
fn gradients_are_those_of_central_differences() {
    for case in &CASES {
        let net = build(case, DType::F64);
        let options = GradcheckOptions {
            directions: Some(4),
            step: 1e-7,
            ..Default::default()
        };
        let report = gradcheck(
            |x| net.forward(&Pass::eval(), x),
            &images(3, case.1, DType::F64),
            &options,
        )
        .unwrap();
        assert!(report.max_relative_error < 1e-6, "{}: {report:?}", case.0);
    }
}

/// By the statistics of the batch, at the images and at every parameter.
#[test]
fn gradients_of_training_are_those_of_central_differences() {
    for case in &CASES {
        let weights = Weights::init(3).with_dtype(DType::F64);
        let mut net = NetBuilder::new(case.1);
        let output = case.2(&weights, &mut net).unwrap();
        let net = net.build(output).unwrap();
        let pass = Pass {
            batch_statistics: true,
            ..Pass::eval().with_track(true)
        };
        let x = images(5, case.1, DType::F64);
        let options = GradcheckOptions {
            directions: Some(2),
            step: 1e-7,
            ..Default::default()
        };
        let report = gradcheck(|x| net.forward(&pass, x), &x, &options).unwrap();
        assert!(report.max_relative_error < 1e-6, "{}: {report:?}", case.0);

        let y = net.forward(&pass, &x).unwrap();
        let cotangent = random(6, y.dims());
        let (_, gradients) = vjp(&x, &y, &cotangent).unwrap();
        let trained: Vec<Param> = weights.params().into_iter().filter(Param::trainable).collect();
        let slopes = trained.iter().enumerate().map(|(i, param)| {
            let (value, direction) = (
                param.var().as_tensor().copy().unwrap(),
                random(20 + i as u64, param.var().dims()),
            );
            let analytic = (gradients.get(param.var().as_tensor()).unwrap() * &direction).unwrap();
            // So short that hardly any kink lies between, with a limit for what rounding makes of that.
            let [up, down] = [1e-8, -1e-8].map(|step| {
                param.set(&(&value + (&direction * step).unwrap()).unwrap()).unwrap();
                net.forward(&pass, &x).unwrap()
            });
            param.set(&value).unwrap();
            let numeric = ((up - down).unwrap() * &cotangent).unwrap().sum_all().unwrap();
            let analytic = analytic.sum_all().unwrap().to_scalar::<f64>().unwrap();
            (
                param.name().to_string(),
                analytic,
                numeric.to_scalar::<f64>().unwrap() / 2e-8,
            )
        });
        let slopes: Vec<_> = slopes.collect();
        let scale = slopes.iter().fold(0., |max: f64, (_, a, _)| max.max(a.abs()));
        for (name, analytic, numeric) in slopes {
            let apart = (analytic - numeric).abs() / scale;
            assert!(apart < 1e-5, "{}, {name}: {analytic} {numeric}", case.0);
        }
    }
}

#[test]
fn batches_and_threads_change_nothing() {
    for case in &CASES {
        let net = build(case, DType::F32);
        let x = images(53, case.1, DType::F32);
        let all = run(&net, &x);
        let threads = with_threads(2, || run(&net, &x));
        for (a, b) in all.iter().zip(&threads) {
            assert_eq!(values(a), values(b), "{}", case.0);
        }
        for (from, n) in [(0, 1), (7, 5), (20, 24), (52, 1)] {
            let part = run(&net, &x.narrow(0, from, n).unwrap());
            for (a, b) in part.iter().zip(&all) {
                assert_eq!(
                    values(a),
                    values(&b.narrow(0, from, n).unwrap()),
                    "{}, {n} from {from}",
                    case.0
                );
            }
        }
    }
}

/// On a flat background pooling has ties, and pixels that no maximum depends on have the gradient 0. Rounding must not
/// decide the former nor fill the latter: a step along the sign makes a whole step of any noise.
#[test]
fn flat_images_have_the_gradient_of_exact_arithmetic() {
    let case: Case = ("flat", [1, 20, 20], |w, net| {
        let mut x = net.input();
        for _ in 0..2 {
            x = conv(w, net, x, 16, (3, 1, Padding::Valid))?;
            x = net.relu(x);
        }
        x = net.max_pool2d(x, 2)?;
        linear(w, net, x, 10)
    });
    let net = build(&case, DType::F32);
    let mut pixels = vec![0.3f32; 4 * 400];
    for (i, value) in pixels.iter_mut().enumerate() {
        let (image, y, x) = (i / 400, i / 20 % 20, i % 20);
        if (5..9).contains(&y) && (4..8 + image).contains(&x) {
            *value = 0.5 + 0.01 * (y * x) as f32;
        }
    }
    let x = Tensor::from_vec(pixels, (4, 1, 20, 20), &Device::Cpu).unwrap();
    let exact_net = build(&case, DType::F64);
    let exact = with_composed_ops(|| values(&run(&exact_net, &x.to_dtype(DType::F64).unwrap())[1]));
    assert!(exact.iter().filter(|g| **g == 0.0).count() > 40);
    for gradient in [run(&net, &x), with_kernels(Kernels::Portable, || run(&net, &x))].map(|[_, dx]| values(&dx)) {
        let scale = exact.iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        for (i, (g, exact)) in gradient.iter().zip(&exact).enumerate() {
            assert!((g - exact).abs() < 1e-4 * scale, "{i}: {g} {exact}");
            assert_eq!(*g == 0.0, *exact == 0.0, "{i}: {g} {exact}");
        }
    }
}

#[test]
fn all_forms_of_the_kernels_agree() {
    for case in &CASES {
        let net = build(case, DType::F32);
        let x = images(7, case.1, DType::F32);
        let portable = with_kernels(Kernels::Portable, || run(&net, &x));
        for kernels in [Kernels::Avx2, Kernels::Avx512] {
            let vectors = with_kernels(kernels, || run(&net, &x));
            for (i, most) in [2e-5, 2e-4].into_iter().enumerate() {
                let distance = distance(&vectors[i], &portable[i]);
                assert!(distance < most, "{}, {kernels}: {distance}", case.0);
            }
        }
    }
}

#[test]
fn tapes_live_side_by_side_and_run_again() {
    let net = build(&CASES[0], DType::F32);
    let alone: Vec<Tensor> = [3, 4]
        .map(|n| run(&net, &images(n, CASES[0].1, DType::F32))[1].clone())
        .into();
    let taped = [3, 4].map(|n| {
        let x = Var::from_tensor(&images(n, CASES[0].1, DType::F32)).unwrap();
        let y = net.forward(&Pass::eval(), x.as_tensor()).unwrap();
        (x, y)
    });
    for _ in 0..2 {
        for ((x, y), alone) in taped.iter().zip(&alone) {
            let cotangent = random_f32(6, &y.dims()[1..]).broadcast_as(y.shape()).unwrap();
            let dx = vjp(x.as_tensor(), y, &cotangent).unwrap().0.unwrap();
            assert_eq!(values(&dx), values(alone));
        }
    }
}

#[test]
fn new_weights_are_noticed() {
    let weights = Weights::init(3);
    let mut net = NetBuilder::new(CASES[0].1);
    let output = CASES[0].2(&weights, &mut net).unwrap();
    let net = net.build(output).unwrap();
    let x = images(2, CASES[0].1, DType::F32);
    let before = values(&run(&net, &x)[0]);
    let mut adam = Adam::new();
    let params = weights.params();
    let ones: Vec<_> = params.iter().map(|p| p.var().ones_like().ok()).collect();
    adam.step(&params, &ones, 0.01).unwrap();
    let fused = run(&net, &x);
    assert_ne!(values(&fused[0]), before);
    assert!(distance(&fused[0], &with_composed_ops(|| run(&net, &x))[0]) < 1e-5);
    params[0].set(&params[0].var().zeros_like().unwrap()).unwrap();
    assert!(distance(&run(&net, &x)[0], &with_composed_ops(|| run(&net, &x))[0]) < 1e-5);
}

#[test]
fn not_a_number_is_not_hidden() {
    for case in &CASES[..2] {
        let net = build(case, DType::F32);
        let x = (images(2, case.1, DType::F32) * f64::NAN).unwrap();
        let y = net.forward(&Pass::eval(), &x).unwrap();
        assert!(values(&y).iter().all(|v| v.is_nan()), "{}", case.0);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let weights = Weights::init(1);
    let mut net = NetBuilder::new([1, 6, 6]);
    let x = net.input();
    let layer = Conv2d::new(&weights.pp("a"), 2, 3, 3, 1, Padding::Same).unwrap();
    assert!(net.conv2d(x, &layer).is_err());
    assert!(net.linear(x, &Linear::new(&weights.pp("b"), 35, 2).unwrap()).is_err());
    assert!(net.avg_pool2d(x, 7).is_err() && net.avg_pool2d(x, 0).is_err());
    assert!(net.max_pool2d(x, 7).is_err() && net.upsample_nearest2d(x, 0).is_err());
    assert!(
        net.batch_norm(x, &BatchNorm2d::new(&weights.pp("c"), 2).unwrap())
            .is_err()
    );
    assert!(net.build(x).is_err() && net.concat(&[]).is_err());
    let half = net.max_pool2d(x, 2).unwrap();
    assert!(net.add(x, half).is_err() && net.concat(&[x, half]).is_err());
    let net = net.build(half).unwrap();
    assert!(net.forward(&Pass::eval(), &random_f32(1, &[2, 1, 5, 6])).is_err());
    assert_eq!(
        net.forward(&Pass::eval(), &random_f32(1, &[0, 1, 6, 6]))
            .unwrap()
            .dims(),
        [0, 1, 3, 3]
    );
}
