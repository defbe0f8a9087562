//! A linear classifier inside the host: what attacks and threat models are tried on.

use crate::wire::model::Model;
use crate::wire::tensor::Tensor;
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RErr, ROk, ROption, RResult, RSlice, RStr, RString, RVec};
use advae_abi::info::{BackwardRule, Kind, ModelInfo, Threading};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, AbiTrainable,
    AbiTrainable_TO, CtxRef, ErrorCode, ModelBox, Taped, TrainableBox, flags, guard,
};
use anyhow::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shape of an image.
pub const INPUT: [usize; 3] = [1, 28, 28];
const PIXELS: usize = INPUT[0] * INPUT[1] * INPUT[2];
/// Number of classes.
pub const CLASSES: usize = 10;

/// Logits `z = W x`, with random rows `W [10, 784]`.
pub fn model() -> Result<Model> {
    Model::from_box(Kind::Classifier, "toy", boxed(8))
}

/// The same from another seed, to be trained by gradient descent.
pub fn boxed(seed: u64) -> ModelBox {
    let network = Network {
        weight: super::sample::signed(&[CLASSES, PIXELS], seed),
        gradient: Tensor::zeros(&[CLASSES, PIXELS]),
    };
    AbiModel_TO::from_value(Toy(Shared(Arc::new(Mutex::new(network)))), TD_Opaque)
}

/// The weights `[10, 784]`, and the sum of their gradients.
struct Network {
    weight: Tensor,
    gradient: Tensor,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<Network>>);

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Network> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Toy(Shared);

struct ToyTape {
    network: Shared,
    x: Tensor,
}

impl Network {
    fn logits(&self, x: &Tensor) -> Result<Tensor, AbiError> {
        let logit = |i: usize, k: usize| x.row(i).iter().zip(self.weight.row(k)).map(|(x, w)| x * w).sum();
        let logits = (0..x.rows()).flat_map(|i| (0..CLASSES).map(move |k| (i, k)));
        Tensor::new(vec![x.rows(), CLASSES], logits.map(|(i, k)| logit(i, k)).collect())
    }

    /// The images' gradient `[N,1,28,28]` for a cotangent `[N,10]`.
    fn images_gradient(&self, cotangent: &Tensor) -> Tensor {
        let [c, h, w] = INPUT;
        let mut gradient = Tensor::zeros(&[cotangent.rows(), c, h, w]);
        for (i, row) in gradient.data.chunks_exact_mut(PIXELS).enumerate() {
            for (k, factor) in cotangent.row(i).iter().enumerate() {
                add(row, *factor, self.weight.row(k));
            }
        }
        gradient
    }

    /// Adds the weights' gradient to the sum.
    fn accumulate(&mut self, x: &Tensor, cotangent: &Tensor) {
        for i in 0..x.rows() {
            for (k, row) in self.gradient.data.chunks_exact_mut(PIXELS).enumerate() {
                add(row, cotangent.row(i)[k], x.row(i));
            }
        }
    }
}

fn add(sum: &mut [f32], factor: f32, term: &[f32]) {
    sum.iter_mut().zip(term).for_each(|(s, t)| *s += factor * t);
}

/// Images `[N,1,28,28]`, any number.
fn images(x: AbiTensorRef<'_>) -> Result<Tensor, AbiError> {
    let n = x.shape()?.first().copied().unwrap_or(0);
    Tensor::copy_from(x, &[&[n], &INPUT[..]].concat(), "a batch of images")
}

impl AbiModel for Toy {
    fn info(&self) -> AbiResult<RString> {
        let info = ModelInfo {
            input: Some(INPUT),
            classes: Some(CLASSES),
            bounds: [0., 1.],
            backward_rules: vec![BackwardRule::Exact],
            random: false,
            threading: Threading::Caller,
            batch: None,
            parameters: CLASSES * PIXELS,
            weights: "fixed".into(),
            note: String::new(),
        };
        match serde_json::to_string(&info) {
            Ok(text) => ROk(text.into()),
            Err(error) => RErr(AbiError::from_error(ErrorCode::Compute, &error)),
        }
    }

    fn forward(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        guard(|| self.0.lock().logits(&images(x)?)?.export())
    }

    fn forward_tape(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        guard(|| {
            let x = images(x)?;
            let y = self.0.lock().logits(&x)?.export()?;
            let network = self.0.clone();
            let tape = AbiTape_TO::from_value(ToyTape { network, x }, TD_Opaque);
            Ok(Taped { y, tape })
        })
    }

    fn trainable(&self, _: RStr<'_>) -> AbiResult<TrainableBox> {
        ROk(AbiTrainable_TO::from_value(self.0.clone(), TD_Opaque))
    }
}

impl AbiTape for ToyTape {
    fn backward(&self, ctx: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> RResult<ROption<AbiTensor>, AbiError> {
        guard(|| {
            let cotangent = Tensor::copy_from(cotangent, &[self.x.rows(), CLASSES], "a cotangent")?;
            let mut network = self.network.lock();
            if ctx.get().flags & flags::ACCUMULATE_PARAMS == 0 {
                return network.images_gradient(&cotangent).export().map(ROption::RSome);
            }
            network.accumulate(&self.x, &cotangent);
            Ok(ROption::RNone)
        })
    }
}

impl AbiTrainable for Shared {
    fn step(&self, learning_rate: f64) -> AbiResult<()> {
        let mut network = self.lock();
        let Network { weight, gradient } = &mut *network;
        add(&mut weight.data, -learning_rate as f32, &gradient.data);
        gradient.data.fill(0.);
        ROk(())
    }

    fn zero_gradients(&self) -> AbiResult<()> {
        self.lock().gradient.data.fill(0.);
        ROk(())
    }

    fn save_weights(&self) -> AbiResult<RVec<u8>> {
        keeps_nothing()
    }

    fn load_weights(&self, _: RSlice<'_, u8>) -> AbiResult<()> {
        keeps_nothing()
    }

    fn save_state(&self) -> AbiResult<RVec<u8>> {
        keeps_nothing()
    }

    fn load_state(&self, _: RSlice<'_, u8>) -> AbiResult<()> {
        keeps_nothing()
    }
}

fn keeps_nothing<T>() -> AbiResult<T> {
    let text = "the host's linear classifier saves and loads no weights";
    RErr(AbiError::new(ErrorCode::Unsupported, text))
}
