//! Weight files, initialisation, and the optimiser.

#![allow(clippy::unwrap_used)]

mod common;

use advae_nn::*;
use candle_core::{DType, Device, Tensor};
use common::{random_f32, values};

/// Parameters of a small model.
fn model(weights: &Weights) -> Result<Vec<Param>> {
    Conv2d::new(&weights.pp("block").pp("conv1"), 2, 3, 3, 1, Padding::Same)?;
    BatchNorm2d::new(&weights.pp("norm"), 3)?;
    Linear::new(&weights.pp("fc"), 3, 2)?;
    weights.finish()?;
    Ok(weights.params())
}

fn error_of<T>(result: Result<T>) -> String {
    result.err().map(|e| e.to_string()).unwrap_or_default()
}

#[test]
fn a_file_comes_back_as_it_was() {
    let weights = Weights::init(1);
    assert!(weights.is_init());
    let params = model(&weights).unwrap();
    assert_eq!(weights.parameter_count(), 2 * 3 * 9 + 3 + 6 + 8);
    let names: Vec<&str> = params.iter().map(Param::name).collect();
    assert_eq!(names[..3], ["block.conv1.weight", "block.conv1.bias", "norm.weight"]);
    let file = Weights::from_safetensors(&save_safetensors(&params).unwrap()).unwrap();
    assert!(!file.is_init());
    for (a, b) in params.iter().zip(model(&file).unwrap()) {
        assert_eq!((a.name(), a.trainable()), (b.name(), b.trainable()));
        assert_eq!(values(a.var()), values(b.var()));
    }
}

#[test]
fn half_precision_is_widened() {
    let params = model(&Weights::init(2)).unwrap();
    let file = Weights::from_safetensors(&save_safetensors_f16(&params).unwrap()).unwrap();
    for (a, b) in params.iter().zip(model(&file).unwrap()) {
        assert_eq!(b.var().dtype(), DType::F32);
        let rounded = a.var().to_dtype(DType::F16).unwrap();
        assert_eq!(values(&rounded), values(b.var()));
    }
}

#[test]
fn each_fault_of_a_file_is_named() {
    let file = |params: &[Param]| save_safetensors(params).unwrap();
    let load = |bytes: &[u8]| model(&Weights::from_safetensors(bytes)?);
    let params = model(&Weights::init(3)).unwrap();
    assert!(error_of(load(&file(&params[1..]))).contains("no 'block.conv1.weight'"));
    let odd = Weights::init(3);
    Linear::new(&odd.pp("fc"), 4, 2).unwrap();
    let swapped = [&params[..params.len() - 2], &odd.params()].concat();
    let message = error_of(load(&file(&swapped)));
    assert!(
        message.contains("fc.weight") && message.contains("[2, 4]") && message.contains("[2, 3]"),
        "{message}"
    );
    let more = Weights::init(3);
    more.param("extra", &[1], Init::Zeros).unwrap();
    let message = error_of(load(&file(&[&params[..], &more.params()].concat())));
    assert!(message.contains("extra"), "{message}");
    let whole = file(&params);
    assert!(error_of(load(&whole[..whole.len() - 3])).contains("safetensors"));
    let mut broken = whole.clone();
    let end = broken.len();
    broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(error_of(load(&broken)).contains("NaN"));
}

#[test]
fn the_counters_of_pytorchs_batch_norm_are_left_out_and_named() {
    use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
    let blob = save_safetensors(&model(&Weights::init(3)).unwrap()).unwrap();
    let file = SafeTensors::deserialize(&blob).unwrap();
    let with = |name: &'static str, dtype, shape: &[usize], bytes: &[u8]| -> Result<Vec<String>> {
        let extra = TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
        let blob = serialize(file.iter().chain([(name, extra)]), None).unwrap();
        let weights = Weights::from_safetensors(&blob)?;
        model(&weights)?;
        Ok(weights.counters().to_vec())
    };
    let count = 1234i64.to_le_bytes();
    let counter = "norm.num_batches_tracked";
    assert_eq!(with(counter, Dtype::I64, &[], &count).unwrap(), [counter]);
    assert_eq!(with(counter, Dtype::F32, &[1], &[0; 4]).unwrap(), [counter]);
    assert!(Weights::from_safetensors(&blob).unwrap().counters().is_empty());
    // Other integers, and weights of such a name, are refused as before.
    assert!(error_of(with("norm.steps", Dtype::I64, &[], &count)).contains("'norm.steps' has type I64"));
    assert!(error_of(with(counter, Dtype::F32, &[3], &[0; 12])).contains("does not use: norm.num_batches_tracked"));
}

#[test]
fn diverged_parameters_are_not_saved() {
    let weights = Weights::init(4);
    let param = weights.param("p", &[1], Init::Const(1e5)).unwrap();
    assert!(save_safetensors(std::slice::from_ref(&param)).is_ok());
    assert!(error_of(save_safetensors_f16(std::slice::from_ref(&param))).contains("'p'"));
    param.set(&Tensor::new(&[f32::NAN], &Device::Cpu).unwrap()).unwrap();
    assert!(save_safetensors(&[param]).is_err());
}

#[test]
fn names_are_unique() {
    let weights = Weights::init(5);
    weights.param("p", &[1], Init::Zeros).unwrap();
    assert!(error_of(weights.param("p", &[1], Init::Zeros)).contains("'p'"));
}

#[test]
fn initial_values_follow_their_rule() {
    let weights = Weights::init(6);
    let stats = |name: &str, init| {
        let v = values(weights.param(name, &[200, 100], init).unwrap().var());
        let max = v.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64, max)
    };
    let (variance, max) = stats(
        "glorot",
        Init::GlorotUniform {
            fan_in: 100,
            fan_out: 200,
        },
    );
    assert!((variance - 0.02 / 3.0).abs() < 3e-4 && max <= 0.02f64.sqrt() + 1e-7);
    let (variance, max) = stats("he", Init::HeNormal { fan_in: 50 });
    assert!((variance - 0.04).abs() < 2e-3 && max > 0.6);
    let (variance, max) = stats("uniform", Init::Uniform { bound: 3.0 });
    assert!((variance - 3.0).abs() < 0.1 && max <= 3.0);
    assert_eq!(stats("const", Init::Const(2.0)), (4.0, 2.0));
}

#[test]
fn initial_values_depend_on_seed_and_name_only() {
    let value = |seed, prefix: &str, name: &str| {
        let weights = Weights::init(seed).pp(prefix);
        values(weights.param(name, &[4], Init::Uniform { bound: 1.0 }).unwrap().var())
    };
    assert_eq!(value(1, "a", "b"), value(1, "", "a.b"));
    assert_ne!(value(1, "a", "b"), value(2, "a", "b"));
    assert_ne!(value(1, "a", "b"), value(1, "a", "c"));
}

#[test]
fn setting_needs_the_shape() {
    let param = Weights::init(7).param("p", &[2, 2], Init::Zeros).unwrap();
    param.set(&random_f32(1, &[2, 2]).t().unwrap()).unwrap();
    assert_eq!(values(param.var()), values(&random_f32(1, &[2, 2]).t().unwrap()));
    assert!(param.set(&random_f32(1, &[4])).is_err());
}

#[test]
fn adam_by_hand() {
    let param = Weights::init(8).param("p", &[1], Init::Const(1.0)).unwrap();
    let mut adam = Adam::new();
    // Moments and steps by the published recursion, in f64.
    let (mut p, mut m, mut v) = (1.0f64, 0.0, 0.0);
    for (t, g) in [(1, 0.5f64), (2, -0.25), (3, 1.0)] {
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
        p -= 0.1 * m_hat / (v_hat.sqrt() + 1e-8);
        let grad = Tensor::new(&[g as f32], &Device::Cpu).unwrap();
        adam.step(std::slice::from_ref(&param), &[Some(grad)], 0.1).unwrap();
        assert!((values(param.var())[0] - p).abs() < 1e-6, "step {t}");
    }
    // The first step is lr sign(g), whatever the gradient: 1 - 0.1.
    assert_eq!(adam.steps(), 3);
}

#[test]
fn adam_decays_weights_and_clips_gradients_by_hand() {
    let weights = Weights::init(8);
    let (w, b) = (
        weights.param("w", &[1, 2], Init::Const(2.0)).unwrap(),
        weights.param("b", &[1], Init::Const(2.0)).unwrap(),
    );
    let params = [w, b];
    // Together 5 long: with a largest norm of 1 a fifth is left of them.
    let gradients = [
        Some(Tensor::new(&[[3f32, 0.]], &Device::Cpu).unwrap()),
        Some(Tensor::new(&[4f32], &Device::Cpu).unwrap()),
    ];
    let mut adam = Adam::new();
    (adam.weight_decay, adam.decoupled_weight_decay, adam.clip_norm) = (0.1, 0.5, Some(1.0));
    let expected = |g: &dyn Fn(f64) -> f64, decay: f64| {
        let (mut p, mut m, mut v) = (2f64, 0.0, 0.0);
        for t in 1..=2 {
            let g = g(p);
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            let (m_hat, v_hat) = (m / (1.0 - 0.9f64.powi(t)), v / (1.0 - 0.999f64.powi(t)));
            p -= 0.01 * (m_hat / (v_hat.sqrt() + 1e-8) + decay * p);
        }
        p
    };
    for _ in 0..2 {
        adam.step(&params, &gradients, 0.01).unwrap();
    }
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
    let found = values(params[0].var());
    close(found[0], expected(&|p| 0.6 + 0.1 * p, 0.5));
    close(found[1], expected(&|p| 0.1 * p, 0.5));
    // A bias does not decay.
    close(values(params[1].var())[0], expected(&|_| 0.8, 0.0));
    // What is short enough stays as it is.
    let (mut free, start) = (Adam::new(), Weights::init(8));
    let q = [
        start.param("w", &[1, 2], Init::Const(2.0)).unwrap(),
        start.param("b", &[1], Init::Const(2.0)).unwrap(),
    ];
    let mut held = Adam::new();
    held.clip_norm = Some(5.5);
    let again = Weights::init(8);
    let r = [
        again.param("w", &[1, 2], Init::Const(2.0)).unwrap(),
        again.param("b", &[1], Init::Const(2.0)).unwrap(),
    ];
    free.step(&q, &gradients, 0.01).unwrap();
    held.step(&r, &gradients, 0.01).unwrap();
    assert_eq!(values(q[0].var()), values(r[0].var()));
}

#[test]
fn adam_continues_from_its_state() {
    let start = || {
        Weights::init(9)
            .param("p", &[3, 2], Init::Uniform { bound: 1.0 })
            .unwrap()
    };
    let step = |adam: &mut Adam, param: &Param, i| {
        let grad = Some(random_f32(i, &[3, 2]));
        adam.step(std::slice::from_ref(param), &[grad], 0.01).unwrap();
    };
    let (whole, mut adam) = (start(), Adam::new());
    (0..4).for_each(|i| step(&mut adam, &whole, i));
    let (parts, mut first) = (start(), Adam::new());
    (0..2).for_each(|i| step(&mut first, &parts, i));
    let mut second = Adam::new();
    second.load_state(&first.save_state().unwrap()).unwrap();
    assert_eq!(second.steps(), 2);
    (2..4).for_each(|i| step(&mut second, &parts, i));
    assert_eq!(values(whole.var()), values(parts.var()));
    assert!(second.load_state(b"nonsense").is_err());
}

#[test]
fn adam_leaves_what_it_should() {
    let weights = Weights::init(10);
    let a = weights.param("a", &[2], Init::Ones).unwrap();
    let b = weights.buffer("b", &[2], Init::Ones).unwrap();
    let grad = || Some(random_f32(1, &[2]));
    let params = [a, b];
    let mut adam = Adam::new();
    adam.step(&params, &[None, grad()], 0.1).unwrap();
    assert_eq!(values(params[0].var()), [1.0, 1.0]);
    assert_eq!(values(params[1].var()), [1.0, 1.0]);
    assert!(adam.step(&params, &[grad()], 0.1).is_err());
    assert!(adam.step(&params, &[Some(random_f32(1, &[3])), None], 0.1).is_err());
}

/// A file beside this test.
fn data(name: &str) -> std::path::PathBuf {
    std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data")).join(name)
}

/// A convolution, a norm and a linear layer, as `small.pth` has them.
fn small(weights: &Weights) -> Result<Vec<Param>> {
    Conv2d::new(&weights.pp("conv"), 1, 2, 3, 1, Padding::Valid)?;
    BatchNorm2d::new(&weights.pp("bn"), 2)?;
    Linear::new(&weights.pp("fc"), 4, 3)?;
    weights.finish()?;
    Ok(weights.params())
}

#[test]
fn a_state_dict_of_pytorch_is_read_alone_and_inside_a_checkpoint() {
    // torch.manual_seed(0); {"small": float32, "nested": {"epoch": 3, "state_dict": float16}}
    for (name, within) in [("small.pth", 1e-3), ("nested.pth", 0.)] {
        let weights = Weights::from_pth(&data(name)).unwrap();
        let params = small(&weights).unwrap();
        let first = |name: &str| values(params.iter().find(|p| p.name() == name).unwrap().var())[..2].to_vec();
        for (name, expected) in [
            ("conv.weight", [-0.00249481201171875, 0.1788330078125]),
            ("bn.running_mean", [0.5, -0.25]),
            ("fc.weight", [0.181640625, 0.415283203125]),
            ("fc.bias", [-0.323974609375, -0.230224609375]),
        ] {
            let close = first(name).iter().zip(expected).all(|(a, b)| (a - b).abs() <= within);
            assert!(close, "{name}: {:?}", first(name));
        }
        assert_eq!(weights.counters(), ["bn.num_batches_tracked"]);
    }
}

#[test]
fn what_is_no_state_dict_is_refused_with_what_to_do() {
    for name in ["legacy.pth", "../weights.rs"] {
        let error = error_of(Weights::from_pth(&data(name)));
        assert!(
            error.contains("not a state dict") && error.contains("torch.save(model.state_dict(), FILE)"),
            "{error}"
        );
    }
}

#[test]
fn a_missing_name_is_told_with_those_of_its_shape() {
    let weights = Weights::from_pth(&data("small.pth")).unwrap();
    let error = error_of(Linear::new(&weights.pp("head"), 4, 3).map(|_| ()));
    assert!(
        error.contains("no 'head.weight' (of its shape [3, 4] it has fc.weight)"),
        "{error}"
    );
}

/// A file whose tensors are called otherwise, and whose weights lie as TensorFlow has them, and what is in it by our names.
fn foreign() -> (Weights, Vec<Param>) {
    let params = model(&Weights::init(5)).unwrap();
    let foreign = Weights::init(0);
    for param in &params {
        let (name, value) = (
            format!("net/{}", param.name().replace("fc", "dense")),
            param.var().as_tensor(),
        );
        let value = match value.rank() {
            2 => value.t().unwrap().contiguous().unwrap(),
            4 => value.permute((2, 3, 1, 0)).unwrap().contiguous().unwrap(),
            _ => value.clone(),
        };
        let made = foreign.given(&name, &value, Init::Zeros, param.trainable()).unwrap();
        made.var().set(&value).unwrap();
    }
    let bytes = save_safetensors(&foreign.params()).unwrap();
    (Weights::from_safetensors(&bytes).unwrap(), params)
}

fn map(rules: &[(&str, &str)]) -> KeyMap {
    let rule = |(parameter, tensor): &(&str, &str)| Rule {
        parameter: parameter.to_string(),
        tensor: tensor.to_string(),
        axes: None,
    };
    KeyMap::new(rules.iter().map(rule).collect()).unwrap()
}

#[test]
fn a_map_renames_and_transposes() {
    let (file, params) = foreign();
    let renamed = file
        .renamed(&map(&[
            ("*", "net/*"),
            ("fc.weight", "net/dense.weight"),
            ("fc.bias", "net/dense.bias"),
        ]))
        .unwrap();
    let read = model(&renamed).unwrap();
    for (own, read) in params.iter().zip(&read) {
        assert_eq!((own.name(), values(own.var())), (read.name(), values(read.var())));
    }
    assert_eq!(renamed.transposed(), ["block.conv1.weight", "fc.weight"]);
    // Without a map a shape is a fault.
    assert!(error_of(model(&file)).contains("has no 'block.conv1.weight'"));
}

#[test]
fn a_square_tensor_beside_transposed_ones_is_not_guessed() {
    let square = |weights: &Weights| {
        Linear::new(&weights.pp("a"), 3, 2)?;
        Linear::new(&weights.pp("b"), 3, 3)?;
        weights.finish()?;
        Ok::<_, candle_core::Error>(weights.params())
    };
    let own = square(&Weights::init(3)).unwrap();
    let foreign = Weights::init(0);
    for param in &own {
        let value = match param.var().rank() {
            2 => param.var().t().unwrap().contiguous().unwrap(),
            _ => param.var().as_tensor().clone(),
        };
        let made = foreign
            .given(&format!("x.{}", param.name()), &value, Init::Zeros, true)
            .unwrap();
        made.var().set(&value).unwrap();
    }
    let file = Weights::from_safetensors(&save_safetensors(&foreign.params()).unwrap()).unwrap();
    let error = error_of(square(&file.renamed(&map(&[("*", "x.*")])).unwrap()));
    assert!(
        error.starts_with("'b.weight' fits as it is and transposed, while others fit transposed only (a.weight)"),
        "{error}"
    );
    let said = Rule {
        parameter: "b.weight".into(),
        tensor: "x.b.weight".into(),
        axes: Some(vec![1, 0]),
    };
    let any = Rule {
        parameter: "*".into(),
        tensor: "x.*".into(),
        axes: None,
    };
    let read = square(&file.renamed(&KeyMap::new(vec![any, said]).unwrap()).unwrap()).unwrap();
    for (own, read) in own.iter().zip(&read) {
        assert_eq!(values(own.var()), values(read.var()), "{}", own.name());
    }
}

#[test]
fn each_fault_of_a_map_is_named() {
    let (file, _) = foreign();
    let error = error_of(file.renamed(&map(&[("fc.weight", "dense")])));
    assert!(
        error.starts_with("the map names 'dense', which the weight file does not have: expected one of net/block"),
        "{error}"
    );
    let error = error_of(file.renamed(&map(&[("a", "net/dense.bias"), ("a", "net/norm.bias")])));
    assert!(error.contains("two tensors of the weight file the name 'a'"), "{error}");
    let rule = |tensor: &str, axes| Rule {
        parameter: "fc.weight".into(),
        tensor: tensor.into(),
        axes,
    };
    let error = error_of(KeyMap::new(vec![rule("*", None)]));
    assert!(error.contains("a '*' stands once on both sides or on none"), "{error}");
    let wrong = KeyMap::new(vec![rule("net/dense.weight", Some(vec![0, 0]))]).unwrap();
    assert!(error_of(file.renamed(&wrong)).contains("expected every axis from 0 on once"));
}

#[test]
fn a_map_is_guessed_from_shapes() {
    let (file, params) = foreign();
    let guess = file.guess(&params).unwrap();
    let lines: Vec<&str> = guess.lines().collect();
    assert_eq!(
        lines[0],
        "\"block.conv1.weight\" = \"net/block.conv1.weight\"  # [3, 2, 3, 3], transposed from [3, 3, 2, 3]"
    );
    assert!(
        lines.contains(&"\"fc.weight\" = \"net/dense.weight\"  # [2, 3], transposed from [3, 2]"),
        "{guess}"
    );
    assert_eq!(lines.len(), params.len());
    // It is a map that fits.
    assert!(file.guess(&model(&Weights::init(0)).unwrap()[..1]).is_some());
    let other = Weights::init(0);
    Linear::new(&other, 7, 5).unwrap();
    assert_eq!(file.guess(&other.params()), None);
}
