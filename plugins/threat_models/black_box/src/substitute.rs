//! How the substitute is trained: on what the black box has labelled, and on steps from there towards and away from those labels.

use crate::BlackBoxSettings;
use advae_sdk::candle_core::{DType, Device, bail};
use advae_sdk::prelude::*;
use rand::seq::SliceRandom;

/// Images that are asked about, or differentiated, in one call.
const AT_ONCE: usize = 256;
/// Images that the substitute may be trained on in the end: those of MNIST take 0.8 GB then.
const MOST_IMAGES: usize = 1 << 18;
/// Stream of the order of images among the preparation's generators.
const ORDER: u64 = 0x0bb0;
/// Rounds after which the augmentation goes down the label's logit; later ones go up (as the authors' code did).
const DOWN_ROUNDS: u64 = 3;

/// A classifier that can be trained and differentiated: a [`RemoteModel`], or a test's.
pub trait Student {
    /// One step of Adam on the cross-entropy of images `[N,C,H,W]` and labels `[N]`.
    fn learn(&self, x: &Tensor, labels: &Tensor, seed: u64, rate: f64) -> Result<()>;
    /// Gradient of the labels' logits with respect to the images.
    fn gradient(&self, x: &Tensor, labels: &Tensor) -> Result<Tensor>;
}

impl Student for RemoteModel {
    fn learn(&self, x: &Tensor, labels: &Tensor, seed: u64, rate: f64) -> Result<()> {
        self.train_step(x, seed, rate, |logits| nn::cross_entropy(logits, labels))?;
        Ok(())
    }

    fn gradient(&self, x: &Tensor, labels: &Tensor) -> Result<Tensor> {
        self.gradient(x, |logits| label_logits(logits, labels))
    }
}

/// The logit `[N]` of each sample's label.
fn label_logits(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let classes = Tensor::arange(0i64, logits.dim(1)? as i64, logits.device())?;
    let chosen = labels.unsqueeze(1)?.broadcast_eq(&classes.unsqueeze(0)?)?;
    (logits * chosen.to_dtype(DType::F32)?)?.sum(1)
}

/// Trains the substitute from the seeds `x [N,C,H,W]`. `ask` gives the black box's labels `[N]`.
///
/// # Errors
/// If the images would become too many, or as `ask` and the student fail: their errors, a cancelled run's too, are returned as they are.
pub fn train(
    settings: &BlackBoxSettings,
    pass: &Pass,
    student: &impl Student,
    mut x: Tensor,
    ask: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<()> {
    let (seeds, rounds) = (x.dim(0)?, settings.rounds);
    if seeds << (rounds - 1) > MOST_IMAGES {
        bail!(
            "seeds is {seeds} and rounds is {rounds}: images double in each round but the last, to {}, choose at most {MOST_IMAGES}",
            seeds << (rounds - 1)
        )
    }
    let ask = |x: &Tensor| in_parts(x, |_, part| ask(&part));
    let mut labels = ask(&x)?;
    for round in 0..settings.rounds {
        for epoch in 0..settings.epochs {
            let number = round * settings.epochs + epoch;
            let mut order: Vec<u32> = (0..x.dim(0)? as u32).collect();
            order.shuffle(&mut pass.rng(number as usize, ORDER));
            for (step, batch) in order.chunks(settings.batch_size as usize).enumerate() {
                let batch = Tensor::new(batch, &Device::Cpu)?;
                let seed = pass.seed.wrapping_add((number << 32) + step as u64);
                let (x, labels) = (x.index_select(&batch, 0)?, labels.index_select(&batch, 0)?);
                student.learn(&x, &labels, seed, settings.learning_rate)?;
            }
        }
        if round + 1 == settings.rounds {
            break;
        }
        let sign = if round < DOWN_ROUNDS { -1. } else { 1. };
        let gradient = in_parts(&x, |from, part| {
            student.gradient(&part, &labels.narrow(0, from, part.dim(0)?)?)
        })?;
        let more = (&x + (gradient.sign()? * (sign * settings.augmentation))?)?.clamp(0., 1.)?;
        labels = Tensor::cat(&[&labels, &ask(&more)?], 0)?;
        x = Tensor::cat(&[&x, &more], 0)?;
    }
    Ok(())
}

/// What `f(first row, rows)` makes of parts of `x [N, ...]`, one after the other.
fn in_parts(x: &Tensor, f: impl Fn(usize, Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let n = x.dim(0)?;
    let part = |from: usize| f(from, x.narrow(0, from, AT_ONCE.min(n - from))?.contiguous()?);
    let parts = (0..n).step_by(AT_ONCE).map(part).collect::<Result<Vec<_>>>()?;
    Tensor::cat(&parts, 0)
}
