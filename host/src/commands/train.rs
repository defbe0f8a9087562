//! `advae-host train`: clean training of a classifier; adversarial training of a purifier (Eq. 7) or a classifier.

use crate::experiment::threads as all_threads;
use crate::terminal::cancel::Cancel;
use crate::terminal::exit::EXIT_CANCELLED;
use crate::training::{EpochLog, Folder, Observer, Outcome, Position, Recipe, Sums, Trainer};
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Train a classifier or a purifier.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Recipe (TOML); the flags below win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Classifier: what is trained, or what stands frozen behind the purifier; several for a purifier that serves them all
    #[arg(long, value_name = "PLUGIN")]
    pub classifier: Vec<String>,
    /// Purifier to train in front of the frozen classifier.
    #[arg(long, value_name = "PLUGIN")]
    pub purifier: Option<String>,
    /// Attack that crafts the examples; none for clean training.
    #[arg(long, value_name = "PLUGIN[:KEY=VALUE,..]")]
    pub attack: Option<String>,
    /// Radius of the attack's ball.
    #[arg(long)]
    pub epsilon: Option<f64>,
    /// Dataset to train on.
    #[arg(long)]
    pub dataset: Option<String>,
    /// Folder of the datasets [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Largest number of epochs.
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Images a step.
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Adam's rate at the start.
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Use only that many training images.
    #[arg(long)]
    pub samples: Option<usize>,
    /// Seed of initialisation, order and random starts.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Threads; all cores by default.
    #[arg(long)]
    pub threads: Option<usize>,
    /// Folder for weights, log and checkpoints.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Go on from the folder's checkpoint.
    #[arg(long)]
    pub resume: bool,
}

impl TrainArgs {
    fn recipe(&self) -> Result<Recipe> {
        let mut recipe = self
            .config
            .as_deref()
            .map(Recipe::read)
            .transpose()?
            .unwrap_or_default();
        let set = |field: &mut String, flag: &Option<String>| flag.iter().for_each(|value| *field = value.clone());
        if !self.classifier.is_empty() {
            recipe.classifier = self.classifier.clone();
        }
        set(&mut recipe.dataset, &self.dataset);
        recipe.purifier = self.purifier.clone().or(recipe.purifier);
        recipe.attack = self.attack.clone().or(recipe.attack);
        recipe.epsilon = self.epsilon.unwrap_or(recipe.epsilon);
        recipe.epochs = self.epochs.unwrap_or(recipe.epochs);
        recipe.batch_size = self.batch_size.unwrap_or(recipe.batch_size);
        recipe.learning_rate = self.learning_rate.unwrap_or(recipe.learning_rate);
        recipe.samples = self.samples.unwrap_or(recipe.samples);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.check()?;
        Ok(recipe)
    }
}

/// Trains until Ctrl-C or the end. Returns the exit code.
///
/// # Errors
/// Where recipe, data, plugins or files do not allow it.
pub fn run(args: &TrainArgs) -> Result<i32> {
    Ok(match train(args, &Cancel::on_ctrl_c()?)? {
        Outcome::Finished => 0,
        Outcome::Interrupted => EXIT_CANCELLED,
    })
}

/// Runs the subcommand, on a thread with a deep stack. `cancel` is looked at after every step.
fn train(args: &TrainArgs, cancel: &Cancel) -> Result<Outcome> {
    let recipe = args.recipe()?;
    let folder = Folder::open(&args.out)?;
    ensure!(
        args.resume || !folder.file("checkpoint.json").exists(),
        "'{}' holds a run already: add --resume to go on with it, or choose another --out",
        args.out.display()
    );
    let data = advae_data::load(&recipe.dataset, args.data_dir.as_deref())?;
    let (mut training, mut validation) = data.split_last(recipe.validation);
    if recipe.samples > 0 {
        training = training.take(recipe.samples);
    }
    if recipe.validation_samples > 0 {
        validation = validation.take(recipe.validation_samples);
    }
    let threads = all_threads(args.threads);
    folder.write("recipe.toml", toml::to_string(&recipe)?.as_bytes())?;
    let epochs = recipe.epochs;
    let trainer = Trainer::new(recipe, training, validation, threads)?;
    let (name, parameters) = trainer.trainee();
    println!("training {name} ({parameters} parameters) into {}", args.out.display());
    let mut console = Console::open(&folder, epochs, args.resume, cancel)?;
    let outcome = trainer.run(&folder, args.resume, &mut console)?;
    match outcome {
        Outcome::Finished => println!("done: {}", folder.file("weights.safetensors").display()),
        Outcome::Interrupted => println!("interrupted: the same command with --resume goes on from here"),
    }
    Ok(outcome)
}

/// Progress on a terminal, a line an epoch everywhere, and the JSONL log.
struct Console<'a> {
    log: std::fs::File,
    bar: ProgressBar,
    epochs: usize,
    /// What the last epoch came to, as the bar shows it.
    robust: String,
    cancel: &'a Cancel,
}

impl<'a> Console<'a> {
    fn open(folder: &Folder, epochs: usize, resume: bool, cancel: &'a Cancel) -> Result<Self> {
        let path = folder.file("log.jsonl");
        let mut options = std::fs::OpenOptions::new();
        options.create(true).write(true).append(resume).truncate(!resume);
        let log = options
            .open(&path)
            .with_context(|| format!("cannot write '{}'", path.display()))?;
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}")?;
        bar.set_style(style.progress_chars("=> "));
        Ok(Self {
            log,
            bar,
            epochs,
            robust: String::new(),
            cancel,
        })
    }
}

/// Time that the steps still to come will take at the pace of this epoch's, up to the last epoch.
fn time_left(position: &Position, steps: usize, epochs: usize) -> Duration {
    let done = position.batch.max(1) as f64;
    let to_come = ((epochs - position.epoch.min(epochs)) * steps).saturating_sub(position.batch);
    Duration::from_secs_f64(position.sums.seconds / done * to_come as f64)
}

impl Observer for Console<'_> {
    fn crafted(&mut self, done: usize, of: usize) -> bool {
        self.bar.set_prefix("crafting the examples");
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
        !self.cancel.is_cancelled()
    }

    fn step(&mut self, position: &Position, steps: usize, loss: f64) -> bool {
        if self.bar.length() != Some(steps as u64) || self.bar.position() > position.batch as u64 {
            self.bar.reset();
            self.bar.set_length(steps as u64);
        }
        let Sums { images, seconds, .. } = position.sums;
        let (rate, left) = (images as f64 / seconds, time_left(position, steps, self.epochs));
        let (epoch, robust) = (position.epoch + 1, &self.robust);
        self.bar.set_prefix(format!("epoch {epoch}/{}", self.epochs));
        self.bar.set_message(format!(
            "loss {loss:.4}{robust}, {rate:.0} images/s, {} left at the most",
            HumanDuration(left)
        ));
        self.bar.set_position(position.batch as u64);
        !self.cancel.is_cancelled()
    }

    fn epoch(&mut self, log: &EpochLog) -> Result<()> {
        writeln!(self.log, "{}", serde_json::to_string(log)?).context("cannot write the log")?;
        let robust = log
            .robust_accuracy
            .map(|r| format!(", robust {:.2} %", 100. * r))
            .unwrap_or_default();
        self.robust = robust.clone();
        let line = format!(
            "epoch {:>3}: loss {:.4}, validation {:.4}, clean {:.2} %{robust}, {:.0} images/s{}",
            log.epoch,
            log.train_loss,
            log.validation_loss,
            100. * log.clean_accuracy,
            log.images_per_second,
            if log.best { " *" } else { "" }
        );
        self.bar.suspend(|| println!("{line}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::training::Schedule;

    #[test]
    fn the_time_left_counts_the_epochs_to_come() {
        let position = Position {
            epoch: 1,
            batch: 5,
            step: 15,
            schedule: Schedule::new(0.1),
            sums: Sums {
                seconds: 10.,
                ..Sums::default()
            },
            recipe: String::new(),
        };
        // Two seconds a step: five are to come in this epoch of ten, and ten in the last.
        assert_eq!(time_left(&position, 10, 3), Duration::from_secs(30));
    }
}
