//! What training minimises: Eq. 7 and 8 of the AdvAE paper, HGD's losses, and their relatives.

use super::loss;
use super::recipe::{Objective, Recipe};
use crate::wire::model::{Model, Tape};
use crate::wire::tensor::{Call, Tensor};
use advae_abi::flags::{ACCUMULATE_PARAMS, TRAIN};
use anyhow::{Context, Result, ensure};
use std::ops::Range;

/// Ids of adversarial images in a joint batch, so that their dropout differs from the clean images'.
const ADVERSARIAL_IDS: u64 = 1 << 40;

/// Weights of the loss's terms, each the mean over a batch.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    clean: f64,
    adversarial: f64,
    lambda: f64,
    consistency: f64,
    objective: Objective,
}

impl Terms {
    /// Those of a recipe.
    pub fn new(recipe: &Recipe) -> Self {
        let (clean, adversarial) = match recipe.validation_attack() {
            Some(_) => (recipe.clean_weight, recipe.adversarial_weight),
            None => (1., 0.),
        };
        Self {
            clean,
            adversarial,
            lambda: recipe.lambda,
            consistency: recipe.consistency,
            // A purifier that learns by an objective of its own is validated by what it is for.
            objective: match recipe.objective {
                Objective::Own => Objective::CrossEntropy,
                other => other,
            },
        }
    }

    /// Whether the loss needs clean images (Eq. 7 reconstructs those) and adversarial ones.
    pub fn needs(&self) -> [bool; 2] {
        [
            self.clean > 0. || self.lambda > 0. || self.consistency > 0.,
            self.adversarial > 0. || self.consistency > 0.,
        ]
    }
}

/// Clean images, and adversarial ones for each classifier, in one batch: so batch norm sees one distribution, the one of
/// evaluation.
pub struct Joint {
    x: Tensor,
    ids: Vec<u64>,
    labels: Vec<u32>,
    clean: Tensor,
    parts: Vec<Part>,
}

/// Images of one kind, in the order of the batch.
struct Part {
    rows: Range<usize>,
    /// The classifier they are for; absent for clean images, which are for all.
    adversarial_to: Option<usize>,
}

impl Joint {
    /// `clean` images with ids and labels, and adversarial images for each classifier; both as [needed](Terms::needs).
    pub fn new(needs: [bool; 2], clean: Tensor, ids: &[u64], labels: &[u32], adversarial: &[Tensor]) -> Self {
        let mut joint = Self {
            x: Tensor::zeros(&[&[0], &clean.shape[1..]].concat()),
            ids: vec![],
            labels: labels.to_vec(),
            clean,
            parts: vec![],
        };
        if needs[0] {
            joint.x.append(&joint.clean);
            joint.push(ids, None);
        }
        if needs[1] {
            for (i, x) in adversarial.iter().enumerate() {
                joint.x.append(x);
                joint.push(ids, Some(i));
            }
        }
        joint
    }

    fn push(&mut self, ids: &[u64], adversarial_to: Option<usize>) {
        let part = self.parts.len() as u64;
        self.ids.extend(ids.iter().map(|id| id + part * ADVERSARIAL_IDS));
        let first = self.parts.len() * ids.len();
        self.parts.push(Part {
            rows: first..first + ids.len(),
            adversarial_to,
        });
    }
}

/// Losses and correct answers of a joint batch.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// For each image of the batch, the weighted sum of the terms and over classifiers.
    pub losses: Vec<f64>,
    /// Correct among clean images, of all.
    pub clean: Count,
    /// Correct among adversarial images, of all.
    pub adversarial: Count,
}

/// Some of many.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// Some.
    pub correct: usize,
    /// Of so many.
    pub of: usize,
}

impl Count {
    /// Both counts.
    pub fn add(&mut self, other: Self) {
        self.correct += other.correct;
        self.of += other.of;
    }

    /// Some of many, as a share; absent of none.
    pub fn share(&self) -> Option<f64> {
        (self.of > 0).then(|| self.correct as f64 / self.of as f64)
    }
}

/// The models, and the loss over them.
pub struct Loss<'a> {
    /// Weights of the terms.
    pub terms: Terms,
    /// Purifier under training; without one the classifier is.
    pub purifier: Option<&'a Model>,
    /// Classifiers, frozen behind a purifier.
    pub classifiers: Vec<&'a Model>,
}

impl Loss<'_> {
    /// Forward and backward of a whole batch in training mode; gradients are added to the trainable's sums.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn update(&self, joint: &Joint, seed: u64, threads: usize) -> Result<Measured> {
        let frozen = Call::score(seed, &joint.ids).with_threads(threads);
        let train = frozen.with_flags(TRAIN | ACCUMULATE_PARAMS);
        let Some(purifier) = self.purifier else {
            let (logits, tape) = self.classifiers[0].forward_tape(&train, &joint.x)?;
            let (measured, cotangent) = self.compare(joint, &joint.all(), &logits, &logits, None);
            tape.backward(&train, &cotangent)?;
            return Ok(measured);
        };
        let (purified, tape) = purifier.forward_tape(&train, &joint.x)?;
        let mut cotangent = Tensor::zeros(&purified.shape);
        let mut measured = self.reconstruct(joint, &purified, &mut cotangent);
        for (i, classifier) in self.classifiers.iter().enumerate() {
            let rows = joint.rows_for(i);
            let (more, back) = self.behind(joint, &rows, classifier, &frozen, &purified)?;
            measured.add(&more);
            rows.add(&mut cotangent, &back);
        }
        tape.backward(&train, &cotangent)?;
        Ok(measured)
    }

    /// The same loss in evaluation mode, without a way back.
    ///
    /// # Errors
    /// Where a plugin fails.
    pub fn measure(&self, joint: &Joint, seed: u64, threads: usize) -> Result<Measured> {
        let call = Call::score(seed, &joint.ids).with_threads(threads);
        let purified = match self.purifier {
            Some(purifier) => purifier.forward(&call, &joint.x)?,
            None => joint.x.clone(),
        };
        let mut measured = match self.purifier {
            Some(_) => self.reconstruct(joint, &purified, &mut Tensor::zeros(&purified.shape)),
            None => Measured::default(),
        };
        for (i, classifier) in self.classifiers.iter().enumerate() {
            let rows = joint.rows_for(i);
            let (ids, x) = (rows.ids(joint), rows.of(&purified));
            let call = Call::score(seed, &ids).with_threads(threads);
            let logits = classifier.forward(&call, &x)?;
            let output = match self.terms.objective {
                Objective::Features => classifier.features(&call, &x)?,
                _ => logits.clone(),
            };
            let aim = self.aim(joint, &rows, classifier, &call, &output)?;
            measured.add(&self.compare(joint, &rows, &logits, &output, aim.as_ref()).0);
        }
        Ok(measured)
    }

    /// Loss of one classifier on purified images, and the gradient at those.
    fn behind(
        &self,
        joint: &Joint,
        rows: &Rows,
        classifier: &Model,
        frozen: &Call,
        purified: &Tensor,
    ) -> Result<(Measured, Tensor)> {
        let (ids, x) = (rows.ids(joint), rows.of(purified));
        let call = Call { ids: &ids, ..*frozen };
        let (logits, output, tape): (Tensor, Tensor, Tape) = match self.terms.objective {
            Objective::Features => {
                let (features, tape) = classifier.features_tape(&call, &x)?;
                (classifier.forward(&call, &x)?, features, tape)
            }
            _ => {
                let (logits, tape) = classifier.forward_tape(&call, &x)?;
                (logits.clone(), logits, tape)
            }
        };
        let aim = self.aim(joint, rows, classifier, &call, &output)?;
        let (measured, cotangent) = self.compare(joint, rows, &logits, &output, aim.as_ref());
        let gradient = tape.backward(&call, &cotangent)?;
        let gradient =
            gradient.with_context(|| format!("classifier '{}' gave no input gradient", classifier.name()))?;
        Ok((measured, gradient))
    }

    /// What outputs are compared with, where that is not a label: the classifier's on the clean images, without the purifier.
    fn aim(
        &self,
        joint: &Joint,
        rows: &Rows,
        classifier: &Model,
        call: &Call,
        output: &Tensor,
    ) -> Result<Option<Tensor>> {
        let batch: Vec<u64> = rows.ids(joint)[..joint.labels.len()].to_vec();
        let call = Call { ids: &batch, ..*call };
        let one = match self.terms.objective {
            Objective::CrossEntropy | Objective::Own => return Ok(None),
            Objective::Logits => classifier.forward(&call, &joint.clean)?,
            Objective::Features => classifier.features(&call, &joint.clean)?,
        };
        let mut all = Tensor::zeros(&[0, one.row_len()]);
        rows.0.iter().for_each(|_| all.append(&one));
        ensure!(
            all.shape == output.shape,
            "classifier '{}' gave features of shape {:?} and of shape {:?} for as many images",
            classifier.name(),
            all.shape,
            output.shape
        );
        Ok(Some(all))
    }

    /// Weighted loss of the outputs of some parts, its cotangent, and the correct answers among the logits.
    fn compare(
        &self,
        joint: &Joint,
        rows: &Rows,
        logits: &Tensor,
        output: &Tensor,
        aim: Option<&Tensor>,
    ) -> (Measured, Tensor) {
        let n = joint.labels.len();
        let labels: Vec<u32> = rows.0.iter().flat_map(|_| &joint.labels).copied().collect();
        let (losses, mut cotangent) = match aim {
            None => loss::cross_entropy(output, &labels, 1.),
            Some(aim) => loss::l1(output, aim, 1.),
        };
        let mut measured = Measured::default();
        let answers = logits.argmax();
        for (at, part) in rows.0.iter().enumerate() {
            let here = at * n..(at + 1) * n;
            let right = answers[here.clone()].iter().zip(&joint.labels).filter(|(a, b)| a == b);
            let count = Count {
                correct: right.count(),
                of: n,
            };
            let weight = match part.adversarial_to {
                None => {
                    measured.clean.add(count);
                    self.terms.clean
                }
                Some(_) => {
                    measured.adversarial.add(count);
                    self.terms.adversarial
                }
            };
            measured.add_losses(&losses[here.clone()], weight);
            let row = cotangent.row_len();
            let cotangents = &mut cotangent.data[here.start * row..here.end * row];
            cotangents.iter_mut().for_each(|g| *g *= (weight / n as f64) as f32);
        }
        if self.terms.consistency > 0. && rows.0.len() == 2 {
            let weight = self.terms.consistency / n as f64;
            let halves = [0, n].map(|from| output.select(&(from..from + n).collect::<Vec<_>>()));
            let (losses, [by_clean, by_adversarial]) = loss::divergence(&halves[0], &halves[1], weight as f32);
            measured.add_losses(&losses, self.terms.consistency);
            let mut both = by_clean;
            both.append(&by_adversarial);
            cotangent.add(&both);
        }
        (measured, cotangent)
    }

    /// Eq. 7's second term over the clean images, added to the cotangent.
    fn reconstruct(&self, joint: &Joint, purified: &Tensor, cotangent: &mut Tensor) -> Measured {
        let mut measured = Measured::default();
        // Clean images, where there are any, come first.
        if self.terms.lambda > 0. {
            let n = joint.labels.len();
            let rows = Rows(vec![&joint.parts[0]]);
            let weight = self.terms.lambda * self.classifiers.len() as f64;
            let (losses, more) = loss::reconstruction(&rows.of(purified), &joint.clean, (weight / n as f64) as f32);
            measured.add_losses(&losses, weight);
            rows.add(cotangent, &more);
        }
        measured
    }
}

impl Measured {
    /// The mean loss.
    pub fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }

    /// Adds the images of `other` behind its own.
    pub fn append(&mut self, other: Self) {
        self.losses.extend(other.losses);
        self.clean.add(other.clean);
        self.adversarial.add(other.adversarial);
    }

    fn add_losses(&mut self, losses: &[f64], weight: f64) {
        self.losses.resize(losses.len(), 0.);
        self.losses
            .iter_mut()
            .zip(losses)
            .for_each(|(sum, loss)| *sum += weight * loss);
    }

    /// Adds another term or classifier over the same images.
    fn add(&mut self, other: &Self) {
        self.losses.resize(other.losses.len(), 0.);
        self.losses.iter_mut().zip(&other.losses).for_each(|(a, b)| *a += b);
        self.clean.add(other.clean);
        self.adversarial.add(other.adversarial);
    }
}

/// Some parts of a joint batch.
struct Rows<'a>(Vec<&'a Part>);

impl Joint {
    fn all(&self) -> Rows<'_> {
        Rows(self.parts.iter().collect())
    }

    /// The parts that one classifier sees.
    fn rows_for(&self, classifier: usize) -> Rows<'_> {
        let sees = |part: &&Part| part.adversarial_to.is_none_or(|i| i == classifier);
        Rows(self.parts.iter().filter(sees).collect())
    }
}

impl Rows<'_> {
    fn ids(&self, joint: &Joint) -> Vec<u64> {
        self.0
            .iter()
            .flat_map(|part| &joint.ids[part.rows.clone()])
            .copied()
            .collect()
    }

    fn indices(&self) -> Vec<usize> {
        self.0.iter().flat_map(|part| part.rows.clone()).collect()
    }

    fn of(&self, all: &Tensor) -> Tensor {
        all.select(&self.indices())
    }

    /// Adds `more`, a row for each of these, to those rows of `all`.
    fn add(&self, all: &mut Tensor, more: &Tensor) {
        let len = all.row_len();
        for (from, to) in self.indices().into_iter().enumerate() {
            let to = &mut all.data[to * len..(to + 1) * len];
            to.iter_mut().zip(more.row(from)).for_each(|(a, b)| *a += b);
        }
    }
}
