//! `doctor` passes sound plugins and finds what is wrong with the others.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::process::Command;

/// Exit code, and the checklist.
fn doctor(spec: &str) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["doctor", spec])
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(stderr, "", "{spec}");
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// The check that fails, and what it says of it.
fn finds(spec: &str, check: &str, says: &str) {
    let (code, said) = doctor(spec);
    assert_eq!(code, Some(2), "{spec}:\n{said}");
    let line = said
        .lines()
        .find(|line| line.starts_with("FAIL") && line.contains(check));
    let line = line.unwrap_or_else(|| panic!("{spec}: '{check}' does not fail:\n{said}"));
    assert!(line.contains(says), "{spec}: {line}");
}

#[test]
fn sound_plugins_pass() {
    for name in ["plain_linear", "plain_noise", "plain_purifier", "plain_white_box"] {
        let (code, said) = doctor(name);
        assert_eq!(code, Some(0), "{name}:\n{said}");
        assert!(!said.contains("FAIL") && said.contains("0 failed"), "{name}:\n{said}");
    }
}

#[test]
fn a_budget_that_eval_refuses_is_found() {
    finds("pgd:epsilon=8", "description", "the Linf budget 8 is above 1");
}

#[test]
fn an_objective_of_its_own_is_tried() {
    let (code, said) = doctor("defense_gan:steps=2");
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "pass  step                   it learns by its own objective alone (",
        "pass  own objective          measures distance, generator, loss, penalty; update 5 changed the weights, and was taken back",
        // The descent jumps wherever a unit of the generator changes its side.
        "warn  gradient, exact        off by ",
    ] {
        assert!(
            said.lines().any(|said| said.starts_with(line)),
            "no '{line}' in:\n{said}"
        );
    }
}

#[test]
fn a_checklist_says_what_was_measured() {
    let (_, said) = doctor("plain_linear");
    for line in [
        "pass  construction           mode = \"sound\"",
        "pass  shapes                 as promised for batches of [1, 2, 5]",
        "pass  batch                  a row alone and in a batch of 7 give the same bits",
        "pass  tape, twice            ",
        "pass  training               nothing to train",
    ] {
        assert!(
            said.lines().any(|said| said.starts_with(line)),
            "no '{line}' in:\n{said}"
        );
    }
}

#[test]
fn files_that_are_no_plugins() {
    finds("plain_headless", "contract", "is missing");
    finds("plain_linear:mood=bad", "construction", "'mood'");
}

#[test]
fn models_that_break_a_promise() {
    finds(
        "plain_linear:mode=wrong_gradient",
        "gradient, exact",
        "not the derivative",
    );
    finds("plain_linear:mode=batch", "batch", "treat every sample by itself");
    finds("plain_linear:mode=restless", "determinism", "keep no state");
    finds("plain_linear:mode=nan", "shapes", "NaN");
    finds("plain_linear:mode=wrong_shape", "shapes", "an output has shape");
    finds("plain_linear:mode=panicking_forward", "shapes", "plugin panicked");
}

#[test]
fn attacks_that_break_a_promise() {
    finds("plain_noise:mode=over_budget", "images", "over the budget 0.3");
    finds("plain_noise:mode=out_of_bounds", "images", "outside [0, 1]");
    finds("plain_noise:mode=other_shape", "images", "returned images of shape");
    finds("plain_noise:mode=batch", "batch", "treat every sample by itself");
    finds("plain_noise:mode=swallow", "images", "swallowed");
    finds("plain_noise:mode=panic", "images", "plugin panicked");
}

#[test]
fn a_plugin_that_writes_to_what_it_was_lent_fails() {
    for (spec, what) in [
        ("plain_linear:mode=writes", "images"),
        ("plain_linear:mode=writes_ids", "ids"),
        ("plain_purifier:mode=writes", "images"),
        ("plain_purifier:mode=writes_cotangent", "cotangent"),
        ("plain_noise:mode=writes", "images"),
        ("plain_noise:mode=writes_ids", "ids"),
    ] {
        finds(spec, "lent buffers", what);
    }
}

#[test]
fn a_purifier_that_remembers_the_first_image_of_an_id_fails() {
    finds(
        "plain_purifier:mode=remembers",
        "memory",
        "in scoring, an image gives another output",
    );
}

#[test]
fn a_purifier_without_a_derivative_is_told_of_the_other_backward_rules() {
    let advice = "declares `Identity` (BPDA), `Custom` or `None`";
    finds("plain_purifier:mode=detached", "gradient, exact", advice);
    finds("plain_purifier:mode=no_rule", "description", "`Identity` (BPDA)");
}

#[test]
fn targets_and_claims_of_success_are_checked() {
    let targets = |mode: &str, says: &str| finds(&format!("plain_noise:mode={mode}"), "targets", says);
    targets("target_is_label", "is the sample's true label");
    targets("target_is_no_class", "the target 10 is none of the model's 10 classes");
    targets("no_targets", "returns no targets");
    finds(
        "plain_noise:mode=claims",
        "found",
        "7 of 7 found, 7 of which are not adversarial",
    );
    finds(
        "plain_noise:mode=denies",
        "found",
        "0 of 7 found, but 3 of the images given up are adversarial",
    );
    let (_, said) = doctor("plain_noise");
    for line in [
        "pass  targets                none, as it says",
        "pass  found                  it does not say: every image is scored",
    ] {
        assert!(said.contains(line), "no '{line}' in:\n{said}");
    }
}

#[test]
fn logits_that_saturate_cross_entropy_are_warned_of_on_real_images() {
    let (code, said) = doctor("plain_linear:mode=loud");
    assert_eq!(code, Some(0), "{said}");
    let line = said
        .lines()
        .find(|line| line.starts_with("warn  logits"))
        .unwrap_or_else(|| panic!("{said}"));
    assert!(
        line.contains("on 100 images of MNIST") && line.contains("--attack pgd:loss=margin"),
        "{line}"
    );
    assert!(doctor("plain_linear").1.contains("pass  logits "));
}

#[test]
fn a_threat_model_whose_preparation_fails_does_not_pass() {
    let fails = |mode: &str, says: &str| finds(&format!("plain_white_box:mode={mode}"), "preparation", says);
    fails("failing_prepare", "the preparation of a fixture");
    fails("over_limit", "grants 100 label queries, 150 were asked");
    fails("no_substitute", "return one from `prepare`");
}
