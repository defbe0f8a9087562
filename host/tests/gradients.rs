//! The gradient through a purifier's and a classifier's `.so` is that of one graph over both networks, and that of
//! central differences.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use advae_abi::info::{Construct, WeightSource};
use advae_host::experiment::on_large_stack;
use advae_host::plugin::Plugin;
use advae_host::wire::model::Model;
use advae_host::wire::pipeline::Pipeline;
use advae_host::wire::tensor::{Call, Tensor};
use advae_sdk::candle_core::{self as candle, DType, Device};
use advae_sdk::{Classifier, NoSettings, Pass, Purifier, Weights, nn};
use mnist_models::{AutoEncoder, ModelX};

const SEED: u64 = 7;
const IDS: [u64; 3] = [4, 0, 9];

/// The same weights on both sides of the boundary.
fn load(name: &str) -> Model {
    let plugin = Plugin::open(&plugins::plugin(name)).unwrap();
    let request = Construct {
        weights: WeightSource::Init(SEED),
        device: "cpu".into(),
        ..Construct::default()
    };
    Model::construct(&plugin, &request).unwrap()
}

/// Handwritten digits.
fn digits() -> Tensor {
    let digits = advae_data::load("mnist-1k", None).unwrap();
    Tensor::new(vec![IDS.len(), 1, 28, 28], digits.images[..IDS.len() * 784].to_vec()).unwrap()
}

/// Noise, which has no flat parts: where all pixels of a patch are equal, pooling and rectifiers have a kink, and
/// differences measure something else than a derivative.
fn noise() -> Tensor {
    let pixels = (0..(IDS.len() * 784) as u64).map(|i| 0.5 + 0.3 * random(99, i) as f32);
    Tensor::new(vec![IDS.len(), 1, 28, 28], pixels.collect()).unwrap()
}

/// A cotangent without symmetries.
fn cotangent() -> Tensor {
    let values = (0..IDS.len() * 10).map(|i| ((i * 37 % 23) as f32 - 11.) / 11.);
    Tensor::new(vec![IDS.len(), 10], values.collect()).unwrap()
}

/// Logits and input gradient through the two files.
fn through_files(x: &Tensor) -> (Tensor, Tensor) {
    let pipeline = Pipeline::new(Some(load("advae")), load("model_x"));
    on_large_stack(|| {
        let call = Call::craft(0, &IDS);
        let (logits, tape) = pipeline.forward_tape(&call, x)?;
        Ok((logits, tape.backward(&call, &cotangent())?))
    })
    .unwrap()
}

/// The two networks in one graph, in the precision of `dtype`.
struct Graph {
    purifier: AutoEncoder,
    classifier: ModelX,
    dtype: DType,
}

impl Graph {
    fn new(dtype: DType) -> Self {
        let weights = || Weights::init(SEED).with_dtype(dtype);
        let purifier = AutoEncoder::new(Default::default(), &weights()).unwrap();
        Self {
            purifier,
            classifier: ModelX::new(NoSettings {}, &weights()).unwrap(),
            dtype,
        }
    }

    fn import(&self, tensor: &Tensor) -> candle::Tensor {
        let tensor = candle::Tensor::from_slice(&tensor.data, tensor.shape.as_slice(), &Device::Cpu).unwrap();
        tensor.to_dtype(self.dtype).unwrap()
    }

    fn logits(&self, x: &candle::Tensor) -> candle::Tensor {
        let pass = Pass::eval().with_ids(IDS);
        self.classifier
            .forward(&pass, &self.purifier.purify(&pass, x).unwrap())
            .unwrap()
    }

    /// `<cotangent, logits>`.
    fn objective(&self, x: &candle::Tensor) -> f64 {
        let product = (self.logits(x) * self.import(&cotangent())).unwrap();
        product
            .sum_all()
            .unwrap()
            .to_dtype(DType::F64)
            .unwrap()
            .to_scalar()
            .unwrap()
    }

    fn gradient(&self, x: &Tensor) -> (Vec<f32>, Vec<f32>) {
        let x = candle::Var::from_tensor(&self.import(x)).unwrap();
        let y = self.logits(x.as_tensor());
        let gradient = nn::vjp(x.as_tensor(), &y, &self.import(&cotangent()))
            .unwrap()
            .0
            .unwrap();
        (values(&y), values(&gradient))
    }
}

fn values(tensor: &candle::Tensor) -> Vec<f32> {
    tensor
        .flatten_all()
        .unwrap()
        .to_dtype(DType::F32)
        .unwrap()
        .to_vec1()
        .unwrap()
}

/// Largest difference, relative to the largest value.
fn deviation(a: &[f32], b: &[f32]) -> f32 {
    let scale = b.iter().fold(0f32, |m, v| m.max(v.abs()));
    a.iter().zip(b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / scale
}

#[test]
fn two_files_are_one_graph() {
    let (logits, gradient) = through_files(&digits());
    let (y, x) = Graph::new(DType::F32).gradient(&digits());
    assert!(x.iter().any(|v| v.abs() > 1e-4), "a gradient of zeros proves nothing");
    assert_eq!(logits.data, y);
    assert!(
        deviation(&gradient.data, &x) < 1e-6,
        "{}",
        deviation(&gradient.data, &x)
    );
}

#[test]
fn two_files_agree_with_double_precision() {
    let (logits, gradient) = through_files(&digits());
    let (y, x) = Graph::new(DType::F64).gradient(&digits());
    assert!(deviation(&logits.data, &y) < 1e-5, "{}", deviation(&logits.data, &y));
    assert!(
        deviation(&gradient.data, &x) < 1e-4,
        "{}",
        deviation(&gradient.data, &x)
    );
}

#[test]
fn two_files_agree_with_central_differences() {
    let (graph, x) = (Graph::new(DType::F64), noise());
    let (_, gradient) = through_files(&x);
    let step = 1e-6;
    for direction in 0..8u64 {
        let towards: Vec<f64> = (0..x.data.len() as u64).map(|i| random(direction, i)).collect();
        let slope: f64 = gradient.data.iter().zip(&towards).map(|(g, d)| f64::from(*g) * d).sum();
        let d = candle::Tensor::from_vec(towards, x.shape.as_slice(), &Device::Cpu).unwrap();
        let at = |h: f64| graph.objective(&(graph.import(&x) + d.affine(h, 0.).unwrap()).unwrap());
        let measured = (at(step) - at(-step)) / (2. * step);
        assert!(
            (slope - measured).abs() < 1e-3 * measured.abs().max(1e-3),
            "{direction}: {slope}, measured {measured}"
        );
    }
}

/// A number in `[-1,1)`.
fn random(direction: u64, i: u64) -> f64 {
    let mixed = (direction << 32 | i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed >> 11) as f64 / (1u64 << 52) as f64 - 1.
}
