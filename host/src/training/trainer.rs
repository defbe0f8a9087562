//! The training loop: craft on the pipeline as it stands (eval mode), then one whole-batch update (train mode).

use super::averaging::Average;
use super::craft::{Attacker, Crafter, Examples, Told, Wanted, images};
use super::folder::{Folder, RECIPE, WEIGHTS};
use super::half;
use super::key::{key, keyed};
use super::objective::{Joint, Loss, Measured, Terms};
use super::position::{Position, Sums};
use super::recipe::{CraftOn, Keep, Objective, Recipe, Statistics};
use super::schedule::Schedule;
use crate::experiment::{self as workers, Layout};
use crate::plugin::PluginSpec;
use crate::terminal::cancel::Cancel;
use crate::wire::construct;
use crate::wire::model::{Model, Trainable};
use crate::wire::pipeline::Pipeline;
use crate::wire::tensor::{Call, Tensor};
use advae_abi::flags::{ACCUMULATE_PARAMS, TRAIN};
use advae_abi::info::{Kind, TrainSettings};
use advae_abi::{AbiError, ErrorCode};
use advae_data::Dataset;
use anyhow::{Context, Result, ensure};
use rand::seq::SliceRandom;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::time::Instant;

/// One run.
pub struct Trainer {
    recipe: Recipe,
    purifier: Option<Model>,
    classifiers: Vec<Model>,
    /// What the examples are crafted on, one a classifier.
    targets: Vec<Pipeline>,
    trainee: Model,
    trainable: Trainable,
    training: Dataset,
    validation: Dataset,
    threads: usize,
    cancel: Cancel,
}

/// An epoch's line in the log.
#[derive(Clone, Debug, Serialize)]
pub struct EpochLog {
    /// Epoch, from 1.
    pub epoch: usize,
    /// Largest number of epochs: it grows where a run is resumed with more.
    pub epochs: usize,
    /// Steps taken so far.
    pub step: u64,
    /// Learning rate of the epoch.
    pub learning_rate: f64,
    /// Radius at its end; absent for clean training and for attacks without a budget.
    pub epsilon: Option<f64>,
    /// Mean loss over its batches.
    pub train_loss: f64,
    /// Share correct among the images trained on, in train mode; absent where an objective of the plugin's own asks no classifier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_accuracy: Option<f64>,
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
    /// Means of what an objective of the plugin's own measured.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub own: BTreeMap<String, f64>,
}

/// What the loop tells its caller.
pub trait Observer {
    /// While examples are crafted before training: how many of how many there are. `false` stops; what there is stays.
    fn crafted(&mut self, done: usize, of: usize) -> bool;
    /// After every step: position, steps of the epoch, mean loss so far. `false` stops after a checkpoint.
    fn step(&mut self, position: &Position, steps: usize, loss: f64) -> bool;
    /// After every epoch.
    fn epoch(&mut self, log: &EpochLog) -> Result<()>;
    /// Something the user should know.
    fn note(&mut self, text: &str);
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs, or early stop.
    Finished,
    /// The run was cancelled, or the observer asked to stop; the checkpoint is written.
    Interrupted,
    /// The run had ended before.
    NothingLeft {
        /// Epochs that it trained.
        epochs: usize,
        /// Whether it stopped early, so that more epochs change nothing.
        early: bool,
    },
}

/// What changes while a run goes on, beside the plugin's weights and moments.
struct Run {
    position: Position,
    average: Average,
    /// Step of the checkpoint in the folder.
    saved: Option<u64>,
}

/// Examples that are crafted once: for training and for validation, one set a classifier.
struct Fixed {
    training: Vec<Examples>,
    validation: Vec<Examples>,
}

impl Trainer {
    /// Loads the plugins of a recipe.
    ///
    /// # Errors
    /// If the recipe makes no sense, a plugin cannot be loaded or has nothing to train, or images, labels and networks do not fit.
    pub fn new(recipe: Recipe, training: Dataset, validation: Dataset, threads: usize) -> Result<Self> {
        let recipe = Recipe {
            epsilon: recipe.epsilon.or(training.conventions().linf),
            ..recipe
        };
        recipe.check()?;
        check_data(&recipe, &training, &validation)?;
        let purifier = (recipe.purifier.as_deref())
            .map(|spec| construct(spec, Kind::Purifier, Some(recipe.seed)))
            .transpose()?;
        let initialise = purifier.is_none().then_some(recipe.seed);
        let classifiers = recipe
            .classifier
            .iter()
            .map(|spec| construct(spec, Kind::Classifier, initialise));
        let classifiers = classifiers.collect::<Result<Vec<_>>>()?;
        for classifier in &classifiers {
            let pipeline = Pipeline::new(purifier.clone(), classifier.clone());
            pipeline.check()?;
            check_fit(&recipe, classifier, &training)?;
        }
        let trainee = purifier.as_ref().unwrap_or(&classifiers[0]).clone();
        let settings = TrainSettings {
            options: recipe.optimiser_options(),
            own: recipe.own_settings(),
            seed: recipe.seed,
            ..TrainSettings::adam()
        };
        let trainable = trainee.trainable(&settings)?;
        let attacked = match recipe.craft_on {
            CraftOn::Pipeline => &purifier,
            CraftOn::Classifier => &None,
        };
        let targets = classifiers
            .iter()
            .map(|classifier| Pipeline::new(attacked.clone(), classifier.clone()));
        let trainer = Self {
            targets: targets.collect(),
            recipe,
            purifier,
            classifiers,
            trainee,
            trainable,
            training,
            validation,
            threads,
            cancel: Cancel::default(),
        };
        // Whatever does not load must say so now, not hours later.
        for text in trainer.recipe.attacks() {
            trainer.attacker(Some(text))?;
        }
        trainer.validation_attacker()?;
        Ok(trainer)
    }

    /// The same, stopped by `cancel`: at the next step, within an attack, or within validation. A step that it interrupts is not
    /// counted, and is taken again when the run is resumed.
    pub fn with_cancel(self, cancel: &Cancel) -> Self {
        Self {
            cancel: cancel.clone(),
            ..self
        }
    }

    /// Name and number of parameters of what is trained.
    pub fn trainee(&self) -> (&str, usize) {
        (self.trainee.name(), self.trainee.info().parameters)
    }

    /// Trains from the folder's checkpoint, or from the start. Nothing is written before everything is checked; what is in the folder
    /// stays if a plugin fails.
    ///
    /// # Errors
    /// If a plugin or a file fails, the checkpoint is damaged or of another recipe, or the folder holds what would be overwritten.
    pub fn run(&self, folder: &Folder, resume: bool, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut run = self.start(folder, resume)?;
        let early = self.recipe.ends_early(&run.position.schedule);
        if early || run.position.epoch >= self.recipe.epochs {
            let epochs = run.position.epoch;
            return Ok(Outcome::NothingLeft { epochs, early });
        }
        self.try_disk(&run, folder)?;
        let outcome = match self.epochs(&mut run, folder, observer) {
            Err(error) if is_cancelled(&error) => Outcome::Interrupted,
            ended => ended.with_context(|| stopped_at(&run))?,
        };
        if outcome == Outcome::Interrupted {
            self.checkpoint(&mut run, folder)?;
        }
        Ok(outcome)
    }

    /// The epochs that are left.
    fn epochs(&self, run: &mut Run, folder: &Folder, observer: &mut dyn Observer) -> Result<Outcome> {
        let Some(fixed) = self.fixed(folder, observer)? else {
            return Ok(Outcome::Interrupted);
        };
        while run.position.epoch < self.recipe.epochs && !self.recipe.ends_early(&run.position.schedule) {
            if self.epoch(run, &fixed, folder, observer)? == Outcome::Interrupted {
                return Ok(Outcome::Interrupted);
            }
            self.finish_epoch(run, &fixed, folder, observer)?;
            self.checkpoint(run, folder)?;
        }
        Ok(Outcome::Finished)
    }

    fn start(&self, folder: &Folder, resume: bool) -> Result<Run> {
        folder.check(resume)?;
        let recipe = self.recipe.to_toml()?;
        let Some(found) = folder.load()? else {
            folder.remove_strays()?;
            let schedule = Schedule::new(self.recipe.learning_rate);
            return Ok(Run {
                position: Position {
                    epoch: 0,
                    batch: 0,
                    step: 0,
                    schedule,
                    sums: Sums::default(),
                    recipe,
                },
                average: Average::default(),
                saved: None,
            });
        };
        self.recipe.check_resumes(&found.position.recipe)?;
        self.trainable.load_weights(&found.weights)?;
        self.trainable.load_state(&found.state)?;
        folder.remove_strays()?;
        Ok(Run {
            saved: Some(found.position.step),
            position: Position {
                recipe,
                ..found.position
            },
            average: Average { blob: found.average },
        })
    }

    /// Tries the disk with as much as a checkpoint will take: the old one stays until the new one is whole.
    fn try_disk(&self, run: &Run, folder: &Folder) -> Result<()> {
        let weights = self.trainable.save_weights()?.len();
        let mean = if self.recipe.weight_averaging > 0. { weights } else { 0 };
        folder.try_disk(weights + mean + self.trainable.save_state()?.len() + run.position.recipe.len())
    }

    fn checkpoint(&self, run: &mut Run, folder: &Folder) -> Result<()> {
        let (weights, state) = (self.trainable.save_weights()?, self.trainable.save_state()?);
        folder.save(&run.position, &weights, &state, &run.average.blob)?;
        run.saved = Some(run.position.step);
        // It says something else where the run is new, or is resumed with more epochs; otherwise it stays, with its comments.
        let recipe = &run.position.recipe;
        match Recipe::read(&folder.file(RECIPE)).and_then(|written| written.to_toml()) {
            Ok(written) if written == *recipe => Ok(()),
            _ => folder.write(RECIPE, recipe.as_bytes()),
        }
    }

    /// The examples that are crafted once; absent where the observer stopped it. Empty where all are crafted on the way.
    fn fixed(&self, folder: &Folder, observer: &mut dyn Observer) -> Result<Option<Fixed>> {
        let mut fixed = Fixed {
            training: vec![],
            validation: vec![],
        };
        if self.recipe.craft_on == CraftOn::Pipeline {
            return Ok(Some(fixed));
        }
        let (Some(attack), Some(check)) = (self.attacker_of(0)?, self.validation_attacker()?) else {
            return Ok(Some(fixed));
        };
        let sets = [
            ("training", &self.training, attack.at(1.)?, &mut fixed.training),
            ("validation", &self.validation, check.at(1.)?, &mut fixed.validation),
        ];
        let seed = key(&[self.recipe.seed, u64::MAX - 1]);
        // A longer run uses the same examples.
        let any_length = Recipe {
            epochs: 0,
            ..self.recipe.clone()
        };
        let recipe = any_length.to_toml()?;
        let short = &hash(&recipe)[..12];
        let all = self.classifiers.len() * (self.training.len() + self.validation.len());
        let mut before = 0;
        for (set, data, attack, made) in sets {
            for (i, target) in self.targets.iter().enumerate() {
                let crafter = self.crafter(target, seed);
                let name = &format!("adversarial-{short}-{set}-{i}.f32");
                let told = |told| match told {
                    Told::Made(done) => observer.crafted(before + done, all) && !self.cancel.is_cancelled(),
                    Told::Damaged(from) => {
                        let path = folder.file(name).display().to_string();
                        observer.note(&format!(
                            "'{path}' is damaged, or of other images, from image {from} on: these are crafted again"
                        ));
                        true
                    }
                };
                let craft = |batch: &Dataset| crafter.craft(&attack, batch);
                let wanted = Wanted {
                    name,
                    recipe: &recipe,
                    data,
                };
                let Some(examples) = Examples::make(folder, &wanted, craft, told)? else {
                    return Ok(None);
                };
                made.push(examples);
                before += data.len();
            }
        }
        Ok(Some(fixed))
    }

    fn crafter<'a>(&'a self, target: &'a Pipeline, seed: u64) -> Crafter<'a> {
        Crafter {
            target,
            label: self.recipe.label,
            statistics: self.recipe.statistics,
            threads: self.threads,
            seed,
            cancel: &self.cancel,
        }
    }

    fn attacker_of(&self, epoch: usize) -> Result<Option<Attacker>> {
        self.attacker(self.recipe.attack_of(epoch))
    }

    fn validation_attacker(&self) -> Result<Option<Attacker>> {
        self.attacker(self.recipe.validation_attack())
    }

    fn attacker(&self, text: Option<&str>) -> Result<Option<Attacker>> {
        text.map(|text| Attacker::new(text, self.recipe.epsilon)).transpose()
    }

    fn epoch(&self, run: &mut Run, fixed: &Fixed, folder: &Folder, observer: &mut dyn Observer) -> Result<Outcome> {
        let mut order: Vec<usize> = (0..self.training.len()).collect();
        order.shuffle(&mut keyed(&[self.recipe.seed, run.position.epoch as u64]));
        let batches: Vec<&[usize]> = order.chunks(self.recipe.batch_size).collect();
        let attacker = self.attacker_of(run.position.epoch)?;
        while run.position.batch < batches.len() {
            let part = run.position.batch as f64 / batches.len() as f64;
            if let Some(rate) = self.recipe.learning_rate_at(run.position.epoch, part) {
                run.position.schedule.learning_rate = rate;
            }
            self.step(batches[run.position.batch], attacker.as_ref(), fixed, run)?;
            run.position.batch += 1;
            run.position.step += 1;
            let mean = run.position.sums.loss / run.position.sums.images as f64;
            if !observer.step(&run.position, batches.len(), mean) || self.cancel.is_cancelled() {
                return Ok(Outcome::Interrupted);
            }
            let due = run.position.step.is_multiple_of(self.recipe.checkpoint_steps.max(1));
            // The first step tells whether the plugins work together; from then on the folder holds a run.
            if due || run.saved.is_none() {
                self.checkpoint(run, folder)?;
            }
        }
        Ok(Outcome::Finished)
    }

    fn finish_epoch(&self, run: &mut Run, fixed: &Fixed, folder: &Folder, observer: &mut dyn Observer) -> Result<()> {
        let ramp = self.recipe.ramp(run.position.step);
        let attack = self.attacker_of(run.position.epoch)?.map(|attacker| attacker.at(ramp));
        let epsilon = attack.transpose()?.and_then(|attack| attack.limits.epsilon);
        let (measured, weights) = self.validate(run, fixed)?;
        let loss = measured.loss();
        ensure!(
            loss.is_finite(),
            "the validation loss became {loss}: lower the learning rate"
        );
        let sums = std::mem::take(&mut run.position.sums);
        let learning_rate = run.position.schedule.learning_rate;
        let best = (run.position.schedule).observe(run.position.epoch, loss, &self.recipe.schedule);
        if best || self.recipe.keep == Keep::Last {
            let weights = match self.recipe.half_precision {
                true => half::round(&weights)?,
                false => weights,
            };
            folder.write(WEIGHTS, &weights)?;
        }
        run.position.epoch += 1;
        run.position.batch = 0;
        observer.epoch(&EpochLog {
            epoch: run.position.epoch,
            epochs: self.recipe.epochs,
            step: run.position.step,
            learning_rate,
            epsilon,
            train_loss: sums.loss / sums.images as f64,
            train_accuracy: (sums.seen > 0).then(|| sums.correct as f64 / sums.seen as f64),
            validation_loss: loss,
            clean_accuracy: measured.clean.share().unwrap_or(0.),
            robust_accuracy: measured.adversarial.share(),
            best,
            seconds: sums.seconds,
            images_per_second: sums.images as f64 / sums.seconds,
            own: (sums.own.into_iter())
                .map(|(name, total)| (name, total.mean()))
                .collect(),
        })
    }

    /// One update on the images at `indices`.
    fn step(&self, indices: &[usize], attacker: Option<&Attacker>, fixed: &Fixed, run: &mut Run) -> Result<()> {
        let started = Instant::now();
        let seed = key(&[self.recipe.seed, run.position.step]);
        let batch = self.training.select(indices);
        let batch = (self.recipe.augmentation).apply(batch, self.recipe.seed, run.position.epoch);
        let loss = self.loss();
        let adversarial = match attacker {
            _ if !loss.terms.needs()[1] => vec![],
            None => vec![],
            Some(_) if !fixed.training.is_empty() => chosen(&fixed.training, indices, batch.shape),
            Some(attacker) => {
                let attack = attacker.at(self.recipe.ramp(run.position.step))?;
                let craft = |target| self.crafter(target, seed).craft(&attack, &batch);
                self.targets.iter().map(craft).collect::<Result<_>>()?
            }
        };
        let learning_rate = run.position.schedule.learning_rate;
        let (clean, sums) = (images(&batch)?, &mut run.position.sums);
        let mean = if self.recipe.objective == Objective::Own {
            let call = Call::craft(seed, &batch.ids)
                .with_threads(self.threads)
                .with_flags(TRAIN | ACCUMULATE_PARAMS);
            let own = (self.trainable).learn(&call, &clean, adversarial.first(), &batch.labels, learning_rate)?;
            for (name, value) in &own {
                let total = sums.own.entry(name.clone()).or_default();
                total.sum += value * batch.len() as f64;
                total.images += batch.len();
            }
            own["loss"]
        } else {
            let joint = Joint::new(loss.terms.needs(), clean, &batch.ids, &batch.labels, &adversarial);
            let measured = loss.update(&joint, seed, self.threads)?;
            self.trainable.step(learning_rate)?;
            for count in [measured.clean, measured.adversarial] {
                sums.correct += count.correct;
                sums.seen += count.of;
            }
            measured.loss()
        };
        ensure!(
            mean.is_finite(),
            "the loss became {mean} at step {}: lower the learning rate",
            run.position.step
        );
        if self.recipe.weight_averaging > 0. {
            let weights = self.trainable.save_weights()?;
            run.average
                .add(weights, run.position.step, self.recipe.weight_averaging)?;
        }
        run.position.sums.loss += mean * batch.len() as f64;
        run.position.sums.images += batch.len();
        run.position.sums.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    fn loss(&self) -> Loss<'_> {
        Loss {
            terms: Terms::new(&self.recipe),
            purifier: self.purifier.as_ref(),
            classifiers: self.classifiers.iter().collect(),
        }
    }

    /// The training loss on the validation images, on fresh examples at the full radius, of the weights that would come out;
    /// and those weights.
    fn validate(&self, run: &Run, fixed: &Fixed) -> Result<(Measured, Vec<u8>)> {
        let last = self.trainable.save_weights()?;
        if self.recipe.weight_averaging == 0. {
            return Ok((self.measure(fixed)?, last));
        }
        let mean = run.average.blob.clone();
        self.trainable.load_weights(&mean)?;
        let measured = self.measure(fixed);
        self.trainable.load_weights(&last)?;
        Ok((measured?, mean))
    }

    fn measure(&self, fixed: &Fixed) -> Result<Measured> {
        let attack = self
            .validation_attacker()?
            .map(|attacker| attacker.at(1.))
            .transpose()?;
        let seed = key(&[self.recipe.seed, u64::MAX]);
        let models = self.purifier.iter().chain(&self.classifiers);
        let layout = Layout::of(models, self.threads, None);
        let all: Vec<usize> = (0..self.validation.len()).collect();
        let batches = layout.cut(&all);
        let loss = || self.loss();
        let parts = workers::for_each(layout.workers, batches.len(), |i| {
            self.cancel.check()?;
            let batch = self.validation.select(batches[i]);
            let adversarial = match &attack {
                None => vec![],
                Some(_) if !fixed.validation.is_empty() => chosen(&fixed.validation, batches[i], batch.shape),
                Some(attack) => {
                    let crafter = |target| Crafter {
                        statistics: Statistics::Running,
                        ..self.crafter(target, seed)
                    };
                    let craft = |target| crafter(target).craft_part(attack, &batch, layout.call_threads);
                    self.targets.iter().map(craft).collect::<Result<_>>()?
                }
            };
            let joint = Joint::new([true, true], images(&batch)?, &batch.ids, &batch.labels, &adversarial);
            loss().measure(&joint, seed, layout.call_threads)
        })?;
        let mut whole = Measured::default();
        parts.into_iter().for_each(|part| whole.append(part));
        Ok(whole)
    }
}

/// Where a run stopped by an error, and what is left of it.
fn stopped_at(run: &Run) -> String {
    let Position { epoch, step, .. } = run.position;
    let kept = match run.saved {
        Some(saved) => format!("the checkpoint of step {saved} is kept"),
        None => "there is no checkpoint yet".into(),
    };
    format!("training stopped in epoch {} after step {step}, {kept}", epoch + 1)
}

fn is_cancelled(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<AbiError>()
        .is_some_and(|error| error.is(ErrorCode::Cancelled))
}

fn check_data(recipe: &Recipe, training: &Dataset, validation: &Dataset) -> Result<()> {
    ensure!(
        !training.is_empty() && !validation.is_empty(),
        "{} training and {} validation images: both are needed: validation is {}, set it to a share such as 0.1, or take more images",
        training.len(),
        validation.len(),
        recipe.validation
    );
    for data in [training, validation] {
        let label = data.labels.iter().find(|label| **label as usize >= data.classes);
        ensure!(
            label.is_none(),
            "dataset '{}' has the label {}, expected 0..{}",
            data.name,
            label.copied().unwrap_or_default(),
            data.classes
        );
    }
    let kinds = [training, validation].map(|data| (data.shape, data.classes));
    ensure!(
        kinds[0] == kinds[1],
        "training images are {:?} of {} classes, validation images {:?} of {}: choose two sets that fit",
        kinds[0].0,
        kinds[0].1,
        kinds[1].0,
        kinds[1].1
    );
    recipe.augmentation.check(training.shape)
}

/// Refuses a classifier that the images and labels do not fit, or that lacks what its loss compares.
fn check_fit(recipe: &Recipe, classifier: &Model, data: &Dataset) -> Result<()> {
    let info = classifier.info();
    ensure!(
        data.fits(info.input, info.classes),
        "classifier '{}' takes images {:?} of {} classes, dataset '{}' has {:?} of {}: choose two that fit",
        classifier.name(),
        info.input.unwrap_or_default(),
        info.classes.unwrap_or_default(),
        data.name,
        data.shape,
        data.classes
    );
    if recipe.objective == Objective::Features {
        let [c, h, w] = data.shape;
        let features = classifier.features(&Call::score(0, &[0, 1]), &Tensor::zeros(&[2, c, h, w]));
        features.context("objective = \"features\" needs a classifier that exposes features: take another, or objective = \"logits\"")?;
    }
    Ok(())
}

/// The fixed examples at these positions, a tensor a classifier.
fn chosen(examples: &[Examples], indices: &[usize], shape: [usize; 3]) -> Vec<Tensor> {
    examples.iter().map(|e| e.select(indices, shape)).collect()
}

/// A model from `plugin.so@weights:settings`. What is trained starts from a seeded initialisation unless weights are named.
fn construct(text: &str, kind: Kind, initialise: Option<u64>) -> Result<Model> {
    let wanted = construct::Wanted {
        initialise,
        ..construct::Wanted::on_cpu(kind)
    };
    Ok(construct::construct(&PluginSpec::parse(text)?, &wanted)?.model)
}

fn hash(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}
