//! `advae-host train` as people use it: what it refuses, what it leaves alone, and how it stops.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    /// The folder of the run.
    fn out(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.out().join(name)).unwrap()
    }

    /// What is in the folder of the run, but for the lock.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.out()).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name != "train.lock").collect();
        names.sort();
        names
    }

    /// Model D on 64 images for one epoch, or what `more` says instead.
    fn command(&self, more: &[&str]) -> Command {
        let (out, model) = (self.out().display().to_string(), plugin("model_d"));
        let usual = [
            ("--dataset", "mnist-1k"),
            ("--samples", "64"),
            ("--batch-size", "32"),
            ("--threads", "2"),
            ("--out", out.as_str()),
            ("--epochs", "1"),
            ("--classifier", model.as_str()),
        ];
        // Flags would win over a recipe's keys.
        let left = |flag: &str| more.contains(&"--config") && ["--epochs", "--classifier"].contains(&flag);
        let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        command
            .arg("train")
            .args(more)
            .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir());
        for (flag, value) in usual {
            if !more.contains(&flag) && !left(flag) {
                command.args([flag, value]);
            }
        }
        command
    }

    fn train(&self, more: &[&str]) -> Output {
        self.command(more).output().unwrap()
    }

    fn trained(&self, more: &[&str]) -> Output {
        let output = self.train(more);
        assert_eq!(output.status.code(), Some(0), "{more:?}: {}", stderr(&output));
        output
    }

    /// A run with exit code 2, whose last line says all of this.
    fn refused(&self, more: &[&str], says: &[&str]) {
        let output = self.train(more);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {text}");
        let line = text.lines().last().unwrap();
        assert!(line.starts_with("error: "), "{text}");
        says.iter()
            .for_each(|part| assert!(line.contains(part), "{more:?}: no '{part}' in: {line}"));
    }

    /// A recipe file for `--config`.
    fn recipe(&self, text: &str) -> String {
        let path = self.dir.path().join("recipe.toml");
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }
}

fn plugin(name: &str) -> String {
    plugins::plugin(name).display().to_string()
}

fn fixture(name: &str) -> String {
    fixtures::plugin(name).display().to_string()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn epochs(log: &[u8]) -> Vec<(u64, u64)> {
    let lines = std::str::from_utf8(log).unwrap().lines();
    let values = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    values
        .map(|line| (line["epoch"].as_u64().unwrap(), line["epochs"].as_u64().unwrap()))
        .collect()
}

#[test]
fn an_image_that_an_evaluation_refuses_ends_training() {
    for (mode, reason) in [
        ("over_budget", "over the budget 0.3"),
        ("out_of_bounds", "outside [0, 1]"),
    ] {
        let scene = Scene::new();
        let attack = format!("{}:mode={mode}", fixture("noise"));
        let says = [
            "attack 'plain_noise'",
            "of 'mnist-1k' is refused",
            reason,
            "there is no checkpoint yet",
        ];
        scene.refused(&["--attack", &attack], &says);
        assert!(scene.names().is_empty(), "{:?}", scene.names());
    }
}

#[test]
fn a_refused_image_costs_no_checkpoint() {
    let scene = Scene::new();
    let (model, noise) = (plugin("model_d"), fixture("noise"));
    let recipe = scene.recipe(&format!(
        "classifier = '{model}'\nattack = '{noise}:mode=over_budget'\nvalidation_attack = '{noise}'\nepochs = 2\n\
         [[curriculum]]\nepochs = 1\nattack = '{noise}'"
    ));
    let says = [
        "is refused",
        "in epoch 2 after step 2",
        "the checkpoint of step 2 is kept",
    ];
    scene.refused(&["--config", &recipe], &says);
    let kept = ["checkpoint-2.safetensors", "checkpoint-2.state", "checkpoint.json"];
    let names = scene.names();
    assert!(kept.iter().all(|name| names.iter().any(|n| n == name)), "{names:?}");
    // The checkpoint is whole: the next try comes to the same image.
    scene.refused(&["--config", &recipe, "--resume"], &says);
}

#[test]
fn a_radius_that_images_cannot_use_is_refused_and_a_fraction_is_a_radius() {
    let (scene, fgsm) = (Scene::new(), plugin("fgsm"));
    let says = ["the Linf budget 8 is above 1", "such as 8/255"];
    scene.refused(&["--attack", &fgsm, "--epsilon", "8"], &says);
    scene.refused(&["--attack", &format!("{fgsm}:epsilon=8")], &says);
    scene.refused(&["--epsilon", "0.1"], &["--epsilon is 0.1, but there is no attack"]);
    let text = stderr(&scene.train(&["--attack", &fgsm, "--epsilon", "8/x"]));
    assert!(text.contains("'8/x' is no number"), "{text}");
    scene.trained(&["--attack", &fgsm, "--epsilon", "8/255"]);
    let recipe: toml::Table = toml::from_str(std::str::from_utf8(&scene.read("recipe.toml")).unwrap()).unwrap();
    assert_eq!(recipe["epsilon"].as_float(), Some(8. / 255.));
    let line: Value = serde_json::from_slice(&scene.read("log.jsonl")).unwrap();
    assert_eq!(line["epsilon"].as_f64().map(|e| (e * 255.).round()), Some(8.));
}

#[test]
fn the_radius_of_an_attack_may_be_a_fraction() {
    let scene = Scene::new();
    scene.trained(&["--attack", &format!("{}:epsilon=8/255", plugin("fgsm"))]);
    let line: Value = serde_json::from_slice(&scene.read("log.jsonl")).unwrap();
    assert_eq!(line["epsilon"].as_f64().map(|e| (e * 255.).round()), Some(8.));
}

#[test]
fn training_on_test_images_or_on_fewer_than_asked_for_is_said() {
    let output = Scene::new().trained(&["--samples", "5000", "--batch-size", "100000"]);
    let text = stderr(&output);
    assert!(text.contains("warning: dataset 'mnist-1k' holds test images"), "{text}");
    assert!(
        text.contains("warning: samples is 5000, but there are 900 such images"),
        "{text}"
    );
}

#[test]
fn no_threads_are_refused_everywhere() {
    let scene = Scene::new();
    let says = "--threads is 0: give 1 or more";
    scene.refused(&["--threads", "0"], &[says]);
    let png = scene.dir.path().join("p.png").display().to_string();
    let page = scene.dir.path().join("page").display().to_string();
    for args in [
        &[
            "purify",
            "--purifier",
            "identity",
            "--out",
            png.as_str(),
            "--threads",
            "0",
        ][..],
        &["reproduce", "table1", "--out", page.as_str(), "--threads", "0"],
    ] {
        let mut host = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        let output = host
            .args(args)
            .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(says), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_refused_resume_changes_nothing() {
    let scene = Scene::new();
    scene.trained(&[]);
    let before: Vec<_> = scene.names().iter().map(|name| scene.read(name)).collect();
    let other = ["--resume", "--learning-rate", "0.5"];
    scene.refused(
        &other,
        &["another recipe", "learning_rate is 0.5, it was started with 0.001"],
    );
    scene.refused(&[], &["holds a run already: add --resume"]);
    scene.refused(&["--resume", "--classifier", "nowhere.so"], &["nowhere.so"]);
    let after: Vec<_> = scene.names().iter().map(|name| scene.read(name)).collect();
    assert!(before == after);
}

#[test]
fn a_run_may_be_made_longer_and_a_finished_one_says_that_it_is() {
    let (long, short) = (Scene::new(), Scene::new());
    long.trained(&["--epochs", "3"]);
    short.trained(&[]);
    let strays = [
        "checkpoint-1.state",
        "checkpoint-9.average",
        "recipe.toml.part",
        "checkpoint-9.safetensors.part",
    ];
    let mine = ["checkpoint-best.safetensors", "notes.part"];
    for name in strays.iter().chain(&mine) {
        std::fs::write(short.out().join(name), "x").unwrap();
    }
    short.trained(&["--resume", "--epochs", "3"]);
    let names = short.names();
    assert!(strays.iter().all(|name| !names.iter().any(|n| n == name)), "{names:?}");
    assert!(mine.iter().all(|name| short.read(name) == b"x"));
    assert!(
        long.read("weights.safetensors") == short.read("weights.safetensors"),
        "the weights differ"
    );
    assert_eq!(epochs(&short.read("log.jsonl")), [(1, 1), (2, 3), (3, 3)]);
    assert!(long.read("recipe.toml") == short.read("recipe.toml"));

    let before: Vec<_> = names.iter().map(|name| short.read(name)).collect();
    let output = short.trained(&["--resume", "--epochs", "3"]);
    assert!(
        stdout(&output).contains("nothing to do: the run ended after epoch 3"),
        "{}",
        stdout(&output)
    );
    assert!(before == names.iter().map(|name| short.read(name)).collect::<Vec<_>>());
    short.refused(
        &["--resume", "--epochs", "2"],
        &["epochs is 2, the run was started with 3"],
    );
}

#[test]
fn a_falling_rate_fixes_the_number_of_epochs() {
    let scene = Scene::new();
    let recipe = scene.recipe(&format!(
        "classifier = '{}'\nepochs = 1\nfinal-learning-rate = 1e-4",
        plugin("model_d")
    ));
    scene.trained(&["--config", &recipe]);
    scene.refused(
        &["--config", &recipe, "--resume", "--epochs", "2"],
        &["final_learning_rate", "give 1"],
    );
}

#[test]
fn the_users_files_are_not_overwritten() {
    for name in ["weights.safetensors", "log.jsonl", "recipe.toml", "checkpoint-1.state"] {
        let scene = Scene::new();
        std::fs::create_dir(scene.out()).unwrap();
        std::fs::write(scene.out().join(name), "mine").unwrap();
        for more in [&[][..], &["--resume"]] {
            scene.refused(more, &[name, "move it away, or choose another --out"]);
        }
        assert_eq!(scene.names(), [name]);
        assert_eq!(scene.read(name), b"mine");
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_noticed_before_the_work() {
    let scene = Scene::new();
    let file = scene.recipe("");
    scene.refused(&["--out", &file], &["cannot make the folder"]);
    scene.refused(
        &["--out", "/proc"],
        &["cannot write into '/proc': choose another --out"],
    );
}

#[test]
fn a_damaged_checkpoint_is_one_clear_error() {
    let scene = Scene::new();
    scene.trained(&[]);
    for name in ["checkpoint-2.safetensors", "checkpoint-2.state", "checkpoint.json"] {
        let whole = scene.read(name);
        for at in [9, whole.len() / 2, whole.len() - 1] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(scene.out().join(name), damaged).unwrap();
            let damaged = format!("{name}' is damaged");
            let remedy = "restore it from a copy, or train anew into another folder";
            scene.refused(&["--resume", "--epochs", "2"], &[&damaged, remedy]);
        }
        std::fs::write(scene.out().join(name), whole).unwrap();
    }
    scene.trained(&["--resume", "--epochs", "2"]);
}

#[test]
fn models_and_images_that_do_not_fit_are_refused() {
    let (scene, linear, advae) = (Scene::new(), fixture("linear"), plugin("advae"));
    let two = format!("{linear}:mode=two_classes");
    let says = ["of 2 classes, dataset 'mnist-1k' has [1, 28, 28] of 10: choose two that fit"];
    scene.refused(&["--classifier", &two, "--purifier", &advae], &says);
    scene.refused(
        &["--classifier", &linear, "--classifier", &two, "--purifier", &advae],
        &says,
    );
    let recipe = scene.recipe(&format!(
        "classifier = '{linear}'\npurifier = '{advae}'\nattack = '{}'\nobjective = 'features'",
        plugin("fgsm")
    ));
    scene.refused(
        &["--config", &recipe],
        &["classifier that exposes features", "classifier 'plain_linear'"],
    );
    let recipe = scene.recipe(&format!("classifier = '{}'\nvalidation = 0", plugin("model_d")));
    scene.refused(
        &["--config", &recipe],
        &["64 training and 0 validation images", "validation is 0"],
    );
    assert!(scene.names().is_empty());
}

#[test]
fn a_recipe_with_a_mistake_names_line_and_key() {
    let scene = Scene::new();
    let refused = |text: &str, says: &[&str]| scene.refused(&["--config", &scene.recipe(text)], says);
    refused(
        "seed = 1\nbatchsize = 3",
        &["recipe.toml' line 2, key 'batchsize'", "expected one of"],
    );
    refused(
        "seed = 1\n\nepochs = 'x'",
        &["recipe.toml' line 3, key 'epochs'", "expected usize"],
    );
    refused("[schedule]\nearly-stop = 'x'", &["line 2, key 'schedule.early-stop'"]);
    refused("seed = ", &["recipe.toml' line 1"]);
    refused(
        "batch_size = 3\nbatch-size = 3",
        &["line 2, key 'batch-size'", "keep one of them"],
    );
}

/// Runs until the folder has a checkpoint.
fn begin(scene: &Scene, more: &[&str]) -> std::process::Child {
    let mut command = scene.command(more);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&scene.out().join("checkpoint.json"));
    child
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no '{}'", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn send(child: &std::process::Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

#[test]
fn a_folder_has_one_writer_and_ctrl_c_stops_an_attack_in_progress() {
    let (scene, noise) = (Scene::new(), fixture("noise"));
    let pgd = format!("{}:steps=20000", plugin("pgd"));
    let model = plugin("model_d");
    // The first epoch is over at once; a step of the second would take minutes.
    let config = scene.recipe(&format!(
        "classifier = '{model}'\nattack = '{pgd}'\nvalidation_attack = '{noise}'\nepochs = 2\n\
         [[curriculum]]\nepochs = 1\nattack = '{noise}'"
    ));
    let child = begin(&scene, &["--config", &config]);
    wait_for(&scene.out().join("checkpoint-2.state"));
    let config = config.as_str();
    for more in [&["--config", config][..], &["--config", config, "--resume"]] {
        let output = scene.train(more);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        let refused = ["holds a run already", "another process trains into"];
        assert!(
            refused.iter().any(|text| stderr(&output).contains(text)),
            "{}",
            stderr(&output)
        );
        assert!(
            more.len() < 3 || stderr(&output).contains(refused[1]),
            "{}",
            stderr(&output)
        );
    }
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    send(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    let text = stdout(&output);
    assert!(
        text.contains("interrupted, the checkpoint is written") && text.contains("--resume"),
        "{text}"
    );
    let checkpoint = String::from_utf8(scene.read("checkpoint.json")).unwrap();
    assert!(checkpoint.contains("\"step\": 2"), "{checkpoint}");
}

#[test]
fn a_run_that_is_killed_twenty_times_ends_as_an_undisturbed_one() {
    let (killed, whole) = (Scene::new(), Scene::new());
    let attack = format!("{}:steps=30", plugin("pgd"));
    let args = ["--attack", attack.as_str(), "--epochs", "3"];
    whole.trained(&args);
    let resume = |scene: &Scene| -> &[&str] {
        match scene.out().join("checkpoint.json").is_file() {
            true => &["--resume"],
            false => &[],
        }
    };
    let mut moment = 5;
    for _ in 0..20 {
        moment = moment * 131 % 353;
        let mut child = killed
            .command(&[&args[..], resume(&killed)].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(50 + 2 * moment));
        let _ = child.kill();
        child.wait().unwrap();
    }
    killed.trained(&[&args[..], resume(&killed)].concat());
    assert!(
        killed.read("weights.safetensors") == whole.read("weights.safetensors"),
        "the weights differ"
    );
    assert_eq!(epochs(&killed.read("log.jsonl")), [(1, 3), (2, 3), (3, 3)]);
    assert_eq!(killed.names(), whole.names());
}

#[test]
fn augmentation_is_part_of_the_recipe_and_is_the_same_on_any_number_of_threads() {
    let run = |scene: &Scene, augmentation: &str, threads: &str| {
        let classifier = plugin("model_d");
        let text = format!("classifier = '{classifier}'\nepochs = 1\n{augmentation}");
        scene.train(&["--config", &scene.recipe(&text), "--threads", threads])
    };
    let trained = |augmentation: &str, threads: &str| {
        let scene = Scene::new();
        let output = run(&scene, augmentation, threads);
        assert!(output.status.success(), "{}", stderr(&output));
        let recipe = String::from_utf8(scene.read("recipe.toml")).unwrap();
        (scene.read("weights.safetensors"), recipe)
    };
    let paper = "[augmentation]\npad = 2\nflip = true\n";
    let (plain, recipe) = trained("", "2");
    assert!(!recipe.contains("augmentation"), "{recipe}");
    let (varied, recipe) = trained(paper, "2");
    assert!(recipe.contains(paper), "{recipe}");
    assert!(varied != plain);
    assert!(varied == trained(paper, "1").0);

    let output = run(&Scene::new(), "[augmentation]\npad = 28\n", "2");
    let says = "augmentation.pad is 28, but images are 28x28: expected less than 28";
    assert!(
        output.status.code() == Some(2) && stderr(&output).contains(says),
        "{}",
        stderr(&output)
    );
}
