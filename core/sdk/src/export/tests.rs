use super::*;
use crate::{AttackInfo, BackwardRule, Learner, Lesson, NoSettings, Oracle, Pass, Perturbed, Teacher, Tensor, Weights};
use advae_abi::abi_stable::std_types::ROption;
use advae_abi::info::{ModelInfo, TrainSettings};
use advae_abi::{AbiTensor, CallCtx, CallPhase, TrainableBox};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape};
use serde_json::{Map, Value};

/// The mean of every image as the logit of both classes: it takes images of any shape.
struct Mean;

impl Classifier for Mean {
    type Settings = NoSettings;

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        crate::nn::BatchNorm2d::new(&weights.pp("bn1"), 1)?;
        Ok(Self)
    }

    fn input(&self) -> [usize; 3] {
        [1, 4, 4]
    }

    fn classes(&self) -> usize {
        2
    }

    fn forward(&self, _: &Pass, x: &Tensor) -> Result<Tensor> {
        let mean = x.flatten_from(1)?.mean_keepdim(1)?;
        Tensor::cat(&[&mean, &mean], 1)
    }

    fn features(&self, pass: &Pass, x: &Tensor) -> Result<Option<Tensor>> {
        self.forward(pass, x).map(Some)
    }
}

/// Hands images through; its operator and its teacher panic when they are dropped.
struct Fragile;

struct Fuse;

impl Drop for Fuse {
    fn drop(&mut self) {
        std::panic::panic_any(Payload)
    }
}

struct Payload;

impl Drop for Payload {
    fn drop(&mut self) {
        panic!("in the payload's destructor")
    }
}

impl CustomOp1 for Fuse {
    fn name(&self) -> &'static str {
        "fuse"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((storage.clone(), layout.shape().clone()))
    }
}

impl Teacher for Fuse {
    fn learn(&mut self, lesson: &Lesson) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("loss", lesson.clean.dim(0)? as f64)])
    }

    fn learners(&mut self) -> Vec<(&'static str, &mut Learner)> {
        vec![]
    }
}

impl Purifier for Fragile {
    type Settings = NoSettings;
    const BACKWARD: &'static [BackwardRule] = &[BackwardRule::Exact];

    fn new(_: NoSettings, weights: &Weights) -> Result<Self> {
        weights.param("w", &[1], crate::nn::Init::Ones)?;
        Ok(Self)
    }

    fn purify(&self, pass: &Pass, x: &Tensor) -> Result<Tensor> {
        if pass.track { Ok(x.clone()) } else { x.apply_op1(Fuse) }
    }

    fn teacher(&self, _: &Map<String, Value>, _: &Weights) -> Result<Box<dyn Teacher>> {
        Ok(Box::new(Fuse))
    }
}

fn model(build: impl Fn(RStr<'_>) -> AbiResult<ModelBox>) -> ModelBox {
    build(RStr::from_str("{}")).into_result().unwrap()
}

fn context() -> CallCtx {
    CallCtx::new(0, CallPhase::Score, &[])
}

fn zeros(shape: &[usize]) -> AbiTensor {
    AbiTensor::from_vec(vec![0f32; shape.iter().product()], shape).unwrap()
}

/// Trained by an objective of its own, or by the host's.
fn trainable(model: &ModelBox, own: Option<Map<String, Value>>) -> TrainableBox {
    let settings = TrainSettings {
        own,
        ..TrainSettings::adam()
    };
    let settings = serde_json::to_string(&settings).unwrap();
    model.trainable(settings.as_str().into()).into_result().unwrap()
}

/// Every way into a model for images.
fn refusals(model: &ModelBox, x: &AbiTensor) -> [AbiError; 4] {
    let ctx = context();
    let (ctx, x) = (ctx.lend(&[]), x.view());
    [
        model.forward(ctx, x).into_result().err(),
        model.forward_tape(ctx, x).into_result().err(),
        model.features(ctx, x).into_result().err(),
        model.features_tape(ctx, x).into_result().err(),
    ]
    .map(|error| error.expect("the images were taken"))
}

#[test]
fn images_of_another_shape_than_the_declared_one_do_not_reach_the_model() {
    let model = model(|request| classifier::<Mean>(request, &[]));
    for shape in [&[2, 1, 4, 5][..], &[2, 3, 4, 4], &[1, 4, 4], &[16], &[2, 1, 4, 4, 1]] {
        for error in refusals(&model, &zeros(shape)) {
            let text = error.to_string();
            assert!(error.is(ErrorCode::Shape), "{text}");
            assert!(
                text.contains("[N,1,4,4]") && text.contains(&format!("{shape:?}")),
                "{text}"
            );
        }
    }
    for error in refusals(&model, &AbiTensor::from_vec(vec![0i64; 16], &[1, 1, 4, 4]).unwrap()) {
        assert!(error.is(ErrorCode::Shape), "{error}");
    }
    let ctx = context();
    let logits = model
        .forward(ctx.lend(&[]), zeros(&[3, 1, 4, 4]).view())
        .into_result()
        .unwrap();
    assert_eq!(logits.view().shape().unwrap(), [3, 2]);
}

#[test]
fn a_purifier_without_a_declared_shape_takes_images_of_any_but_nothing_else() {
    let model = model(|request| purifier::<Fragile>(request, &[]));
    let ctx = context();
    let call = |x: &AbiTensor| model.forward_tape(ctx.lend(&[]), x.view()).into_result();
    assert_eq!(
        call(&zeros(&[1, 3, 5, 2])).unwrap().y.view().shape().unwrap(),
        [1, 3, 5, 2]
    );
    let error = call(&zeros(&[3, 5, 2])).err().unwrap();
    assert!(
        error.is(ErrorCode::Shape) && error.to_string().contains("[N,C,H,W]"),
        "{error}"
    );
}

#[test]
fn a_cotangent_of_another_shape_is_refused() {
    let model = model(|request| classifier::<Mean>(request, &[]));
    let ctx = context();
    let taped = model
        .forward_tape(ctx.lend(&[]), zeros(&[2, 1, 4, 4]).view())
        .into_result()
        .unwrap();
    let error = taped
        .tape
        .backward(ctx.lend(&[]), zeros(&[2, 3]).view())
        .into_result()
        .err()
        .unwrap();
    assert!(
        error.is(ErrorCode::Shape) && error.to_string().contains("[2, 3]"),
        "{error}"
    );
}

#[test]
fn an_authors_destructor_that_panics_does_not_end_the_host() {
    let model = model(|request| purifier::<Fragile>(request, &[]));
    let ctx = context();
    let taped = model
        .forward_tape(ctx.lend(&[]), zeros(&[1, 1, 2, 2]).view())
        .into_result();
    drop(taped.unwrap());
    let trainable = trainable(&model, Some(Map::new()));
    let (x, labels) = (zeros(&[5, 1, 2, 2]), AbiTensor::from_vec(vec![0i64; 5], &[5]).unwrap());
    let measured = trainable.learn(
        ctx.lend(&[]),
        advae_abi::Lesson {
            clean: x.view(),
            adversarial: ROption::RNone,
            labels: labels.view(),
            learning_rate: 0.1,
        },
    );
    assert_eq!(measured.into_result().unwrap(), r#"{"loss":5.0}"#);
    drop(trainable);
}

fn undecided() -> f64 {
    panic!("no default")
}

crate::settings! {
    /// Settings without a default.
    struct Undecided {
        /// Radius.
        epsilon: f64 = undecided(),
    }
}

struct Undescribed;

impl Attack for Undescribed {
    type Settings = Undecided;

    fn new(_: Undecided) -> Result<Self> {
        Ok(Self)
    }

    fn info(&self) -> AttackInfo {
        unreachable!("it is never built")
    }

    fn perturb(&self, _: &Oracle, x: &Tensor, _: &Tensor) -> Result<Perturbed> {
        Ok(x.clone().into())
    }
}

#[test]
fn settings_whose_default_panics_are_an_error_and_not_a_crash() {
    let error = describe::<<Undescribed as Attack>::Settings>()
        .into_result()
        .unwrap_err();
    assert!(
        error.is(ErrorCode::Panic) && error.to_string().contains("no default"),
        "{error}"
    );
    assert!(attack::<Undescribed>("{}".into()).into_result().is_err());
}

#[test]
fn the_counters_of_pytorchs_batch_norm_are_ignored_and_named() {
    use candle_core::{Device, safetensors};
    let ones = || Tensor::new(&[1f32], &Device::Cpu).unwrap();
    let mut tensors: std::collections::HashMap<String, Tensor> = ["weight", "bias", "running_mean", "running_var"]
        .map(|name| (format!("bn1.{name}"), ones()))
        .into();
    let counter = Tensor::new(1234i64, &Device::Cpu).unwrap();
    tensors.insert("bn1.num_batches_tracked".into(), counter);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torch.safetensors");
    safetensors::save(&tensors, &path).unwrap();
    let request = Construct {
        weights: advae_abi::info::WeightSource::Path(path.display().to_string()),
        ..Construct::default()
    };
    let request = serde_json::to_string(&request).unwrap();
    let model = classifier::<Mean>(request.as_str().into(), &[]).into_result().unwrap();
    let info: ModelInfo = serde_json::from_str(&model.info().into_result().unwrap()).unwrap();
    assert!(info.note.ends_with("bn1.num_batches_tracked"), "{}", info.note);
    // So does the trainable, which reads such a file to go on from it.
    let trainable = trainable(&model, None);
    let blob = std::fs::read(path).unwrap();
    trainable.load_weights(blob.as_slice().into()).into_result().unwrap();
}
