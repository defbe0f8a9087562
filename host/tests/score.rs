//! `score` through the real binary: files are joined by sample ids, and what cannot be scored is refused.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;
#[path = "common/saved.rs"]
mod saved;

use advae_data::npz::Saved;
use run::{refused, report, said, stderr, stdout, text};
use saved::{changed, keep};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const SAMPLES: usize = 200;

fn host(args: &[&str]) -> Output {
    run::command(&[fixtures::dir(), plugins::plugin_dir()], args)
        .output()
        .unwrap()
}

fn score(files: &[&Path], more: &[&str]) -> Output {
    let files: Vec<&str> = files.iter().map(|file| text(file)).collect();
    host(&[&["score", "--threads", "2"], &files[..], more].concat())
}

fn scored(files: &[&Path], more: &[&str]) -> Value {
    let output = score(files, &[more, &["--format", "json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    report(&output)
}

/// Images of two attacks on the same samples: their files, and what `eval` said of them.
struct Two {
    _dir: TempDir,
    files: [PathBuf; 2],
    rows: Vec<Value>,
    report: Value,
}

/// Noise, and other noise of the same size.
const ATTACKS: [&str; 2] = ["plain_noise", "plain_noise:mode=batch"];

fn two() -> Two {
    let dir = tempfile::tempdir().unwrap();
    let (images, out) = (dir.path().join("images"), dir.path().join("rows"));
    let samples = SAMPLES.to_string();
    let output = host(&[
        "eval",
        "--classifier",
        "plain_linear",
        "--threat-model",
        "plain_white_box",
        "--attack",
        ATTACKS[0],
        "--attack",
        ATTACKS[1],
        "--epsilon",
        "0.1",
        "--samples",
        &samples,
        "--threads",
        "1",
        "--batch",
        "10",
        "--format",
        "json",
        "--out",
        text(&out),
        "--save-adversarial",
        text(&images),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let lines = std::fs::read_to_string(&out).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    Two {
        files: ["plain_noise-", "mode=batch"].map(|part| saved::file(&images, part)),
        rows: lines.filter(|line| line["type"] == "sample").collect(),
        report: report(&output),
        _dir: dir,
    }
}

impl Two {
    /// Whether the samples stand against each attack and without one, in the order of the files.
    fn robust(&self) -> [Vec<bool>; 2] {
        [0, 1].map(|i| {
            let ids = Saved::read(&self.files[i]).unwrap().ids;
            let key = &self.report["cells"][i]["key"];
            let of = |id: &u64| {
                let mut rows = self.rows.iter();
                let row = rows.find(|row| row["cell"] == *key && row["id"] == *id).unwrap();
                row["robust"] == true && row["clean_correct"] == true
            };
            ids.iter().map(of).collect()
        })
    }
}

fn both(pairs: impl Iterator<Item = (bool, bool)>) -> usize {
    pairs.filter(|(a, b)| *a && *b).count()
}

/// Samples of the only worst case, and how many of them stand.
fn worst(report: &Value) -> (u64, usize) {
    let worst = report["worst_cases"].as_array().unwrap();
    assert_eq!(worst.len(), 1, "{report}");
    assert_eq!(worst[0]["attacks"].as_array().unwrap().len(), 2, "{report}");
    let samples = worst[0]["samples"].as_u64().unwrap();
    let share = worst[0]["robust_accuracy"]["value"].as_f64().unwrap();
    (samples, (share * samples as f64).round() as usize)
}

#[test]
fn files_are_joined_by_their_ids_whatever_the_order_of_their_rows() {
    let two = two();
    let [a, b] = two.robust();
    let expected = both(a.iter().copied().zip(b.iter().copied()));
    let by_position = both(a.iter().copied().zip(b.iter().rev().copied()));
    assert_ne!(by_position, expected, "the rows tell nothing");
    assert_eq!(worst(&two.report), (SAMPLES as u64, expected));

    let [a, b] = &two.files;
    let reversed: Vec<usize> = (0..SAMPLES).rev().collect();
    let b_reversed = changed(b, "reversed.npz", |saved| keep(saved, &reversed));
    for files in [[a, b], [a, &b_reversed], [&b_reversed, a]] {
        let report = scored(&[files[0], files[1]], &[]);
        assert_eq!(worst(&report), (SAMPLES as u64, expected), "{files:?}");
        assert_eq!(report["worst_cases"][0]["left_out"], 0);
    }
}

#[test]
fn samples_that_only_one_of_two_files_has_are_left_out_with_a_word() {
    let two = two();
    let [a, b] = two.robust();
    let expected = both(a[40..160].iter().copied().zip(b[40..160].iter().copied()));
    let [a, b] = &two.files;
    let a = changed(a, "a.npz", |saved| keep(saved, &(0..160).collect::<Vec<_>>()));
    let b = changed(b, "b.npz", |saved| keep(saved, &(40..SAMPLES).collect::<Vec<_>>()));
    assert_eq!(worst(&scored(&[&a, &b], &[])), (120, expected));
    let output = score(&[&a, &b], &[]);
    let word = "over the 120 samples that all of them attacked; 80 others are left out";
    assert!(stdout(&output).contains(word), "{}", said(&output));
}

#[test]
fn files_without_a_common_sample_are_not_joined_without_a_word() {
    let two = two();
    let [a, b] = &two.files;
    let a = changed(a, "a.npz", |saved| keep(saved, &(0..100).collect::<Vec<_>>()));
    let b = changed(b, "b.npz", |saved| keep(saved, &(100..SAMPLES).collect::<Vec<_>>()));
    let output = score(&[&a, &b], &["--format", "json"]);
    if output.status.code() == Some(2) {
        return assert!(stderr(&output).contains("sample"), "{}", said(&output));
    }
    for worst in report(&output)["worst_cases"].as_array().unwrap() {
        let alone = worst["attacks"].as_array().unwrap().len() == 1;
        assert!(alone || worst["samples"] == 0, "{worst}");
    }
    let output = score(&[&a, &b], &[]);
    assert!(
        stdout(&output).contains("left out") || stderr(&output).contains("left out"),
        "no word of the samples that are left out: {}",
        said(&output)
    );
}

#[test]
fn an_image_or_a_label_that_contradicts_another_file_is_refused() {
    let two = two();
    let [a, b] = &two.files;
    let id = Saved::read(b).unwrap().ids[7];
    let says = format!("its sample {id} is another one than that of '{}'", text(a));
    let image = changed(b, "image.npz", |saved| {
        saved.originals.as_mut().unwrap()[7 * 784 + 300] += 1. / 512.;
    });
    refused(&score(&[a, &image], &[]), &["image.npz", &says]);
    let label = changed(b, "label.npz", |saved| saved.labels[7] = (saved.labels[7] + 1) % 10);
    refused(&score(&[a, &label], &[]), &["label.npz", &says]);
}

#[test]
fn a_file_that_is_given_twice_is_shown_once() {
    let two = two();
    let [a, _] = &two.files;
    let copy = changed(a, "copy.npz", |_| ());
    for second in [a, &copy] {
        let output = score(&[a, second], &["--format", "json"]);
        assert!(stderr(&output).contains("they are shown once"), "{}", said(&output));
        let report = report(&output);
        for part in ["cells", "worst_cases"] {
            assert_eq!(report[part].as_array().unwrap().len(), 1, "{report}");
        }
    }
}

#[test]
fn files_that_say_nothing_of_themselves_have_one_worst_case_under_a_budget() {
    let two = two();
    let [a, b] = two.robust();
    let expected = both(a.into_iter().zip(b));
    let reversed: Vec<usize> = (0..SAMPLES).rev().collect();
    let [a, b] = &two.files;
    let a = changed(a, "a.npz", |saved| saved.meta.clear());
    let b = changed(b, "b.npz", |saved| {
        saved.meta.clear();
        keep(saved, &reversed);
    });
    refused(&score(&[&a, &b], &[]), &["give --classifier"]);
    let more = ["--classifier", "plain_linear", "--epsilon", "linf=0.3"];
    assert_eq!(worst(&scored(&[&a, &b], &more)), (SAMPLES as u64, expected));
    // What they do not say is not taken for granted in silence.
    let output = score(&[&a], &more[..2]);
    for says in [
        "does not say what its images were made for",
        "give --purifier",
        "give --epsilon linf=VALUE",
    ] {
        assert!(stderr(&output).contains(says), "no '{says}' in: {}", said(&output));
    }
    assert!(stdout(&output).contains("unknown"), "{}", said(&output));
    let output = score(&[&a], &[&more[..], &["--purifier", "none"]].concat());
    assert!(!stderr(&output).contains("give --"), "{}", said(&output));
}

#[test]
fn a_budget_below_the_one_that_images_were_made_within_is_refused_and_a_larger_one_is_not() {
    let two = two();
    let a = &two.files[0];
    for other in ["linf=0.05", "l2=3"] {
        refused(
            &score(&[a], &["--epsilon", other]),
            &["within Linf 0.1", "leave --epsilon out"],
        );
    }
    assert!(score(&[a], &["--epsilon", "linf=0.1"]).status.success());
    assert!(score(&[a], &["--epsilon", "linf=0.2"]).status.success());
}

#[test]
fn images_that_are_not_in_the_unit_interval_are_refused_with_a_remedy() {
    let two = two();
    let a = &two.files[0];
    let with = |name: &str, change: fn(f32) -> f32| {
        let file = changed(a, name, |saved| {
            saved
                .originals
                .as_mut()
                .unwrap()
                .iter_mut()
                .for_each(|v| *v = change(*v));
            saved.images.iter_mut().for_each(|v| *v = change(*v));
        });
        let saved = Saved::read(&file).unwrap();
        let pixels = saved.originals.unwrap();
        let at = pixels.iter().position(|v| !(0. ..=1.).contains(v)).unwrap();
        let says = format!(
            "sample {} has the pixel {}, outside [0, 1]",
            saved.ids[at / 784],
            pixels[at]
        );
        let output = score(&[&file], &[]);
        refused(&output, &[name, &says]);
        output
    };
    refused(&with("bytes.npz", |v| 255. * v), &["divide bytes by 255"]);
    refused(
        &with("normalised.npz", |v| (v - 0.1307) / 0.3081),
        &["undo any other normalisation"],
    );
    // Where the clean images are as they should be, the attack is at fault.
    let attack = changed(a, "attack.npz", |saved| {
        saved.images.iter_mut().for_each(|v| *v *= 255.)
    });
    refused(&score(&[&attack], &[]), &["images refused", "outside [0, 1]"]);
}

#[test]
fn labels_that_the_classifier_does_not_know_are_refused_with_a_remedy() {
    let two = two();
    let a = &two.files[0];
    let id = Saved::read(a).unwrap().ids[3];
    let eleventh = changed(a, "eleventh.npz", |saved| saved.labels[3] = 10);
    let knows = "classifier 'plain_linear' knows the classes 0 to 9: choose one for these images";
    refused(
        &score(&[&eleventh], &[]),
        &["eleventh.npz", &format!("sample {id} has the label 10"), knows],
    );

    let saved = Saved::read(a).unwrap();
    let at = saved.labels.iter().position(|label| *label > 1).unwrap();
    let says = format!("sample {} has the label {}", saved.ids[at], saved.labels[at]);
    let knows = "classifier 'plain_linear' knows the classes 0 to 1: choose one for these images";
    let output = score(&[a], &["--classifier", "plain_linear:mode=two_classes"]);
    refused(&output, &[&says, knows]);
}

#[test]
fn images_with_targets_are_scored_by_their_targets() {
    let dir = tempfile::tempdir().unwrap();
    let output = host(&[
        "eval",
        "--classifier",
        "model_d",
        "--threat-model",
        "white_box",
        "--attack",
        "pgd:target=next,steps=4,random_start=false,epsilon=0.2",
        "--samples",
        "60",
        "--threads",
        "2",
        "--format",
        "json",
        "--save-adversarial",
        text(dir.path()),
    ]);
    assert!(output.status.success(), "{}", said(&output));
    let before = report(&output);
    let file = saved::file(dir.path(), ".npz");
    let after = scored(&[&file], &[]);
    for figure in ["broken", "clean_correct", "robust_accuracy", "l2", "linf"] {
        assert_eq!(after["cells"][0][figure], before["cells"][0][figure], "{figure}");
    }
    // Without its targets the file would give another number: any other class would count.
    let forgets = changed(&file, "forgets.npz", |saved| saved.targets = None);
    let forgets = scored(&[&forgets], &[]);
    assert_ne!(
        forgets["cells"][0]["broken"], before["cells"][0]["broken"],
        "the targets tell nothing"
    );
}

#[test]
fn a_pipe_instead_of_saved_images_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe.npz");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["score", text(&pipe), "--classifier", "plain_linear"];
    let child = run::piped(&mut run::command(&[fixtures::dir()], &args));
    refused(&run::outcome(child), &[text(&pipe)]);
}

#[test]
fn a_plugin_file_that_a_saved_file_names_is_not_executed() {
    let two = two();
    let dir = tempfile::tempdir().unwrap();
    let (probe, loaded) = (dir.path().join("libprobe.so"), dir.path().join("loaded"));
    std::fs::copy(fixtures::plugin("probe"), &probe).unwrap();
    let hash: String = Sha256::digest(std::fs::read(&probe).unwrap())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let run = |file: &Path, more: &[&str]| {
        let args = [&["score", text(file)], more].concat();
        let mut host = run::command(&[fixtures::dir()], &args);
        host.env("PLAIN_PROBE_LOADED", &loaded).current_dir(dir.path());
        host.output().unwrap()
    };
    for kind in ["classifier", "purifier"] {
        for named in [text(&probe), "libprobe.so", "./libprobe.so"] {
            let file = changed(&two.files[0], "names.npz", |saved| {
                let mut meta: Value = serde_json::from_str(&saved.meta).unwrap();
                let cell = &mut meta["cell"];
                let mut model = cell["config"]["classifier"].clone();
                (model["name"], model["sha256"]) = (named.into(), hash.clone().into());
                cell["config"][kind] = model;
                cell[kind] = serde_json::json!({ "plugin": named });
                saved.meta = meta.to_string();
            });
            refused(&run(&file, &[]), &["names.npz"]);
            assert!(!loaded.exists(), "the {kind} '{named}' was executed");
        }
    }
    // Named on the command line it is.
    assert!(run(&two.files[0], &["--classifier", text(&probe)]).status.success());
    assert!(loaded.exists());
}
