use crate::substitute::{Student, train};
use crate::{BlackBox, BlackBoxSettings};
use advae_sdk::candle_core::{DType, Device, Error};
use advae_sdk::prelude::*;
use std::cell::{Cell, RefCell};

/// Remembers what it was taught; the gradient of its label's logit is 1 where the label is 1, else -1.
#[derive(Default)]
struct Pupil {
    batches: RefCell<Vec<usize>>,
    seeds: RefCell<Vec<u64>>,
    /// Steps after which the host cancels the run.
    patience: Option<usize>,
}

impl Student for Pupil {
    fn learn(&self, x: &Tensor, labels: &Tensor, seed: u64, _: f64) -> Result<()> {
        assert_eq!(x.dim(0)?, labels.dim(0)?);
        if self.patience == Some(self.batches.borrow().len()) {
            return Err(Error::Msg("the run was cancelled".into()));
        }
        self.batches.borrow_mut().push(x.dim(0)?);
        self.seeds.borrow_mut().push(seed);
        Ok(())
    }

    fn gradient(&self, x: &Tensor, labels: &Tensor) -> Result<Tensor> {
        let slope = ((labels.to_dtype(DType::F32)? * 2.)? - 1.)?;
        x.ones_like()?.broadcast_mul(&slope.reshape(((), 1, 1, 1))?)
    }
}

/// Says 1 where the first pixel is above a half; keeps what it was asked.
fn black_box(asked: &RefCell<Vec<f32>>, x: &Tensor) -> Result<Tensor> {
    let first = x.flatten_from(1)?.narrow(1, 0, 1)?.flatten_all()?.to_vec1::<f32>()?;
    asked.borrow_mut().extend(&first);
    let labels: Vec<i64> = first.iter().map(|v| i64::from(*v > 0.5)).collect();
    Tensor::new(labels, &Device::Cpu)
}

#[test]
fn images_double_along_the_gradient_and_every_one_is_asked_about_once() {
    let settings = BlackBoxSettings {
        rounds: 5,
        epochs: 2,
        batch_size: 3,
        augmentation: 0.25,
        ..Default::default()
    };
    let x = Tensor::new(&[0.25f32, 0.75], &Device::Cpu)
        .unwrap()
        .reshape((2, 1, 1, 1))
        .unwrap();
    let (pupil, asked) = (Pupil::default(), RefCell::default());
    train(&settings, &Pass::eval(), &pupil, x, |x| black_box(&asked, x)).unwrap();
    let asked = asked.into_inner();
    // The seeds, then three times down the label's logit, clipped to [0, 1], then up.
    assert_eq!(asked.len(), 2 * 16);
    assert_eq!(asked[..4], [0.25, 0.75, 0.5, 0.5]);
    assert_eq!(asked[4..8], [0.5, 0.5, 0.75, 0.75]);
    assert_eq!(asked[16..20], [0., 1., 0.25, 0.25]);
    assert!(asked.iter().all(|v| (0. ..=1.).contains(v)));
    // Two epochs a round over 2, 4, 8, 16 and 32 images in batches of 3.
    let images: usize = pupil.batches.borrow().iter().sum();
    assert_eq!(images, 2 * (2 + 4 + 8 + 16 + 32));
    let mut seeds = pupil.seeds.into_inner();
    seeds.sort_unstable();
    seeds.dedup();
    assert_eq!(
        seeds.len(),
        pupil.batches.borrow().len(),
        "dropout is drawn afresh at every step"
    );
}

#[test]
fn the_papers_settings_ask_4800_times() {
    let settings = BlackBoxSettings {
        epochs: 1,
        ..Default::default()
    };
    let seeds = Tensor::zeros((150, 1, 1, 1), DType::F32, &Device::Cpu).unwrap();
    let count = Cell::new(0);
    let ask = |x: &Tensor| {
        count.set(count.get() + x.dim(0)?);
        Tensor::zeros(x.dim(0)?, DType::I64, &Device::Cpu)
    };
    train(&settings, &Pass::eval(), &Pupil::default(), seeds, ask).unwrap();
    assert_eq!(count.get(), 4800);
}

/// `images` grey images of one pixel.
fn pixels(images: usize) -> Tensor {
    Tensor::zeros((images, 1, 1, 1), DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn a_run_that_is_cancelled_within_an_epoch_ends_there_with_the_hosts_own_error() {
    let settings = BlackBoxSettings::default();
    let pupil = Pupil {
        patience: Some(7),
        ..Pupil::default()
    };
    let ask = |x: &Tensor| Tensor::zeros(x.dim(0)?, DType::I64, &Device::Cpu);
    let error = train(&settings, &Pass::eval(), &pupil, pixels(150), ask).unwrap_err();
    assert_eq!(pupil.batches.borrow().len(), 7);
    assert!(
        matches!(&error, Error::Msg(text) if text == "the run was cancelled"),
        "wrapped: {error:?}"
    );
}

#[test]
fn more_images_than_memory_holds_are_refused_before_the_first_question() {
    let settings = BlackBoxSettings {
        rounds: 16,
        ..Default::default()
    };
    let ask = |_: &Tensor| -> Result<Tensor> { panic!("asked") };
    let error = train(&settings, &Pass::eval(), &Pupil::default(), pixels(150), ask).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("seeds is 150 and rounds is 16") && text.contains("to 4915200, choose at most 262144"),
        "{text}"
    );
}

#[test]
fn settings_out_of_range_are_refused() {
    let read = |text: &str| advae_sdk::serde_json::from_str::<BlackBoxSettings>(text).unwrap();
    for (text, said) in [
        (r#"{"rounds": 0}"#, "rounds is 0: choose a value from 1 to 16"),
        (r#"{"rounds": 17}"#, "rounds is 17"),
        (r#"{"epochs": 18446744073709551615}"#, "epochs is 18446744073709551615"),
        (r#"{"batch_size": 0}"#, "batch_size is 0"),
        (
            r#"{"batch_size": 18446744073709551615}"#,
            "batch_size is 18446744073709551615",
        ),
        (r#"{"learning_rate": 1e300}"#, "learning_rate is 1e300"),
        (r#"{"augmentation": 1e300}"#, "augmentation is 1e300"),
        (r#"{"seeds": 18446744073709551615}"#, "seeds is 18446744073709551615"),
    ] {
        let error = BlackBox::new(read(text)).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}
