//! Training through real shared libraries.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use advae_abi::info::Label;
use advae_data::Dataset;
use advae_host::terminal::cancel::Cancel;
use advae_host::training::{
    CraftOn, EpochLog, Folder, Keep, Objective, Observer, Outcome, Position, Recipe, Stage, Statistics, Trainer,
};
use anyhow::Result;
use plugins::plugin;

/// Keeps the logs, and stops after so many steps.
struct Watch {
    logs: Vec<EpochLog>,
    stop_after: Option<u64>,
}

impl Observer for Watch {
    fn crafted(&mut self, done: usize, of: usize) -> bool {
        assert!(done <= of);
        true
    }

    fn step(&mut self, position: &Position, _: usize, _: f64) -> bool {
        Some(position.step) != self.stop_after
    }

    fn epoch(&mut self, log: &EpochLog) -> Result<()> {
        self.logs.push(log.clone());
        Ok(())
    }

    fn note(&mut self, text: &str) {
        panic!("{text}");
    }
}

/// Asks to stop shortly after a step: while the next one's examples are crafted, or the validation images'.
struct CancelAfter {
    step: u64,
    cancel: Cancel,
}

impl Observer for CancelAfter {
    fn crafted(&mut self, _: usize, _: usize) -> bool {
        true
    }

    fn step(&mut self, position: &Position, _: usize, _: f64) -> bool {
        if position.step == self.step {
            let cancel = self.cancel.clone();
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(20));
                cancel.cancel();
            });
        }
        true
    }

    fn epoch(&mut self, _: &EpochLog) -> Result<()> {
        Ok(())
    }

    fn note(&mut self, text: &str) {
        panic!("{text}");
    }
}

fn digits(n: usize) -> (Dataset, Dataset) {
    let data = advae_data::load("mnist-1k", None).unwrap();
    (data.take(n), data.select(&(900..960).collect::<Vec<_>>()))
}

fn path(name: &str) -> String {
    plugin(name).to_str().unwrap().to_string()
}

/// Trains in a folder, stopping where asked; gives the logs of the epochs that ended.
fn train(
    recipe: &Recipe,
    folder: &Folder,
    threads: usize,
    stop_after: Option<u64>,
    resume: bool,
) -> (Outcome, Vec<EpochLog>) {
    let (training, validation) = digits(320);
    let trainer = Trainer::new(recipe.clone(), training, validation, threads).unwrap();
    let mut watch = Watch {
        logs: vec![],
        stop_after,
    };
    let outcome = trainer.run(folder, resume, &mut watch).unwrap();
    (outcome, watch.logs)
}

fn losses(logs: &[EpochLog]) -> Vec<(f64, f64, f64)> {
    logs.iter()
        .map(|log| (log.train_loss, log.validation_loss, log.clean_accuracy))
        .collect()
}

fn adversarial() -> Recipe {
    Recipe {
        classifier: vec![path("model_d") + "@clean"],
        purifier: Some(path("advae")),
        attack: Some(format!("{}:steps=2,relative_step_size=0.5", path("pgd"))),
        epsilon: Some(0.1),
        clean_weight: 1.,
        lambda: 0.1,
        epochs: 2,
        batch_size: 64,
        seed: 3,
        ..Recipe::default()
    }
}

/// HGD: examples crafted once on the classifier alone, logits compared with those of clean images.
fn guided() -> Recipe {
    Recipe {
        craft_on: CraftOn::Classifier,
        objective: Objective::Logits,
        lambda: 0.,
        ..adversarial()
    }
}

/// Everything that a run must remember.
fn elaborate() -> Recipe {
    Recipe {
        classifier: vec![path("model_d") + "@clean", path("model_d") + "@clean"],
        label: Label::Predicted,
        statistics: Statistics::Batch,
        consistency: 0.5,
        weight_averaging: 0.9,
        curriculum: vec![Stage {
            epochs: 1,
            attack: path("fgsm"),
        }],
        validation_attack: Some(path("fgsm") + ":epsilon=0.05"),
        ..adversarial()
    }
}

/// An objective of the purifier's own, with a discriminator that no host knows of.
fn own() -> Recipe {
    Recipe {
        purifier: Some(path("ape_gan")),
        attack: Some(path("fgsm")),
        craft_on: CraftOn::Classifier,
        objective: Objective::Own,
        lambda: 0.,
        ..adversarial()
    }
}

fn refusal(recipe: Recipe) -> String {
    let (training, validation) = digits(64);
    format!("{:#}", Trainer::new(recipe, training, validation, 1).err().unwrap())
}

/// Stopped in the middle of an epoch and resumed: the very weights and losses of an uninterrupted run.
#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let clean = Recipe {
        classifier: vec![path("model_d")],
        epochs: 2,
        batch_size: 64,
        ..Recipe::default()
    };
    for recipe in [clean, adversarial(), guided(), elaborate(), own()] {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (
            Folder::open(&dir.path().join("whole")).unwrap(),
            Folder::open(&dir.path().join("parts")).unwrap(),
        );
        let (outcome, logs) = train(&recipe, &whole, 2, None, false);
        assert_eq!((outcome, logs.len()), (Outcome::Finished, 2));

        assert_eq!(train(&recipe, &parts, 2, Some(3), false).0, Outcome::Interrupted);
        let (outcome, resumed) = train(&recipe, &parts, 1, None, true);
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(losses(&resumed), losses(&logs));
        let weights = |folder: &Folder| std::fs::read(folder.file("weights.safetensors")).unwrap();
        assert!(weights(&whole) == weights(&parts), "the weights differ");
    }
}

/// An attack in progress stops, its step is not counted, and the resumed run gives the very weights of an undisturbed one.
#[test]
fn a_step_or_a_validation_that_is_cancelled_is_made_again() {
    let slow = |name: &str| format!("{}:steps=100,relative_step_size=0.05", path(name));
    let cancelled_while_crafting = (adversarial(), 1, (1, 1));
    let mut validated_slowly = adversarial();
    (validated_slowly.validation_attack, validated_slowly.epochs) = (Some(slow("pgd")), 1);
    let cancelled_in_validation = (validated_slowly, 2, (2, 2));
    for (mut recipe, step, (steps, batch)) in [cancelled_while_crafting, cancelled_in_validation] {
        recipe.epochs = 1;
        if recipe.validation_attack.is_none() {
            recipe.attack = Some(slow("pgd"));
            recipe.validation_attack = Some(path("fgsm"));
        }
        let (training, validation) = digits(96);
        let trainer = || Trainer::new(recipe.clone(), training.clone(), validation.clone(), 2).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let folders = ["whole", "parts"].map(|name| Folder::open(&dir.path().join(name)).unwrap());
        let mut watch = Watch {
            logs: vec![],
            stop_after: None,
        };
        let outcome = trainer().run(&folders[0], false, &mut watch).unwrap();
        assert_eq!(outcome, Outcome::Finished);

        let cancel = Cancel::default();
        let mut observer = CancelAfter {
            step,
            cancel: cancel.clone(),
        };
        let stopped = trainer().with_cancel(&cancel).run(&folders[1], false, &mut observer);
        assert_eq!(stopped.unwrap(), Outcome::Interrupted);
        let position = folders[1].load().unwrap().unwrap().position;
        assert_eq!((position.epoch, position.step, position.batch), (0, steps, batch));
        let mut resumed = Watch {
            logs: vec![],
            stop_after: None,
        };
        trainer().run(&folders[1], true, &mut resumed).unwrap();
        assert_eq!(losses(&resumed.logs), losses(&watch.logs));
        let [whole, parts] = folders.map(|folder| std::fs::read(folder.file("weights.safetensors")).unwrap());
        assert!(whole == parts, "the weights differ");
    }
}

#[test]
fn training_learns() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        classifier: vec![path("model_d")],
        epochs: 6,
        batch_size: 32,
        ..Recipe::default()
    };
    let (_, logs) = train(&recipe, &Folder::open(dir.path()).unwrap(), 2, None, false);
    assert!(logs[5].train_loss < 0.5 * logs[0].train_loss);
    assert!(logs[5].clean_accuracy > 0.7, "{}", logs[5].clean_accuracy);

    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        epochs: 6,
        lambda: 0.,
        ..adversarial()
    };
    let (_, logs) = train(&recipe, &Folder::open(dir.path()).unwrap(), 2, None, false);
    assert!(logs[5].train_loss < logs[0].train_loss, "{:?}", losses(&logs));
    assert!(logs[5].robust_accuracy.unwrap() > logs[0].robust_accuracy.unwrap());
}

#[test]
fn every_loss_of_a_denoiser_falls() {
    for objective in [Objective::Logits, Objective::Features, Objective::CrossEntropy] {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            objective,
            epochs: 4,
            ..guided()
        };
        let (_, logs) = train(&recipe, &Folder::open(dir.path()).unwrap(), 2, None, false);
        assert!(
            logs[3].train_loss < 0.8 * logs[0].train_loss,
            "{objective:?}: {:?}",
            losses(&logs)
        );
    }
}

/// Eq. 8 sums: two base models that are one count twice.
#[test]
fn an_ensemble_of_one_model_twice_is_twice_its_loss() {
    let step = |classifiers: usize, adversarial_weight: f64| {
        let dir = tempfile::tempdir().unwrap();
        let recipe = Recipe {
            classifier: vec![path("model_d") + "@clean"; classifiers],
            adversarial_weight,
            clean_weight: 0.,
            lambda: 0.,
            epochs: 1,
            ..adversarial()
        };
        let (_, logs) = train(&recipe, &Folder::open(dir.path()).unwrap(), 2, None, false);
        (logs[0].train_loss, logs[0].validation_loss)
    };
    let (one, two) = (step(1, 2.), step(2, 1.));
    let near = |a: f64, b: f64| (a / b - 1.).abs() < 1e-2;
    assert!(near(one.0, two.0) && near(one.1, two.1), "{one:?} {two:?}");
}

/// Without decay the mean of the weights is the last weights; with it, validation judges the mean.
#[test]
fn the_mean_of_the_weights_comes_out() {
    let weights = |weight_averaging: f64| {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let recipe = Recipe {
            weight_averaging,
            epochs: 1,
            ..adversarial()
        };
        train(&recipe, &folder, 2, None, false);
        std::fs::read(folder.file("weights.safetensors")).unwrap()
    };
    let (last, mean) = (weights(0.), weights(0.9));
    assert_eq!(last.len(), mean.len());
    assert!(last != mean);
}

/// A second epoch that spoils what the first one learnt comes out only where the recipe says so.
#[test]
fn the_best_epoch_comes_out_or_the_last() {
    let run = |keep: Keep| {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let recipe = Recipe {
            classifier: vec![path("model_d")],
            epochs: 2,
            batch_size: 64,
            final_learning_rate: 1.,
            keep,
            ..Recipe::default()
        };
        let (_, logs) = train(&recipe, &folder, 2, None, false);
        assert_eq!(logs.iter().map(|log| log.best).collect::<Vec<_>>(), [true, false]);
        let kept = std::fs::read(folder.file("weights.safetensors")).unwrap();
        kept == folder.load().unwrap().unwrap().weights
    };
    assert_eq!((run(Keep::Best), run(Keep::Last)), (false, true));
}

#[test]
fn another_recipe_cannot_resume_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    train(&adversarial(), &folder, 2, Some(1), false);
    let (training, validation) = digits(320);
    let other = Recipe {
        learning_rate: 0.5,
        ..adversarial()
    };
    let trainer = Trainer::new(other, training, validation, 1).unwrap();
    let error = trainer
        .run(
            &folder,
            true,
            &mut Watch {
                logs: vec![],
                stop_after: None,
            },
        )
        .unwrap_err();
    assert!(error.to_string().contains("another recipe"), "{error:#}");
    assert!(
        error
            .to_string()
            .contains("learning_rate is 0.5, it was started with 0.001"),
        "{error:#}"
    );
}

#[test]
fn what_cannot_be_trained_says_so() {
    let error = refusal(Recipe {
        purifier: Some(path("identity")),
        ..adversarial()
    });
    assert!(error.contains("no trainable parameters"), "{error}");
    let error = refusal(Recipe {
        purifier: Some(path("advae")),
        ..own()
    });
    assert!(error.contains("no objective of its own"), "{error}");
    let (training, _) = digits(64);
    let error = Trainer::new(adversarial(), training.clone(), training.take(0), 1)
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("64 training and 0 validation images"),
        "{error}"
    );
    let mut mislabelled = training.clone();
    mislabelled.labels[3] = 10;
    let error = Trainer::new(adversarial(), mislabelled, training, 1).err().unwrap();
    assert!(error.to_string().contains("the label 10, expected 0..10"), "{error}");
    let error = refusal(Recipe {
        classifier: vec![],
        ..adversarial()
    });
    assert!(error.contains("no classifier"), "{error}");
    let table = serde_json::json!({"contents": 1});
    let error = refusal(Recipe {
        own: table.as_object().cloned(),
        ..own()
    });
    assert!(error.contains("did you mean 'content'?"), "{error}");
}

#[test]
fn an_objective_of_its_own_is_learnt_and_logged() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        purifier: Some(path("magnet")),
        epochs: 4,
        ..own()
    };
    let (_, logs) = train(&recipe, &Folder::open(dir.path()).unwrap(), 2, None, false);
    assert!(logs[3].train_loss < 0.8 * logs[0].train_loss, "{:?}", losses(&logs));
    assert_eq!(logs[3].own["loss"], logs[3].train_loss);
    assert!(logs[3].train_accuracy.is_none() && logs[3].robust_accuracy.is_some());
}
