//! What an attack wants: away from the true label, or towards a target.

use crate::Oracle;
use advae_abi::info::Label;
use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The setting `target` of an attack. Where a rule names the true label of a sample, the next class takes its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// `null`: any label but the true one.
    #[default]
    Untargeted,
    /// `"next"`: the class after the true one, cyclically.
    Next,
    /// `"random"`: one of the other classes, keyed by the sample.
    Random,
    /// `"least_likely"`: the class with the smallest logit on the clean image, the first of equals.
    LeastLikely,
    /// A number: that class.
    Class(u32),
}

/// Stream of the random targets among a sample's generators.
const TARGET: u64 = 0x5447;

impl Goal {
    /// Whether there is a target.
    pub fn targeted(self) -> bool {
        self != Self::Untargeted
    }

    /// The labels `[N]` that this goal means for clean images `x [N,C,H,W]` with true labels `y [N]`.
    ///
    /// # Errors
    /// Where the target is no class of the oracle's, or where the oracle refuses the logits that a rule needs.
    pub fn objective(self, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Objective> {
        self.objective_by(Label::True, oracle, x, y)
    }

    /// The same by the true labels, or by those that the oracle predicts in their stead. A target is never the true label, whatever
    /// the prediction; nor is it the predicted one, if there is a third class.
    ///
    /// # Errors
    /// As for [`objective`](Self::objective), and where the oracle refuses the logits that a prediction needs.
    pub fn objective_by(self, label: Label, oracle: &Oracle, x: &Tensor, y: &Tensor) -> Result<Objective> {
        let truth = labels(y)?;
        let from = match label {
            Label::True => truth.clone(),
            Label::Predicted => rows(&oracle.logits(x)?)?
                .iter()
                .map(|z| first_of(z, |a, b| a > b))
                .collect(),
        };
        let classes = oracle.classes() as u32;
        let chosen = match self {
            Self::Untargeted => {
                return Ok(Objective {
                    labels: from,
                    targeted: false,
                });
            }
            _ if classes < 2 => bail!("a target needs two classes at least, the oracle has {classes}"),
            Self::Next => from.clone(),
            Self::Random => (0..from.len())
                .map(|i| (from[i] + oracle.pass().rng(i, TARGET).random_range(1..classes)) % classes)
                .collect(),
            Self::LeastLikely => rows(&oracle.logits(x)?)?
                .iter()
                .map(|z| first_of(z, |a, b| a < b))
                .collect(),
            Self::Class(class) if class < classes => vec![class; truth.len()],
            Self::Class(class) => bail!(
                "target {class} is none of the oracle's {classes} classes: choose 0 to {}",
                classes - 1
            ),
        };
        let refused = |target, i| target == truth[i] || (target == from[i] && classes > 2);
        let allowed = |(i, mut target)| {
            while refused(target, i) {
                target = (target + 1) % classes;
            }
            target
        };
        Ok(Objective {
            labels: chosen.into_iter().enumerate().map(allowed).collect(),
            targeted: true,
        })
    }
}

/// A goal with its labels, one a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Objective {
    labels: Vec<u32>,
    targeted: bool,
}

impl Objective {
    /// Loss `[N]` of logits `[N,K]` that an attack ascends: the log odds against the true label, or those for the target.
    ///
    /// It ranks images as cross-entropy does, and at every image its gradient has the direction of cross-entropy's. Unlike
    /// that, neither loss nor gradient underflows where the model is sure: see [`advae_nn::log_odds_against`].
    ///
    /// # Errors
    /// If the logits are not one row of two classes or more per sample, or a label is none of their classes.
    pub fn loss(&self, logits: &Tensor) -> Result<Tensor> {
        let loss = match logits.device().is_cpu() {
            true => advae_nn::log_odds_against(logits, &self.tensor()?)?,
            false => self.log_odds(logits)?,
        };
        if self.targeted { loss.neg() } else { Ok(loss) }
    }

    /// The log odds against the labels in few operations, with their own gradient: on a device every operation costs its launch.
    fn log_odds(&self, logits: &Tensor) -> Result<Tensor> {
        let (n, k) = logits.dims2()?;
        if n != self.labels.len() || k < 2 || self.labels.iter().any(|label| *label as usize >= k) {
            // It says what does not fit.
            return advae_nn::log_odds_against(logits, &self.tensor()?);
        }
        let mut label = vec![0f32; n * k];
        (label.chunks_exact_mut(k).zip(&self.labels)).for_each(|(row, label)| row[*label as usize] = 1.);
        let (z, label) = (logits.detach(), Tensor::from_vec(label, (n, k), logits.device())?);
        let others = (&z + (&label * -1e30)?)?;
        let largest = others.max_keepdim(1)?;
        let shares = others.broadcast_sub(&largest)?.exp()?;
        let sum = shares.sum_keepdim(1)?;
        let own = (&z * &label)?.sum_keepdim(1)?;
        let loss = ((sum.log()? + largest)? - own)?.squeeze(1)?;
        let slope = (shares.broadcast_div(&sum)? - label)?;
        advae_nn::custom_vjp(logits, &loss, move |cotangent| {
            slope.broadcast_mul(&cotangent.unsqueeze(1)?)
        })
    }

    /// How far logits `[N,K]` are from the goal, `[N]`: `z_y - max z_i (i != y)`, or `max z_i (i != t) - z_t` for a
    /// target `t`. Negative: reached.
    ///
    /// # Errors
    /// As for [`loss`](Self::loss), and where there is one class only.
    pub fn margin(&self, logits: &Tensor) -> Result<Tensor> {
        let lead = advae_nn::margin(logits, &self.tensor()?)?;
        if self.targeted { lead.neg() } else { Ok(lead) }
    }

    /// Which logits `[N,K]` reach the goal: the label, the first of the largest, is not the true one, or is the target.
    ///
    /// # Errors
    /// Where the logits are not `[N,K]` of `f32`.
    pub fn is_adversarial(&self, logits: &Tensor) -> Result<Vec<bool>> {
        let reached = |(z, label): (Vec<f32>, &u32)| (first_of(&z, |a, b| a > b) == *label) == self.targeted;
        Ok(rows(logits)?.into_iter().zip(&self.labels).map(reached).collect())
    }

    /// The same where the logits lie, `[N]` of 1 and 0 (`u8`): nothing is read back from a device.
    ///
    /// # Errors
    /// As for [`is_adversarial`](Self::is_adversarial), and where there is not one row a label.
    pub fn reached(&self, logits: &Tensor) -> Result<Tensor> {
        let labels: Vec<f32> = self.labels.iter().map(|label| *label as f32).collect();
        let (said, labels) = (first_largest(logits)?, Tensor::new(labels, logits.device())?);
        if self.targeted {
            said.eq(&labels)
        } else {
            said.ne(&labels)
        }
    }

    /// The objective of some samples, by their places in the batch.
    ///
    /// # Panics
    /// If an index is not below the number of samples.
    pub fn select(&self, indices: &[usize]) -> Self {
        Self {
            labels: indices.iter().map(|i| self.labels[*i]).collect(),
            targeted: self.targeted,
        }
    }

    /// The true labels, or the targets, one a sample.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The targets, where there are any: what [`Perturbed`](crate::Perturbed) reports.
    pub fn targets(&self) -> Option<Vec<u32>> {
        self.targeted.then(|| self.labels.clone())
    }

    /// On the CPU, from where losses take labels without waiting for a device.
    fn tensor(&self) -> Result<Tensor> {
        Tensor::new(self.labels.as_slice(), &Device::Cpu)
    }
}

/// The place of the first of the largest values of every row of `[N,K]`, as numbers `[N]`: `argmax` of a device gives any of them.
pub(crate) fn first_largest(rows: &Tensor) -> Result<Tensor> {
    let (_, k) = rows.dims2()?;
    let before_end = Tensor::new((1..=k).rev().map(|left| left as f32).collect::<Vec<_>>(), rows.device())?;
    let largest = rows.broadcast_ge(&rows.max_keepdim(1)?)?.to_dtype(DType::F32)?;
    largest.broadcast_mul(&before_end)?.max(1)?.affine(-1., k as f64)
}

/// Some samples of a batch `[N, ...]`, by their places in it.
///
/// # Errors
/// Where an index is not below `N`.
pub fn select_rows(x: &Tensor, indices: &[usize]) -> Result<Tensor> {
    if indices.is_empty() {
        // A GPU launches nothing for nothing.
        return x.narrow(0, 0, 0);
    }
    let indices: Vec<u32> = indices.iter().map(|i| *i as u32).collect();
    x.index_select(&Tensor::new(indices, x.device())?, 0)
}

fn labels(y: &Tensor) -> Result<Vec<u32>> {
    let labels = y.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    labels
        .into_iter()
        .map(|y| u32::try_from(y).map_err(candle_core::Error::wrap))
        .collect()
}

fn rows(logits: &Tensor) -> Result<Vec<Vec<f32>>> {
    logits.to_device(&Device::Cpu)?.to_vec2()
}

/// The first index whose value no other one beats.
fn first_of(values: &[f32], beats: impl Fn(f32, f32) -> bool) -> u32 {
    let mut best = 0;
    for (i, value) in values.iter().enumerate() {
        if beats(*value, values[best]) {
            best = i;
        }
    }
    best as u32
}

impl Serialize for Goal {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Self::Untargeted => serializer.serialize_none(),
            Self::Next => serializer.serialize_str("next"),
            Self::Random => serializer.serialize_str("random"),
            Self::LeastLikely => serializer.serialize_str("least_likely"),
            Self::Class(class) => serializer.serialize_u32(*class),
        }
    }
}

impl<'de> Deserialize<'de> for Goal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(GoalVisitor)
    }
}

struct GoalVisitor;

impl Visitor<'_> for GoalVisitor {
    type Value = Goal;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("next, random, least_likely, the number of a class, or null for an untargeted attack")
    }

    fn visit_unit<E: Error>(self) -> std::result::Result<Goal, E> {
        Ok(Goal::Untargeted)
    }

    fn visit_str<E: Error>(self, text: &str) -> std::result::Result<Goal, E> {
        match text {
            "next" => Ok(Goal::Next),
            "random" => Ok(Goal::Random),
            "least_likely" => Ok(Goal::LeastLikely),
            other => Err(E::invalid_value(Unexpected::Str(other), &self)),
        }
    }

    fn visit_u64<E: Error>(self, class: u64) -> std::result::Result<Goal, E> {
        u32::try_from(class)
            .map(Goal::Class)
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(class), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    fn objective(targeted: bool) -> Objective {
        Objective {
            labels: vec![0, 1, 2, 1],
            targeted,
        }
    }

    fn logits() -> Var {
        let rows = [[3f32, 1., 0.5], [200., -90., 0.], [1., 1., 1.], [-5., 2., 2.]];
        Var::new(&rows, &Device::Cpu).unwrap()
    }

    #[test]
    fn log_odds_in_few_operations_are_the_same() {
        let z = logits();
        let labels = Tensor::new(&[0u32, 1, 2, 1], &Device::Cpu).unwrap();
        let of = |loss: Tensor| {
            let gradient = advae_nn::vjp(
                z.as_tensor(),
                &loss,
                &Tensor::new(&[1f32, 1., -2., 1.], &Device::Cpu).unwrap(),
            );
            let gradient = gradient.unwrap().0.unwrap().flatten_all().unwrap();
            [loss.to_vec1::<f32>().unwrap(), gradient.to_vec1::<f32>().unwrap()].concat()
        };
        let few = of(objective(false).log_odds(z.as_tensor()).unwrap());
        let many = of(advae_nn::log_odds_against(z.as_tensor(), &labels).unwrap());
        for (a, b) in few.iter().zip(&many) {
            assert!((a - b).abs() <= 1e-5 * (1. + b.abs()), "{few:?} {many:?}");
        }
        let error = Objective {
            labels: vec![0, 1, 2, 3],
            targeted: false,
        };
        assert!(
            error
                .log_odds(z.as_tensor())
                .unwrap_err()
                .to_string()
                .contains("label 3")
        );
    }

    #[test]
    fn what_is_reached_is_told_where_the_logits_lie() {
        for targeted in [false, true] {
            let objective = objective(targeted);
            let here = objective.is_adversarial(logits().as_tensor()).unwrap();
            let there = objective
                .reached(logits().as_tensor())
                .unwrap()
                .to_vec1::<u8>()
                .unwrap();
            assert_eq!(there.into_iter().map(|reached| reached != 0).collect::<Vec<_>>(), here);
        }
    }
}
