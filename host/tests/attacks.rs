//! Every attack that ships, through its `.so`: whoever shares a batch with a sample, and however many threads there are, must not matter.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use advae_data::npz::Saved;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// Short searches of every kind, by the name of the plugin. Of a budget that half of the images withstand.
const SEARCHES: &[(&str, &[&str])] = &[
    (
        "apgd",
        &[
            "steps=12,restarts=2",
            "norm=l2,steps=12,loss=dlr",
            "steps=8,loss=dlr_targeted,n_target_classes=3",
        ],
    ),
    ("cw", &["iterations=20", "iterations=10,search_steps=2,target=random"]),
    ("ddn", &["steps=20", "steps=20,target=next"]),
    ("deepfool", &["steps=4"]),
    (
        "fab",
        &[
            "steps=5,n_target_classes=2,restarts=2",
            "norm=l2,steps=5,targeted=false",
            "epsilon=null,steps=5,n_target_classes=2,restarts=2",
        ],
    ),
    ("fgsm", &["norm=linf", "norm=l2,target=random"]),
    ("fmn", &["steps=20", "norm=linf,steps=20,target=least_likely"]),
    ("mi_fgsm", &["steps=5", "steps=5,target=random"]),
    ("noise", &["tries=5", "norm=l2,tries=1", "kind=sign,tries=5"]),
    (
        "pgd",
        &[
            "steps=5,restarts=2",
            "norm=l2,steps=5,loss=margin",
            "preset=bim,steps=5,target=next",
        ],
    ),
    ("spsa", &["steps=2,pairs=4", "steps=2,pairs=4,target=next"]),
    (
        "square",
        &["n_queries=30", "norm=l2,n_queries=30", "n_queries=30,target=random"],
    ),
];

/// Adversarial images of every search, by the name of their file.
fn images(batch: &str, threads: &str) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let dir = tempfile::tempdir().unwrap();
    let searches = SEARCHES
        .iter()
        .flat_map(|(name, all)| all.iter().map(move |settings| format!("{name}:{settings}")));
    let attacks: Vec<String> = searches.flat_map(|search| ["--attack".into(), search]).collect();
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args([
            "eval",
            "--classifier",
            "model_d",
            "--threat-model",
            "white_box",
            "--samples",
            "66",
        ])
        .args([
            "--epsilon",
            "linf=0.05",
            "--epsilon",
            "l2=0.6",
            "--batch",
            batch,
            "--threads",
            threads,
        ])
        .args(["--save-adversarial", dir.path().to_str().unwrap()])
        .args(attacks)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let saved = files.map(|file| {
        (
            file.file_name().unwrap().to_string_lossy().into_owned(),
            Saved::read(&file).unwrap(),
        )
    });
    saved.map(|(name, saved)| (name, (saved.ids, saved.images))).collect()
}

#[test]
fn images_depend_neither_on_the_batch_nor_on_the_threads() {
    let one = images("1", "1");
    let searches: usize = SEARCHES.iter().map(|(_, all)| all.len()).sum();
    assert_eq!(one.len(), searches);
    for (batch, threads) in [("7", "1"), ("7", "2"), ("64", "1"), ("64", "2")] {
        for (name, (ids, images)) in images(batch, threads) {
            assert_eq!(ids, one[&name].0, "{name}");
            let len = images.len() / ids.len();
            let same = |i: &usize| images[i * len..(i + 1) * len] == one[&name].1[i * len..(i + 1) * len];
            let other: Vec<usize> = (0..ids.len()).filter(|i| !same(i)).collect();
            assert!(
                other.is_empty(),
                "{name}, batches of {batch}, {threads} threads: samples {other:?} differ"
            );
        }
    }
}

#[test]
fn every_attack_is_among_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/attacks");
    let there: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    // `transfer` searches for nothing: its images come out of a file.
    let searches = SEARCHES.iter().map(|(name, _)| *name);
    assert_eq!(there, searches.chain(["transfer"]).map(String::from).collect());
}
