//! Warnings as a person meets them: through the binary, from what plugins do.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;

use run::{refused, report, said, stderr, stdout, text};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Output;

fn eval(more: &[&str]) -> Output {
    let args = [&["eval", "--threads", "2"], more].concat();
    let folders = [fixtures::dir(), plugins::plugin_dir()];
    run::command(&folders, &args).output().unwrap()
}

/// The warnings of a run in which nothing went wrong.
fn warnings(more: &[&str]) -> Vec<String> {
    let output = eval(&[more, &["--format", "json"]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let warnings = report(&output)["warnings"].clone();
    let text = |warning: &Value| warning.as_str().unwrap().to_string();
    warnings.as_array().unwrap().iter().map(text).collect()
}

fn has(warnings: &[String], says: &[&str]) -> bool {
    warnings
        .iter()
        .any(|warning| says.iter().all(|text| warning.contains(text)))
}

#[test]
fn a_purifier_that_does_not_beat_the_baselines_is_told_so() {
    let defence = [
        "--classifier",
        "model_x",
        "--purifier",
        "identity",
        "--attack",
        "fgsm",
        "--samples",
        "20",
    ];
    let output = eval(
        &[
            &defence[..],
            &["--threat-model", "white_box", "--baseline", "--format", "json"],
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", said(&output));
    let report = report(&output);
    let cells = report["cells"].as_array().unwrap();
    let shown: Vec<(&str, &str)> = cells
        .iter()
        .map(|cell| (cell["classifier"].as_str().unwrap(), cell["purifier"].as_str().unwrap()))
        .collect();
    assert_eq!(
        shown,
        [("model_x", "identity"), ("model_x", "none"), ("model_x@it_adv", "none")]
    );
    let typed = report["typed_warnings"].as_array().unwrap();
    let rivals: Vec<&str> = typed
        .iter()
        .filter(|warning| warning["kind"] == "no_better")
        .map(|warning| warning["rival"].as_str().unwrap())
        .collect();
    assert_eq!(rivals, ["model_x", "model_x@it_adv"]);
}

/// A defence whose own surrogate leads nowhere.
const FLATTERED: [&str; 8] = [
    "--classifier",
    "model_d",
    "--purifier",
    "plain_purifier:mode=flatters",
    "--threat-model",
    "white_box",
    "--samples",
    "30",
];

#[test]
fn a_surrogate_gradient_that_flatters_is_warned_about_until_every_rule_was_tried() {
    let attack = ["--attack", "fgsm"];
    let own = warnings(&[&FLATTERED[..], &attack].concat());
    let says = [
        "the purifier's own surrogate",
        "the rule identity was not tried",
        "--backward all",
    ];
    assert!(has(&own, &says), "{own:?}");
    let all = warnings(&[&FLATTERED[..], &attack, &["--backward", "all"]].concat());
    assert!(!has(&all, &says[..1]), "{all:?}");
    let stronger = ["plain_purifier:mode=flatters", "this backward rule leaves", "identity"];
    assert!(has(&all, &stronger), "{all:?}");
}

/// Whether each sample stands, under attack and without, by id, in the cell that used this rule.
fn robust(lines: &[Value], rule: &str) -> BTreeMap<u64, bool> {
    let cell = lines.iter().find(|line| line["rule"]["used"] == rule);
    let key = &cell.unwrap_or_else(|| panic!("no cell went by {rule}"))["key"];
    let rows = lines
        .iter()
        .filter(|line| line["type"] == "sample" && line["cell"] == *key);
    let stands = |row: &Value| row["robust"] == true && row["clean_correct"] == true;
    rows.map(|row| (row["id"].as_u64().unwrap(), stands(row))).collect()
}

#[test]
fn the_worst_case_under_all_backward_rules_is_the_least_of_each_sample() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows");
    let defence = ["--classifier", "model_d", "--purifier", "plain_purifier:mode=flatters"];
    let attack = ["--threat-model", "white_box", "--attack", "fgsm", "--backward", "all"];
    let small = ["--epsilon", "0.2", "--samples", "100", "--format", "json"];
    let output = eval(&[&defence[..], &attack, &small, &["--out", text(&out)]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let lines: Vec<Value> = std::fs::read_to_string(&out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (custom, identity) = (robust(&lines, "custom"), robust(&lines, "identity"));
    let count = |stands: &dyn Fn(u64) -> bool| custom.keys().filter(|id| stands(**id)).count();
    let least = count(&|id| custom[&id] && identity[&id]);
    // Either rule breaks samples that the other one does not.
    let single = [count(&|id| custom[&id]), count(&|id| identity[&id])];
    assert!(least < single[0] && least < single[1], "{least} {single:?}");
    let report = report(&output);
    let [worst] = report["worst_cases"].as_array().unwrap().as_slice() else {
        panic!("{report}")
    };
    assert_eq!(worst["samples"], 100);
    let share = worst["robust_accuracy"]["value"].as_f64().unwrap();
    assert_eq!((share * 100.).round() as usize, least, "{worst}");
    let attacks = worst["attacks"].to_string();
    let named = ["fgsm backward=custom", "fgsm backward=identity"].map(|attack| attacks.contains(attack));
    assert_eq!(named, [true; 2], "{attacks}");
}

#[test]
fn a_search_that_cannot_cross_the_ball_is_warned_about_until_one_that_can_stands_beside_it() {
    let short = warnings(&[&FLATTERED[..], &["--attack", "pgd"]].concat());
    let says = ["can move 0.4, but the ball is 0.6 wide", "--attack pgd:step_size=0.03"];
    assert!(has(&short, &says), "{short:?}");
    let both = ["--attack", "pgd", "--attack", "pgd:step_size=0.03"];
    let both = warnings(&[&FLATTERED[..], &both].concat());
    assert!(!has(&both, &["the ball is"]), "{both:?}");
}

#[test]
fn an_attack_whose_gradients_are_zero_is_warned_about() {
    let cell = [
        "--classifier",
        "model_d",
        "--threat-model",
        "plain_white_box",
        "--samples",
        "30",
    ];
    let zero = warnings(&[&cell[..], &["--attack", "plain_noise:mode=no_cotangent,epsilon=0.1"]].concat());
    assert!(has(&zero, &["100.0 % of the input gradients are zero"]), "{zero:?}");
    let none = warnings(&[&cell[..], &["--attack", "plain_noise:epsilon=0.1"]].concat());
    assert!(!has(&none, &["of the input gradients"]), "{none:?}");
}

#[test]
fn a_classifier_that_answers_with_probabilities_is_warned_about() {
    for samples in ["1", "10"] {
        let attack = [
            "--threat-model",
            "plain_white_box",
            "--attack",
            "plain_noise",
            "--samples",
            samples,
        ];
        let with = |mode: &str| {
            let classifier = format!("plain_linear:mode={mode}");
            warnings(&[&["--classifier", &classifier], &attack[..]].concat())
        };
        let says = ["numbers that add up to 1", "return the logits before the softmax"];
        let told = with("probabilities");
        assert!(has(&told, &says), "{samples} samples: {told:?}");
        assert!(!has(&with("sound"), &says[..1]));
    }
}

#[test]
fn a_target_that_is_the_label_or_no_class_is_no_success() {
    for (mode, says) in [
        ("target_is_label", "is the true label"),
        ("target_is_no_class", "its target 10 is none of the 10 classes"),
    ] {
        let attack = format!("plain_noise:mode={mode}");
        let cell = [
            "--classifier",
            "model_d",
            "--threat-model",
            "plain_white_box",
            "--samples",
            "20",
        ];
        let output = eval(&[&cell[..], &["--attack", &attack, "--format", "json"]].concat());
        refused(&output, &[says, mode]);
        let cell = &report(&output)["cells"][0];
        let failed = cell["failed"].is_string();
        assert!(
            failed || (cell["broken"] == 0 && cell["refused"] == 20),
            "{mode}: {cell}"
        );
        if !failed {
            assert!(cell["robust_accuracy"].is_null(), "nothing was attacked: {cell}");
        }
    }
}

#[test]
fn escape_codes_of_a_models_note_never_reach_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("rows");
    let cell = [
        "--classifier",
        "plain_linear",
        "--purifier",
        "plain_purifier:mode=escape_codes",
        "--threat-model",
        "plain_white_box",
        "--attack",
        "plain_noise",
        "--samples",
        "5",
    ];
    let raw = |output: &Output| {
        output
            .stdout
            .iter()
            .chain(&output.stderr)
            .any(|byte| [0x1b, 0x07].contains(byte))
    };
    for format in ["table", "markdown", "csv", "json"] {
        let _ = std::fs::remove_file(&out);
        let output = eval(&[&cell[..], &["--format", format, "--out", text(&out)]].concat());
        assert!(output.status.success(), "{}", said(&output));
        let both = stdout(&output) + &stderr(&output);
        assert!(
            both.contains("trained for a day") && both.contains("u{1b}"),
            "{format}: {both}"
        );
        assert!(!raw(&output), "{format}: {both:?}");
        assert!(!raw(&again(&out, format)), "report, {format}");
    }
}

/// What `report` makes of a file.
fn again(out: &Path, format: &str) -> Output {
    let output = run::command(&[], &["report", text(out), "--format", format])
        .output()
        .unwrap();
    assert!(stdout(&output).len() + stderr(&output).len() > 100, "{}", said(&output));
    output
}

#[test]
fn a_purifier_without_another_rule_is_named_where_all_are_asked_for() {
    let cell = [
        "--classifier",
        "model_d",
        "--threat-model",
        "white_box",
        "--samples",
        "5",
        "--attack",
        "fgsm",
    ];
    let rules = |purifier: &str| {
        let output = eval(&[&cell[..], &["--backward", "all", "--purifier", purifier]].concat());
        assert!(output.status.success(), "{}", said(&output));
        output
    };
    let one = rules("jpeg");
    assert!(
        stderr(&one).contains("note: 'jpeg' has the backward rule identity and no other: --backward all adds nothing"),
        "{}",
        said(&one)
    );
    assert!(
        stdout(&one).contains("gradients through jpeg went by the backward rule identity"),
        "{}",
        said(&one)
    );
    let several = rules("gaussian_blur");
    assert!(!stderr(&several).contains("no other"), "{}", said(&several));
    assert!(stdout(&several).contains("rules exact, identity"), "{}", said(&several));
}

#[test]
fn a_budget_that_makes_every_image_grey_is_warned_about() {
    let cell = [
        "--classifier",
        "model_d",
        "--threat-model",
        "white_box",
        "--samples",
        "10",
        "--attack",
        "fgsm",
    ];
    let hopeless = warnings(&[&cell[..], &["--epsilon", "linf=0.5"]].concat());
    assert!(
        has(&hopeless, &["Linf 0.5 is enough to make 10 of 10 images plain grey"]),
        "{hopeless:?}"
    );
    let usual = warnings(&cell);
    assert!(!has(&usual, &["plain grey"]), "{usual:?}");
}
