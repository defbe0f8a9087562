//! Audits of defences that hold and of defences that do not, over real plugins: the verdict, and the check it is due to.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;

use run::{refused, said, text};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

fn audit(more: &[&str]) -> Output {
    let samples: &[&str] = if more.contains(&"--samples") {
        &[]
    } else {
        &["--samples", "64"]
    };
    let args = [&["audit", "--quick", "--format", "json"], samples, more].concat();
    let folders = [fixtures::dir(), plugins::plugin_dir()];
    run::command(&folders, &args).output().unwrap()
}

/// The audit, which came to that verdict and exit code.
fn comes_to(verdict: &str, more: &[&str]) -> Value {
    let output = audit(more);
    let audit: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)));
    assert_eq!(audit["verdict"], verdict, "{}", summary(&audit));
    let code = match verdict {
        "PASS" => 0,
        "SUSPECT" => 3,
        _ => 4,
    };
    assert_eq!(output.status.code(), Some(code));
    audit
}

fn summary(audit: &Value) -> String {
    let findings = audit["findings"].as_array().unwrap();
    let line = |finding: &Value| format!("{} {}: {}", finding["number"], finding["status"], finding["measured"]);
    let lines: Vec<String> = findings.iter().map(line).collect();
    format!("{}\n{}\n{}", audit["reasons"], audit["strongest"], lines.join("\n"))
}

fn finding(audit: &Value, number: u64) -> &Value {
    let findings = audit["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["number"] == number).unwrap()
}

/// The check objects, and says so.
fn objects(audit: &Value, number: u64, says: &str) {
    let finding = finding(audit, number);
    assert_eq!(finding["status"], "objects", "check {number}: {}", summary(audit));
    let measured = finding["measured"].as_str().unwrap();
    assert!(measured.contains(says), "no '{says}' in: {measured}");
    let next = finding["next"].as_str().unwrap();
    assert!(!next.is_empty());
}

const MNIST: [&str; 2] = ["--epsilon", "0.3"];

#[test]
fn a_purifier_without_a_gradient_is_suspect_for_its_zero_gradients() {
    let of = [
        "--classifier",
        "model_d",
        "--purifier",
        "plain_purifier:mode=coarse",
        "--claim",
        "0.9",
    ];
    let audit = comes_to("SUSPECT", &[&of[..], &MNIST].concat());
    objects(&audit, 3, "the gradient of DLR at a random start is zero for");
    objects(&audit, 6, "the gradient of the margin is zero for 32");
    objects(&audit, 20, "stronger than its own rule: identity");
    assert!(
        audit["strongest"]["value"].as_f64().unwrap() < 0.2,
        "{}",
        summary(&audit)
    );
}

#[test]
fn a_purifier_sold_on_oblivious_figures_is_suspect_for_the_transfer() {
    let of = ["--classifier", "model_x", "--purifier", "hgd", "--claim", "0.97"];
    let rests_on = ["--attack", "pgd", "--threat-model", "oblivious", "--samples", "32"];
    let audit = comes_to("SUSPECT", &[&of[..], &MNIST, &rests_on].concat());
    objects(&audit, 10, "the classifier alone was attacked");
    objects(&audit, 13, "the claim rests on the threat model oblivious");
    assert!(
        audit["strongest"]["value"].as_f64().unwrap() < 0.05,
        "{}",
        summary(&audit)
    );
}

#[test]
fn defense_gan_without_bpda_is_suspect_for_its_gradients() {
    let of = [
        "--classifier",
        "model_d",
        "--purifier",
        "defense_gan:steps=1,restarts=1",
        "--claim",
        "0.6",
    ];
    let rests_on = ["--attack", "pgd:steps=10,step_size=0.06", "--backward", "none"];
    let audit = comes_to("SUSPECT", &[&of[..], &MNIST, &rests_on, &["--samples", "8"]].concat());
    objects(&audit, 3, "is zero");
    objects(&audit, 6, "the gradient of the margin is zero for 8");
    objects(
        &audit,
        15,
        "mean cosine of the rule none to differences of the forward pass 0.000",
    );
}

#[test]
fn noise_sold_on_one_draw_is_suspect_for_its_draws() {
    let of = [
        "--classifier",
        "model_d",
        "--purifier",
        "plain_purifier:mode=noisy",
        "--claim",
        "0.6",
    ];
    let audit = comes_to(
        "SUSPECT",
        &[&of[..], &["--epsilon", "0.15", "--attack", "fgsm"]].concat(),
    );
    assert_eq!(finding(&audit, 1)["status"], "note");
    objects(&audit, 14, "gradients of many draws");
    assert_eq!(finding(&audit, 19)["status"], "note");
    let readings = finding(&audit, 19)["measured"].as_str().unwrap();
    assert!(
        readings.contains("by majority of 10 draws") && readings.contains("to one who knows the draw"),
        "{readings}"
    );
}

/// A file of weights for the linear fixture.
fn written(dir: &Path, weight: &[Vec<f32>], bias: &[f32]) -> String {
    let file = dir.join("means.safetensors");
    let numbers = weight.iter().flatten().chain(bias);
    std::fs::write(&file, numbers.flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    text(&file).into()
}

#[test]
fn logits_times_a_thousand_are_suspect_for_their_scale() {
    let (weight, bias) = nearest_mean();
    let dir = tempfile::tempdir().unwrap();
    let loud = format!("plain_linear@{}:mode=loud", written(dir.path(), &weight, &bias));
    let audit = comes_to(
        "SUSPECT",
        &["--classifier", &loud, "--claim", "0.8", "--epsilon", "0.3"],
    );
    objects(
        &audit,
        6,
        "the gradient of the margin is zero for 0, that of cross-entropy in f32 for",
    );
    assert!(
        audit["strongest"]["value"].as_f64().unwrap() < 0.1,
        "{}",
        summary(&audit)
    );
}

#[test]
fn a_claim_on_one_step_is_suspect_for_it() {
    let audit = comes_to(
        "SUSPECT",
        &[
            "--classifier",
            "model_x@it_adv",
            "--claim",
            "0.6",
            "--epsilon",
            "0.42",
            "--attack",
            "fgsm",
        ],
    );
    objects(&audit, 13, "the claim rests on one step");
}

#[test]
fn a_purifier_that_purifies_only_when_it_is_scored_is_suspect_for_that() {
    let of = [
        "--classifier",
        "model_d",
        "--purifier",
        "plain_purifier:mode=remembers",
        "--claim",
        "0.9",
    ];
    let audit = comes_to("SUSPECT", &[&of[..], &MNIST].concat());
    objects(&audit, 16, "under other sample ids");
    objects(&audit, 10, "the whole defence was attacked");
}

#[test]
fn a_backward_that_lies_is_suspect_for_its_angle_and_for_the_rule_that_is_stronger() {
    let of = [
        "--classifier",
        "model_d",
        "--purifier",
        "plain_purifier:mode=flatters",
        "--claim",
        "0.9",
    ];
    let audit = comes_to("SUSPECT", &[&of[..], &MNIST].concat());
    objects(&audit, 15, "mean cosine of the rule custom");
    objects(&audit, 20, "stronger than its own rule: identity");
}

/// Images `[784]` of the sample that is scored with seed 0, with their labels.
fn images(n: usize) -> Vec<(Vec<f32>, usize)> {
    let all = advae_data::load("mnist-1k", None).unwrap().random_subset(n, 0);
    (0..all.len())
        .map(|i| (all.image(i).to_vec(), all.labels[i] as usize))
        .collect()
}

/// Nearest mean: `w_k = m_k`, `b_k = -|m_k|^2 / 2`.
fn nearest_mean() -> (Vec<Vec<f32>>, Vec<f32>) {
    let all = images(1000);
    let mean = |k: usize| {
        let of_class: Vec<&Vec<f32>> = all
            .iter()
            .filter(|(_, label)| *label == k)
            .map(|(image, _)| image)
            .collect();
        (0..784)
            .map(|j| of_class.iter().map(|image| image[j]).sum::<f32>() / of_class.len() as f32)
            .collect()
    };
    let weight: Vec<Vec<f32>> = (0..10).map(mean).collect();
    let bias = weight
        .iter()
        .map(|w| -w.iter().map(|v| v * v).sum::<f32>() / 2.)
        .collect();
    (weight, bias)
}

/// Share of the images that a linear classifier gets right whatever is done to them within the Linf ball and [0, 1]: of every other class
/// the worst case is known pixel by pixel.
fn known_optimum(weight: &[Vec<f32>], bias: &[f32], epsilon: f64, n: usize) -> f64 {
    let all = images(n);
    let stands = |image: &[f32], label: usize, other: usize| {
        let mut lead = f64::from(bias[label]) - f64::from(bias[other]);
        for ((a, b), v) in weight[label].iter().zip(&weight[other]).zip(image) {
            let (w, v) = (f64::from(*a) - f64::from(*b), f64::from(*v));
            lead += w * (v + (-epsilon * w.signum()).clamp(-v, 1. - v));
        }
        lead > 0.
    };
    let robust = all
        .iter()
        .filter(|(image, label)| (0..10).all(|other| other == *label || stands(image, *label, other)));
    robust.count() as f64 / n as f64
}

#[test]
fn a_linear_model_at_its_known_optimum_passes() {
    let (weight, bias) = nearest_mean();
    let dir = tempfile::tempdir().unwrap();
    let optimum = known_optimum(&weight, &bias, 0.1, 64);
    assert!((0.3..0.7).contains(&optimum), "{optimum}");
    let classifier = format!("plain_linear@{}", written(dir.path(), &weight, &bias));
    let of = |claim: f64| comes(&classifier, claim);
    let audit = of(optimum);
    assert_eq!(audit["verdict"], "PASS", "{}", summary(&audit));
    assert_eq!(audit["strongest"]["value"], optimum, "{}", summary(&audit));
    let more = of(optimum + 0.2);
    assert_eq!(more["verdict"], "SUSPECT", "{}", summary(&more));
}

fn comes(classifier: &str, claim: f64) -> Value {
    let claim = claim.to_string();
    let output = audit(&["--classifier", classifier, "--claim", &claim, "--epsilon", "0.1"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
}

#[test]
fn an_adversarially_trained_net_passes_at_its_own_figure_and_is_suspect_ten_points_above() {
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let of = |claim: f64, more: &[&str]| {
        let claim = claim.to_string();
        let what = [
            "--classifier",
            "model_x@it_adv",
            "--epsilon",
            "0.32",
            "--attack",
            "apgd:steps=60",
        ];
        let out = ["--claim", &claim, "--out", text(&rows)];
        let output = audit(&[&what[..], &out, more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
    };
    let own = of(0., &[])["strongest"]["value"].as_f64().unwrap();
    assert!((0.8..0.95).contains(&own), "{own}");
    let lines = samples(&rows);
    // What was measured is not measured again.
    let audit = of(own, &["--resume"]);
    assert_eq!(audit["verdict"], "PASS", "{}", summary(&audit));
    assert_eq!(audit["strongest"]["value"], own);
    assert_eq!(samples(&rows), lines);
    let more = of((own + 0.1).min(1.), &["--resume"]);
    assert_eq!(more["verdict"], "SUSPECT", "{}", summary(&more));
    let reason = more["reasons"][0].as_str().unwrap();
    assert!(reason.starts_with("the strongest attack leaves"), "{reason}");
}

fn samples(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.contains(r#""type":"sample""#)).count()
}

#[test]
fn a_claim_that_is_none_is_refused_with_its_remedy() {
    let model = ["--classifier", "model_d"];
    let told = |more: &[&str]| audit(&[&model[..], more].concat());
    refused(
        &told(&["--claim", "92", "--epsilon", "0.3"]),
        &["--claim is 92", "0.92 for 92 %"],
    );
    refused(
        &told(&["--claim", "x", "--epsilon", "0.3"]),
        &["--claim x is no number"],
    );
    refused(&told(&["--claim", "0.9", "--epsilon", "8"]), &["above 1", "8/255"]);
    refused(&told(&["--claim", "0.9", "--epsilon", "0"]), &["a budget above 0"]);
    let own = ["--claim", "0.9", "--epsilon", "0.3", "--attack"];
    refused(
        &told(&[&own[..], &["pgd:epsilon=0.2"]].concat()),
        &["names a budget of its own"],
    );
    refused(&told(&[&own[..], &["cw"]].concat()), &["takes no budget"]);
    let all = ["--claim", "0.9", "--epsilon", "0.3", "--backward", "all"];
    refused(&told(&all), &["--backward all is no rule that a claim rests on"]);
}
