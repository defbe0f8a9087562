//! `advae-host train`: clean training of a classifier; adversarial training of a purifier (Eq. 7) or a classifier.

use crate::experiment::threads as all_threads;
use crate::isolation::IsolationArgs;
use crate::plugin::number;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::exit::EXIT_CANCELLED;
use crate::terminal::pace::Pace;
use crate::training::{EpochLog, Folder, LOG, Observer, Outcome, Position, Recipe, Sums, Trainer, WEIGHTS};
use advae_data::Dataset;
use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The longest time left that is shown: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Train a classifier or a purifier.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Recipe (TOML); the flags below override it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Classifier to train, or frozen classifier behind the purifier; repeatable, to train one purifier for several
    #[arg(long, value_name = "PLUGIN")]
    pub classifier: Vec<String>,
    /// Purifier to train in front of the frozen classifier
    #[arg(long, value_name = "PLUGIN")]
    pub purifier: Option<String>,
    /// Attack that crafts the adversarial examples; without one, training is clean
    #[arg(long, value_name = "PLUGIN[:KEY=VALUE,..]")]
    pub attack: Option<String>,
    /// Radius of the attack's ball: 0.3, or a fraction such as 8/255
    #[arg(long, value_parser = number)]
    pub epsilon: Option<f64>,
    /// Dataset to train on: a name, or a path as for eval
    #[arg(long, value_name = "NAME|PATH")]
    pub dataset: Option<String>,
    /// Folder of the datasets [default: $ADVAE_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Maximum number of epochs
    #[arg(long)]
    pub epochs: Option<usize>,
    /// Images per step
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Initial learning rate of Adam
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Use only this number of training images
    #[arg(long)]
    pub samples: Option<usize>,
    /// Seed of the initialisation, the order of images and random starts
    #[arg(long)]
    pub seed: Option<u64>,
    /// Number of threads; all cores by default
    #[arg(long)]
    pub threads: Option<usize>,
    /// Folder for weights, log and checkpoints
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Continue from the checkpoint in the folder of --out
    #[arg(long)]
    pub resume: bool,
    /// How plugins are kept apart from the host.
    #[command(flatten)]
    pub isolation: IsolationArgs,
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
        recipe.epsilon = self.epsilon.or(recipe.epsilon);
        recipe.epochs = self.epochs.unwrap_or(recipe.epochs);
        recipe.batch_size = self.batch_size.unwrap_or(recipe.batch_size);
        recipe.learning_rate = self.learning_rate.unwrap_or(recipe.learning_rate);
        recipe.samples = self.samples.unwrap_or(recipe.samples);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.check()?;
        if let Some(epsilon) = self.epsilon {
            ensure!(
                recipe.validation_attack().is_some(),
                "--epsilon is {epsilon}, but there is no attack: add --attack, or leave --epsilon out"
            );
        }
        Ok(recipe)
    }
}

/// Trains until Ctrl-C or the end. Returns the exit code.
///
/// # Errors
/// Where recipe, data, plugins or files do not allow it.
pub fn run(args: &TrainArgs) -> Result<i32> {
    Ok(match train(args, &Cancel::on_ctrl_c()?)? {
        Outcome::Finished | Outcome::NothingLeft { .. } => 0,
        Outcome::Interrupted => EXIT_CANCELLED,
    })
}

/// Runs the subcommand, on a thread with a deep stack.
fn train(args: &TrainArgs, cancel: &Cancel) -> Result<Outcome> {
    let (recipe, threads) = (args.recipe()?, all_threads(args.threads)?);
    Folder::refuse(&args.out, args.resume)?;
    let (training, validation) = data(args, &recipe)?;
    let epochs = recipe.epochs;
    let trainer = Trainer::new(recipe, training, validation, threads)?.with_cancel(cancel);
    let folder = Folder::open(&args.out)?;
    let (name, parameters) = trainer.trainee();
    println!("training {name} ({parameters} parameters) into {}", args.out.display());
    let mut console = Console::new(&folder, epochs, cancel)?;
    let outcome = trainer.run(&folder, args.resume, &mut console)?;
    let weights = folder.file(WEIGHTS);
    match outcome {
        Outcome::Finished => println!("done: {}", weights.display()),
        Outcome::Interrupted => {
            println!("interrupted, the checkpoint is written: the same command with --resume goes on from there")
        }
        Outcome::NothingLeft { epochs, early } => {
            let why = match early {
                true => "it stopped early, when the validation loss no longer fell",
                false => "raise --epochs to train longer",
            };
            println!(
                "nothing to do: the run ended after epoch {epochs} ({why}): {}",
                weights.display()
            );
        }
    }
    Ok(outcome)
}

/// Images for training and for validation.
fn data(args: &TrainArgs, recipe: &Recipe) -> Result<(Dataset, Dataset)> {
    let data = advae_data::load(&recipe.dataset, args.data_dir.as_deref())?;
    if let Some(set) = data.set.filter(|set| set.test) {
        console::say(&format!(
            "warning: dataset '{}' holds test images: what is trained on them cannot be evaluated on them: train on {}",
            set.name, set.family.train.name
        ));
    }
    let (training, validation) = data.split_last(recipe.validation);
    Ok((
        first(training, recipe.samples, "samples"),
        first(validation, recipe.validation_samples, "validation_samples"),
    ))
}

/// The first images, as many as the key says; all for 0.
fn first(data: Dataset, wanted: usize, key: &str) -> Dataset {
    if wanted > data.len() {
        let (name, n) = (&data.name, data.len());
        console::say(&format!(
            "warning: {key} is {wanted}, but there are {n} such images in '{name}': all of them are taken"
        ));
    }
    match wanted {
        0 => data,
        n => data.take(n),
    }
}

/// Progress on a terminal, a line an epoch everywhere, and the JSONL log.
struct Console<'a> {
    log: Log<'a>,
    bar: ProgressBar,
    /// Lines of progress where there is no terminal for the bar.
    pace: Option<Pace>,
    epochs: usize,
    /// What the last epoch came to, as the bar shows it.
    robust: String,
    cancel: &'a Cancel,
}

impl<'a> Console<'a> {
    fn new(folder: &'a Folder, epochs: usize, cancel: &'a Cancel) -> Result<Self> {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {msg}")?;
        bar.set_style(style.progress_chars("=> "));
        Ok(Self {
            log: Log { folder, open: None },
            bar,
            pace: (!terminal).then(|| Pace::new(Instant::now())),
            epochs,
            robust: String::new(),
            cancel,
        })
    }

    /// Shows how far the work is.
    fn show(&mut self, what: &str, done: usize, of: usize, message: String) {
        if self.bar.length() != Some(of as u64) || self.bar.position() > done as u64 {
            self.bar.reset();
            self.bar.set_length(of as u64);
        }
        if self.pace.as_mut().is_some_and(|pace| pace.due(Instant::now())) {
            console::say(&format!("{what} {done}/{of} {message}"));
        }
        self.bar.set_prefix(what.to_string());
        self.bar.set_message(message);
        self.bar.set_position(done as u64);
    }
}

/// The JSONL log: a line an epoch, written once, however often the epoch is trained.
struct Log<'a> {
    folder: &'a Folder,
    /// The file, and the last epoch that is in it.
    open: Option<(File, usize)>,
}

impl Log<'_> {
    fn add(&mut self, log: &EpochLog) -> Result<()> {
        if self.open.is_none() {
            self.open = Some(self.continued()?);
        }
        // After a kill between the log and the checkpoint the last epoch is trained again, to the same numbers.
        match &mut self.open {
            Some((file, last)) if *last < log.epoch => {
                writeln!(file, "{}", serde_json::to_string(log)?).context("cannot write the log")?;
                *last = log.epoch;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Opens the log behind its last whole line.
    fn continued(&self) -> Result<(File, usize)> {
        let path = self.folder.file(LOG);
        let open = || -> std::io::Result<_> {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            let text = std::fs::read(&path)?;
            let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
            file.set_len(whole as u64)?;
            Ok((file, text[..whole].to_vec()))
        };
        let (file, text) = open().with_context(|| format!("cannot write '{}'", path.display()))?;
        let lines = text.split(|byte| *byte == b'\n');
        let epochs = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok()?["epoch"].as_u64());
        Ok((file, epochs.max().unwrap_or(0) as usize))
    }
}

/// Time that the steps still to come will take at the pace of this epoch's, up to the last epoch.
fn time_left(position: &Position, steps: usize, epochs: usize) -> Duration {
    let done = position.batch.max(1) as f64;
    let to_come = epochs.saturating_sub(position.epoch) as f64 * steps as f64 - position.batch as f64;
    let seconds = position.sums.seconds / done * to_come.max(0.);
    Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)
}

impl Observer for Console<'_> {
    fn crafted(&mut self, done: usize, of: usize) -> bool {
        self.show("crafting the examples", done, of, String::new());
        !self.cancel.is_cancelled()
    }

    fn step(&mut self, position: &Position, steps: usize, loss: f64) -> bool {
        let Sums { images, seconds, .. } = position.sums;
        let (rate, left) = (images as f64 / seconds, time_left(position, steps, self.epochs));
        let (epoch, robust) = (position.epoch + 1, &self.robust);
        let message = format!(
            "loss {loss:.4}{robust}, {rate:.0} images/s, {} left at the most",
            HumanDuration(left)
        );
        self.show(
            &format!("epoch {epoch}/{}", self.epochs),
            position.batch,
            steps,
            message,
        );
        !self.cancel.is_cancelled()
    }

    fn epoch(&mut self, log: &EpochLog) -> Result<()> {
        self.log.add(log)?;
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

    fn note(&mut self, text: &str) {
        self.bar.suspend(|| console::say(&format!("warning: {text}")));
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
        assert_eq!(time_left(&position, 10, usize::MAX), LONGEST);
        assert_eq!(time_left(&position, 10, 0), Duration::ZERO);
    }
}
