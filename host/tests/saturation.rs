//! A classifier whose logits are multiplied predicts as before, and is as easy to attack: the attacks' gradient must not
//! underflow where cross-entropy's does.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

const SAMPLES: usize = 200;

/// Model D with its logits times `scale`: those of its last layer.
fn scaled(scale: f32, dir: &Path) -> PathBuf {
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../plugins/classifiers/model_d/weights/clean.safetensors"
    );
    let bytes = std::fs::read(own).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let factor = if name.starts_with("fc3.") { scale } else { 1. };
            let (values, _) = view.data().as_chunks::<4>();
            let values = values
                .iter()
                .flat_map(|v| (f32::from_le_bytes(*v) * factor).to_le_bytes());
            (name.to_owned(), view.shape().to_vec(), values.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, data)| {
        (
            name,
            TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap(),
        )
    });
    let path = dir.join(format!("times_{scale}.safetensors"));
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    path
}

/// How many samples are correct when clean, and under the attack.
fn correct(weights: &Path, purifier: &str, attack: &str) -> [usize; 2] {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args([
            "eval",
            "--threat-model",
            "white_box",
            "--purifier",
            purifier,
            "--attack",
            attack,
        ])
        .args(["--samples", &SAMPLES.to_string()])
        .args(["--classifier", &format!("model_d@{}", weights.display())])
        .args(["--out".as_ref(), out.as_os_str()])
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(out).unwrap();
    let rows: Vec<Value> = (text.lines().map(|line| serde_json::from_str(line).unwrap()))
        .filter(|line: &Value| line["type"] == "sample")
        .collect();
    assert_eq!(rows.len(), SAMPLES);
    ["clean_correct", "robust"].map(|flag| rows.iter().filter(|row| row[flag] == true).count())
}

/// Wilson's 95 % interval of a count among [`SAMPLES`].
fn interval(count: usize) -> [f64; 2] {
    let (n, z) = (SAMPLES as f64, 1.959964);
    let p = count as f64 / n;
    let center = p + z * z / (2. * n);
    let half = z * (p * (1. - p) / n + z * z / (4. * n * n)).sqrt();
    [center - half, center + half].map(|share| share / (1. + z * z / n))
}

#[test]
fn no_scaling_of_logits_changes_what_an_attack_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let weights = [1., 10., 100., 1000.].map(|scale| scaled(scale, dir.path()));
    for (purifier, attack) in [
        ("none", "fgsm"),
        ("none", "pgd"),
        ("none", "pgd:target=next"),
        ("advae", "pgd"),
    ] {
        let [clean, robust] = correct(&weights[0], purifier, attack);
        let [low, high] = interval(robust);
        for weights in &weights[1..] {
            let what = format!("{attack}, purifier {purifier}, {}", weights.display());
            let scaled = correct(weights, purifier, attack);
            assert_eq!(scaled[0], clean, "{what}");
            // No more than the interval of the figure without a factor; of less, no less than both intervals explain.
            assert!(
                scaled[1] as f64 <= high * SAMPLES as f64 && interval(scaled[1])[1] >= low,
                "{what}: {} of {SAMPLES} robust, {robust} without a factor",
                scaled[1]
            );
        }
    }
}
