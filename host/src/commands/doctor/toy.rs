//! A linear classifier inside the host: what attacks are tried on.

use crate::wire::model::Model;
use crate::wire::tensor::Tensor;
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{RErr, ROk, ROption, RResult, RStr, RString};
use advae_abi::info::{BackwardRule, Kind, ModelInfo, Threading};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, CtxRef, ErrorCode, Taped,
    TrainableBox, guard, not_trainable,
};
use anyhow::Result;
use std::sync::Arc;

/// Shape of an image.
pub const INPUT: [usize; 3] = [1, 28, 28];
const PIXELS: usize = INPUT[0] * INPUT[1] * INPUT[2];
const CLASSES: usize = 10;

/// Logits `z = W x`, with random rows `W [10, 784]`.
pub fn model() -> Result<Model> {
    let weight = Arc::new(super::sample::signed(&[CLASSES, PIXELS], 8));
    let boxed = AbiModel_TO::from_value(Toy { weight }, TD_Opaque);
    Model::from_box(Kind::Classifier, "toy", boxed)
}

struct Toy {
    weight: Arc<Tensor>,
}

struct ToyTape {
    weight: Arc<Tensor>,
    samples: usize,
}

impl Toy {
    fn logits(&self, x: AbiTensorRef<'_>) -> Result<Tensor, AbiError> {
        let x = Tensor::copy_from(x, &x.shape()?, "a batch of images")?;
        let logit = |i: usize, k: usize| x.row(i).iter().zip(self.weight.row(k)).map(|(x, w)| x * w).sum();
        let logits = (0..x.rows()).flat_map(|i| (0..CLASSES).map(move |k| (i, k)));
        Tensor::new(vec![x.rows(), CLASSES], logits.map(|(i, k)| logit(i, k)).collect())
    }
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
            parameters: 0,
            weights: "fixed".into(),
            note: String::new(),
        };
        match serde_json::to_string(&info) {
            Ok(text) => ROk(text.into()),
            Err(error) => RErr(AbiError::from_error(ErrorCode::Compute, &error)),
        }
    }

    fn forward(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        guard(|| self.logits(x)?.export())
    }

    fn forward_tape(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        guard(|| {
            let logits = self.logits(x)?;
            let tape = ToyTape {
                weight: self.weight.clone(),
                samples: logits.rows(),
            };
            let tape = AbiTape_TO::from_value(tape, TD_Opaque);
            Ok(Taped {
                y: logits.export()?,
                tape,
            })
        })
    }

    fn trainable(&self, _: RStr<'_>) -> AbiResult<TrainableBox> {
        not_trainable()
    }
}

impl AbiTape for ToyTape {
    fn backward(&self, _: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> RResult<ROption<AbiTensor>, AbiError> {
        guard(|| {
            let cotangent = Tensor::copy_from(cotangent, &[self.samples, CLASSES], "a cotangent")?;
            let [c, h, w] = INPUT;
            let mut gradient = Tensor::zeros(&[self.samples, c, h, w]);
            for (i, row) in gradient.data.chunks_exact_mut(PIXELS).enumerate() {
                for (k, factor) in cotangent.row(i).iter().enumerate() {
                    row.iter_mut()
                        .zip(self.weight.row(k))
                        .for_each(|(g, w)| *g += factor * w);
                }
            }
            gradient.export().map(ROption::RSome)
        })
    }
}
