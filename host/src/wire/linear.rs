//! A linear classifier of the host's own, to measure attacks by: its robust accuracy is known in closed form.

use crate::plugin::fenv;
use crate::wire::head::Linear;
use crate::wire::model::Model;
use crate::wire::tensor::Tensor;
use advae_abi::abi_stable::erased_types::TD_Opaque;
use advae_abi::abi_stable::std_types::{ROption, RStr, RString};
use advae_abi::info::{Kind, ModelInfo, Threading};
use advae_abi::{
    AbiError, AbiModel, AbiModel_TO, AbiResult, AbiTape, AbiTape_TO, AbiTensor, AbiTensorRef, CtxRef, ErrorCode, Taped,
    TrainableBox, guard, not_trainable,
};
use anyhow::Result;
use std::sync::Arc;

/// `W x + b` of images of that shape.
///
/// # Errors
/// Where weights and shape do not fit.
pub fn classifier(input: [usize; 3], linear: Linear) -> Result<Model> {
    let own = Own {
        input,
        linear: Arc::new(linear),
    };
    Model::from_box(Kind::Classifier, "linear", AbiModel_TO::from_value(own, TD_Opaque))
}

struct Own {
    input: [usize; 3],
    linear: Arc<Linear>,
}

struct OwnTape {
    shape: Vec<usize>,
    linear: Arc<Linear>,
}

impl Own {
    fn logits(&self, x: AbiTensorRef<'_>) -> Result<(Vec<usize>, Tensor), AbiError> {
        let n = x.shape()?.first().copied().unwrap_or(0);
        let [c, h, w] = self.input;
        let x = Tensor::copy_from(x, &[n, c, h, w], "images of the linear classifier")?;
        Ok((x.shape.clone(), self.linear.forward(&x)))
    }
}

/// The host's code runs under the host's floating-point state, whoever calls it.
fn answer<T>(f: impl FnOnce() -> Result<T, AbiError>) -> AbiResult<T> {
    fenv::as_host(|| guard(f))
}

impl AbiModel for Own {
    fn info(&self) -> AbiResult<RString> {
        let info = ModelInfo {
            input: Some(self.input),
            classes: Some(self.linear.bias.len()),
            bounds: [0., 1.],
            backward_rules: vec![],
            random: false,
            threading: Threading::Caller,
            batch: None,
            parameters: 0,
            weights: String::new(),
            note: String::new(),
        };
        answer(|| {
            let json = serde_json::to_string(&info);
            json.map(RString::from)
                .map_err(|e| AbiError::from_error(ErrorCode::Compute, &e))
        })
    }

    fn forward(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<AbiTensor> {
        answer(|| self.logits(x)?.1.export())
    }

    fn forward_tape(&self, _: CtxRef<'_>, x: AbiTensorRef<'_>) -> AbiResult<Taped> {
        answer(|| {
            let (shape, y) = self.logits(x)?;
            let linear = self.linear.clone();
            Ok(Taped {
                y: y.export()?,
                tape: AbiTape_TO::from_value(OwnTape { shape, linear }, TD_Opaque),
            })
        })
    }

    fn trainable(&self, _: RStr<'_>) -> AbiResult<TrainableBox> {
        not_trainable()
    }
}

impl AbiTape for OwnTape {
    fn backward(&self, _: CtxRef<'_>, cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>> {
        answer(|| {
            let expected = [self.shape[0], self.linear.bias.len()];
            let cotangent = Tensor::copy_from(cotangent, &expected, "a cotangent of the linear classifier")?;
            let mut gradient = self.linear.backward(&cotangent);
            gradient.shape = self.shape.clone();
            gradient.export().map(ROption::RSome)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tensor::Call;

    #[test]
    fn the_hosts_own_classifier_answers_over_the_contract() {
        let linear = Linear {
            weight: vec![1., 2., 0., -1.],
            bias: vec![0., 0.5],
        };
        let model = classifier([1, 1, 2], linear).unwrap();
        let x = Tensor::new(vec![1, 1, 1, 2], vec![0.5, 0.25]).unwrap();
        let call = Call::craft(0, &[3]);
        let (y, tape) = model.forward_tape(&call, &x).unwrap();
        assert_eq!(y.data, [1., 0.25]);
        let cotangent = Tensor::new(vec![1, 2], vec![1., -2.]).unwrap();
        let gradient = tape.backward(&call, &cotangent).unwrap().unwrap();
        assert_eq!(
            (gradient.data.as_slice(), gradient.shape.as_slice()),
            ([1f32, 4.].as_slice(), [1usize, 1, 1, 2].as_slice())
        );
    }
}
