//! The training loop: craft on the pipeline as it stands (eval mode), then one whole-batch update (train mode).

use super::checkpoint::{Folder, Position, Sums};
use super::half;
use super::loss;
use super::recipe::Recipe;
use super::schedule::Schedule;
use crate::attack::Attack;
use crate::cancel::Cancel;
use crate::model::{Model, Trainable};
use crate::oracle::{Oracle, Rules};
use crate::pipeline::Pipeline;
use crate::plugin::{Plugin, PluginSpec};
use crate::progress::Ticker;
use crate::tensor::{Call, Tensor};
use crate::workers::{self, Layout};
use advae_abi::flags::{ACCUMULATE_PARAMS, TRAIN};
use advae_abi::info::{Access, Target, TrainSettings};
use advae_data::Dataset;
use anyhow::{Context, Result, ensure};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Ids of adversarial images in a joint batch, so that their dropout differs from the clean images'.
const ADVERSARIAL_IDS: u64 = 1 << 40;

/// One run.
pub struct Trainer {
    recipe: Recipe,
    pipeline: Pipeline,
    trainee: Model,
    trainable: Trainable,
    attack: Option<(Plugin, PluginSpec)>,
    training: Dataset,
    validation: Dataset,
    threads: usize,
}

/// An epoch's line in the log.
#[derive(Clone, Debug, Serialize)]
pub struct EpochLog {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Steps taken so far.
    pub step: u64,
    /// Learning rate of the epoch.
    pub learning_rate: f64,
    /// Radius at its end; absent for clean training.
    pub epsilon: Option<f64>,
    /// Mean loss over its batches.
    pub train_loss: f64,
    /// Share correct among the images trained on, in train mode.
    pub train_accuracy: f64,
    /// The training loss on the validation images: fresh examples at the full radius.
    pub validation_loss: f64,
    /// Clean accuracy on the validation images.
    pub clean_accuracy: f64,
    /// Robust accuracy on the validation images under the recipe's attack.
    pub robust_accuracy: Option<f64>,
    /// Whether it is the best so far.
    pub best: bool,
    /// Seconds of training, without validation.
    pub seconds: f64,
    /// Training images a second.
    pub images_per_second: f64,
}

/// What the loop tells its caller.
pub trait Observer {
    /// After every step: position, steps of the epoch, mean loss so far. `false` stops after a checkpoint.
    fn step(&mut self, position: &Position, steps: usize, loss: f64) -> bool;
    /// After every epoch.
    fn epoch(&mut self, log: &EpochLog) -> Result<()>;
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs, or early stop.
    Finished,
    /// The observer asked to stop; the checkpoint is written.
    Interrupted,
}

struct Measured {
    loss: f64,
    correct_clean: usize,
    correct_adversarial: usize,
}

impl Trainer {
    /// Loads the plugins of a recipe.
    ///
    /// # Errors
    /// Where a plugin cannot be loaded, has nothing to train, or images and networks do not fit.
    pub fn new(recipe: Recipe, training: Dataset, validation: Dataset, threads: usize) -> Result<Self> {
        let purifier = recipe
            .purifier
            .as_deref()
            .map(|spec| construct(spec, Some(recipe.seed)))
            .transpose()?;
        let classifier = construct(&recipe.classifier, purifier.is_none().then_some(recipe.seed))?;
        let trainee = purifier.clone().unwrap_or_else(|| classifier.clone());
        let settings = TrainSettings {
            optimiser: "adam".into(),
            options: Default::default(),
        };
        let trainable = trainee.trainable(&settings)?;
        let pipeline = Pipeline { purifier, classifier };
        pipeline.check()?;
        let input = pipeline.input()?;
        ensure!(
            training.shape == input,
            "dataset '{}' has images {:?}, the classifier takes {input:?}",
            training.name,
            training.shape
        );
        ensure!(
            !training.is_empty() && !validation.is_empty(),
            "{} training and {} validation images: both are needed",
            training.len(),
            validation.len()
        );
        let attack = match &recipe.attack {
            Some(text) => {
                let spec = PluginSpec::parse(text)?;
                Some((Plugin::find(&spec.name)?, spec))
            }
            None => None,
        };
        let trainer = Self {
            recipe,
            pipeline,
            trainee,
            trainable,
            attack,
            training,
            validation,
            threads,
        };
        trainer.attack_at(trainer.recipe.epsilon)?;
        Ok(trainer)
    }

    /// Name and number of parameters of what is trained.
    pub fn trainee(&self) -> (&str, usize) {
        (self.trainee.name(), self.trainee.info().parameters)
    }

    /// Trains from the folder's checkpoint, or from the start.
    ///
    /// # Errors
    /// Where a plugin or a file fails, or the checkpoint is of another recipe.
    pub fn run(&self, folder: &Folder, resume: bool, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut position = self.start(folder, resume)?;
        while position.epoch < self.recipe.epochs && !position.schedule.exhausted(&self.recipe.schedule) {
            if let Some(rate) = self.recipe.learning_rate_at(position.epoch) {
                position.schedule.learning_rate = rate;
            }
            if self.epoch(&mut position, folder, observer)? == Outcome::Interrupted {
                self.checkpoint(&position, folder)?;
                return Ok(Outcome::Interrupted);
            }
            self.finish_epoch(&mut position, folder, observer)?;
            self.checkpoint(&position, folder)?;
        }
        Ok(Outcome::Finished)
    }

    fn start(&self, folder: &Folder, resume: bool) -> Result<Position> {
        let recipe = hash(&toml::to_string(&self.recipe)?);
        let schedule = Schedule::new(self.recipe.learning_rate);
        let fresh = Position {
            epoch: 0,
            batch: 0,
            step: 0,
            schedule,
            sums: Sums::default(),
            recipe,
        };
        let Some(found) = folder.load()?.filter(|_| resume) else {
            return Ok(fresh);
        };
        ensure!(
            found.position.recipe == fresh.recipe,
            "the checkpoint is of another recipe: resume with the recipe it was started with, or train into another folder"
        );
        self.trainable.load_weights(&found.weights)?;
        self.trainable.load_state(&found.state)?;
        Ok(found.position)
    }

    fn checkpoint(&self, position: &Position, folder: &Folder) -> Result<()> {
        folder.save(position, &self.trainable.save_weights()?, &self.trainable.save_state()?)
    }

    fn epoch(&self, position: &mut Position, folder: &Folder, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut order: Vec<usize> = (0..self.training.len()).collect();
        order.shuffle(&mut keyed(&[self.recipe.seed, position.epoch as u64]));
        let batches: Vec<&[usize]> = order.chunks(self.recipe.batch_size).collect();
        while position.batch < batches.len() {
            self.step(&self.training.select(batches[position.batch]), position)?;
            position.batch += 1;
            position.step += 1;
            let mean = position.sums.loss / position.sums.images as f64;
            if !observer.step(position, batches.len(), mean) {
                return Ok(Outcome::Interrupted);
            }
            if position.step.is_multiple_of(self.recipe.checkpoint_steps.max(1)) {
                self.checkpoint(position, folder)?;
            }
        }
        Ok(Outcome::Finished)
    }

    fn finish_epoch(&self, position: &mut Position, folder: &Folder, observer: &mut dyn Observer) -> Result<()> {
        let measured = self.validate()?;
        let sums = std::mem::take(&mut position.sums);
        let images = self.validation.len() as f64;
        let learning_rate = position.schedule.learning_rate;
        let best = position
            .schedule
            .observe(position.epoch, measured.loss, &self.recipe.schedule);
        if best {
            let weights = self.trainable.save_weights()?;
            let weights = match self.recipe.half_precision {
                true => half::round(&weights)?,
                false => weights,
            };
            folder.write("weights.safetensors", &weights)?;
        }
        position.epoch += 1;
        position.batch = 0;
        observer.epoch(&EpochLog {
            epoch: position.epoch,
            step: position.step,
            learning_rate,
            epsilon: self.attack.as_ref().map(|_| self.recipe.epsilon_at(position.step)),
            train_loss: sums.loss / sums.images as f64,
            train_accuracy: sums.correct as f64 / sums.seen as f64,
            validation_loss: measured.loss,
            clean_accuracy: measured.correct_clean as f64 / images,
            robust_accuracy: self
                .attack
                .as_ref()
                .map(|_| measured.correct_adversarial as f64 / images),
            best,
            seconds: sums.seconds,
            images_per_second: sums.images as f64 / sums.seconds,
        })
    }

    /// One update on `batch`.
    fn step(&self, batch: &Dataset, position: &mut Position) -> Result<()> {
        let started = Instant::now();
        let seed = key(&[self.recipe.seed, position.step]);
        let clean = images(batch)?;
        let adversarial = match self.attack_at(self.recipe.epsilon_at(position.step))? {
            Some(attack) => Some(self.craft(&attack, batch, &clean, seed)?),
            None => None,
        };
        let joint = self.joint(batch, &clean, adversarial.as_ref());
        let (loss, correct) = self.update(&joint, seed)?;
        self.trainable.step(position.schedule.learning_rate)?;
        ensure!(
            loss.is_finite(),
            "the loss became {loss} at step {}: lower the learning rate",
            position.step
        );
        position.sums.loss += loss * batch.len() as f64;
        position.sums.images += batch.len();
        position.sums.correct += correct;
        position.sums.seen += joint.x.rows();
        position.sums.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Clean and adversarial images in one batch, so that batch norm sees one distribution: the one of evaluation.
    fn joint(&self, batch: &Dataset, clean: &Tensor, adversarial: Option<&Tensor>) -> Joint {
        let (with_clean, with_adversarial) = self.parts();
        let parts = [
            (with_clean, Some(clean), 0),
            (with_adversarial, adversarial, ADVERSARIAL_IDS),
        ];
        let mut joint = Joint {
            x: Tensor::zeros(&[&[0], &clean.shape[1..]].concat()),
            ..Joint::default()
        };
        for (weight, x, offset) in parts {
            // With lambda alone the loss is the reconstruction of the adversarial images.
            let wanted = weight > 0. || (self.recipe.lambda > 0. && offset > 0);
            let Some(x) = x.filter(|_| wanted) else { continue };
            joint.x.shape[0] += x.rows();
            joint.x.data.extend_from_slice(&x.data);
            joint.clean.extend_from_slice(&clean.data);
            joint.labels.extend_from_slice(&batch.labels);
            joint.ids.extend(batch.ids.iter().map(|id| id + offset));
            joint
                .weights
                .extend(std::iter::repeat_n(weight as f32 / batch.len() as f32, batch.len()));
        }
        joint
    }

    /// Weights of the clean and the adversarial loss.
    fn parts(&self) -> (f64, f64) {
        match self.attack {
            Some(_) => (self.recipe.clean_weight, self.recipe.adversarial_weight),
            None => (1., 0.),
        }
    }

    /// Forward and backward of a whole batch; gradients are added to the trainable's sums. Gives loss and correct count.
    fn update(&self, joint: &Joint, seed: u64) -> Result<(f64, usize)> {
        let frozen = Call::score(seed, &joint.ids).with_threads(self.threads);
        let train = frozen.with_flags(TRAIN | ACCUMULATE_PARAMS);
        let Some(purifier) = &self.pipeline.purifier else {
            let (logits, tape) = self.pipeline.classifier.forward_tape(&train, &joint.x)?;
            let (loss, cotangent) = joint.cross_entropy(&logits);
            tape.backward(&train, &cotangent)?;
            return Ok((loss, joint.correct(&logits)));
        };
        let (purified, tape) = purifier.forward_tape(&train, &joint.x)?;
        let (logits, behind) = self.pipeline.classifier.forward_tape(&frozen, &purified)?;
        let (mut loss, cotangent) = joint.cross_entropy(&logits);
        let mut cotangent = behind
            .backward(&frozen, &cotangent)?
            .context("the classifier gave no input gradient")?;
        if self.recipe.lambda > 0. {
            let clean = Tensor {
                shape: joint.x.shape.clone(),
                data: joint.clean.clone(),
            };
            let weight = (self.recipe.lambda / joint.x.rows() as f64) as f32;
            let (losses, more) = loss::reconstruction(&purified, &clean, weight);
            loss += losses.iter().map(|l| f64::from(*l * weight)).sum::<f64>();
            cotangent.add(&more);
        }
        tape.backward(&train, &cotangent)?;
        Ok((loss, joint.correct(&logits)))
    }

    /// The training loss on the validation images, on fresh examples at the full radius.
    fn validate(&self) -> Result<Measured> {
        let attack = self.attack_at(self.recipe.epsilon)?;
        let seed = key(&[self.recipe.seed, u64::MAX]);
        let (with_clean, with_adversarial) = self.parts();
        let measured = self.in_micro_batches(self.validation.len(), |indices| {
            let batch = self.validation.select(indices);
            let clean = images(&batch)?;
            let call = Call::score(seed, &batch.ids);
            let (clean_loss, correct_clean) = self.measure(&call, &clean, &clean, &batch.labels)?;
            let (adversarial_loss, correct_adversarial) = match &attack {
                Some(attack) => {
                    let x_adv = self.craft_chunk(attack, &batch.ids, &clean, &batch.labels, seed)?;
                    self.measure(&call, &x_adv, &clean, &batch.labels)?
                }
                None => (0., 0),
            };
            let loss = with_clean * clean_loss + with_adversarial * adversarial_loss;
            Ok(Measured {
                loss,
                correct_clean,
                correct_adversarial,
            })
        })?;
        Ok(Measured {
            loss: measured.iter().map(|m| m.loss).sum::<f64>() / self.validation.len() as f64,
            correct_clean: measured.iter().map(|m| m.correct_clean).sum(),
            correct_adversarial: measured.iter().map(|m| m.correct_adversarial).sum(),
        })
    }

    /// Summed loss and correct count in evaluation mode.
    fn measure(&self, call: &Call, x: &Tensor, clean: &Tensor, labels: &[u32]) -> Result<(f64, usize)> {
        let purified = match &self.pipeline.purifier {
            Some(purifier) => purifier.forward(call, x)?,
            None => x.clone(),
        };
        let logits = self.pipeline.classifier.forward(call, &purified)?;
        let mut losses = loss::cross_entropy(&logits, labels, 1.).0;
        if self.recipe.lambda > 0. {
            let more = loss::reconstruction(&purified, clean, 1.).0;
            losses
                .iter_mut()
                .zip(more)
                .for_each(|(loss, more)| *loss += self.recipe.lambda as f32 * more);
        }
        let correct = logits.argmax().iter().zip(labels).filter(|(a, b)| a == b).count();
        Ok((losses.iter().map(|l| f64::from(*l)).sum(), correct))
    }

    fn attack_at(&self, epsilon: f64) -> Result<Option<Attack>> {
        let Some((plugin, spec)) = &self.attack else {
            return Ok(None);
        };
        let mut config = spec.config.clone();
        config.insert("epsilon".into(), epsilon.into());
        Attack::construct(plugin, config).map(Some)
    }

    fn craft(&self, attack: &Attack, batch: &Dataset, clean: &Tensor, seed: u64) -> Result<Tensor> {
        let crafted = self.in_micro_batches(batch.len(), |indices| {
            let range = indices[0]..indices[0] + indices.len();
            self.craft_chunk(
                attack,
                &batch.ids[range.clone()],
                &clean.select(indices),
                &batch.labels[range],
                seed,
            )
        })?;
        let data = crafted.into_iter().flat_map(|t| t.data).collect();
        Ok(Tensor {
            shape: clean.shape.clone(),
            data,
        })
    }

    /// How crafting is spread.
    fn layout(&self) -> Layout {
        Layout::of(self.pipeline.models(), self.threads, None)
    }

    /// Runs `work` on micro-batches of `0..len`, one worker a thread; results in order.
    fn in_micro_batches<T: Send>(&self, len: usize, work: impl Fn(&[usize]) -> Result<T> + Sync) -> Result<Vec<T>> {
        let layout = self.layout();
        let indices: Vec<usize> = (0..len).collect();
        let results = Mutex::new(BTreeMap::new());
        workers::for_each_batch(layout, &indices, |batch| {
            let result = work(batch)?;
            results
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(batch[0], result);
            Ok(())
        })?;
        Ok(results
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .into_values()
            .collect())
    }

    /// Examples for training run all their steps: an early stop would leave them at the decision boundary.
    fn craft_chunk(&self, attack: &Attack, ids: &[u64], x: &Tensor, labels: &[u32], seed: u64) -> Result<Tensor> {
        let rules = Rules {
            target: self.pipeline.clone(),
            labelled: self.pipeline.clone(),
            access: Access {
                target: Target::Pipeline,
                gradients: true,
                logits: true,
                labels: true,
                query_limit: None,
            },
            seed,
            eot: 1,
            early_stop: false,
            call_threads: self.layout().call_threads,
            meter: Arc::default(),
            cancel: Cancel::default(),
        };
        let (oracle, state) = Oracle::boxed(rules, Ticker::silent());
        let perturbed = attack.perturb(&Call::craft(seed, ids), &oracle, x, labels);
        match state.first_error() {
            Some(error) => Err(error.into()),
            None => Ok(perturbed?.x_adv),
        }
    }
}

/// A batch of the update.
#[derive(Default)]
struct Joint {
    x: Tensor,
    clean: Vec<f32>,
    labels: Vec<u32>,
    ids: Vec<u64>,
    weights: Vec<f32>,
}

impl Joint {
    /// Weighted sum of the losses and its cotangent.
    fn cross_entropy(&self, logits: &Tensor) -> (f64, Tensor) {
        let (losses, mut cotangent) = loss::cross_entropy(logits, &self.labels, 1.);
        let classes = logits.row_len();
        for (row, weight) in cotangent.data.chunks_mut(classes).zip(&self.weights) {
            row.iter_mut().for_each(|g| *g *= weight);
        }
        (
            losses.iter().zip(&self.weights).map(|(l, w)| f64::from(l * w)).sum(),
            cotangent,
        )
    }

    fn correct(&self, logits: &Tensor) -> usize {
        logits.argmax().iter().zip(&self.labels).filter(|(a, b)| a == b).count()
    }
}

/// A model from `plugin.so@weights:settings`. What is trained starts from a seeded initialisation unless weights are named.
fn construct(text: &str, initialise: Option<u64>) -> Result<Model> {
    use advae_abi::info::{Construct, WeightSource};
    let spec = PluginSpec::parse(text)?;
    let weights = match (spec.weights, initialise) {
        (WeightSource::Default, Some(seed)) => WeightSource::Init(seed),
        (named, _) => named,
    };
    let request = Construct {
        config: spec.config,
        weights,
        device: "cpu".into(),
        backward: None,
    };
    Model::construct(&Plugin::find(&spec.name)?, &request)
}

fn images(batch: &Dataset) -> Result<Tensor> {
    let shape = [&[batch.len()], batch.shape.as_slice()].concat();
    Ok(Tensor::new(shape, batch.images.clone())?)
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// A seed from several words.
fn key(words: &[u64]) -> u64 {
    let mut hasher = Sha256::new();
    words.iter().for_each(|word| hasher.update(word.to_le_bytes()));
    u64::from_le_bytes(std::array::from_fn(|i| hasher.clone().finalize()[i]))
}

fn keyed(words: &[u64]) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(key(words))
}
