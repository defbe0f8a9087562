//! What crosses the boundary to a plugin stays the host's: memory it lends, the thread's floating-point state, ids, and blame.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use advae_abi::info::{Construct, Target};
use advae_abi::{AbiTensorRef, Dims, OracleBox};
use advae_host::plugin::Plugin;
use advae_host::terminal::cancel::Cancel;
use advae_host::terminal::progress::Ticker;
use advae_host::wire::attack::{Attack, Perturbed};
use advae_host::wire::model::Model;
use advae_host::wire::oracle::{Counts, Meter, Oracle, OracleState, Rules, everything};
use advae_host::wire::pipeline::Pipeline;
use advae_host::wire::tensor::{Call, Tensor};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

const IDS: [u64; 4] = [3, 1, 4, 15];

fn mode(mode: &str) -> Map<String, Value> {
    Map::from_iter([("mode".to_string(), json!(mode))])
}

fn model(misbehaves: &str) -> Result<Model> {
    let request = Construct {
        config: mode(misbehaves),
        ..Construct::default()
    };
    Model::construct(&Plugin::open(&fixtures::plugin("linear"))?, &request)
}

fn images() -> Tensor {
    let data = (0..IDS.len() * 784).map(|i| (i % 97) as f32 / 97.).collect();
    Tensor::new(vec![IDS.len(), 1, 28, 28], data).unwrap()
}

/// What an attack and the host's oracle make of four images.
struct Attacked {
    result: Result<Perturbed>,
    state: Arc<OracleState>,
    meter: Arc<Meter>,
}

fn oracle(labels: &[u32]) -> (OracleBox, Arc<OracleState>, Arc<Meter>) {
    let (target, meter) = (
        Pipeline::undefended(model("sound").unwrap()),
        Arc::new(Meter::default()),
    );
    let rules = Rules {
        labelled: target.clone(),
        target,
        access: everything(Target::Pipeline),
        seed: 0,
        eot: 2,
        early_stop: true,
        known_ids: None,
        call_threads: 1,
        flags: 0,
        meter: meter.clone(),
        watch: None,
        cancel: Cancel::default(),
    };
    let (oracle, state) = Oracle::boxed(rules, &IDS, labels, Ticker::silent());
    (oracle, state, meter)
}

fn attack(misbehaves: &str, labels: &[u32]) -> Attacked {
    let attack = Attack::construct(&Plugin::open(&fixtures::plugin("noise")).unwrap(), mode(misbehaves)).unwrap();
    let (oracle, state, meter) = oracle(labels);
    let result = attack.perturb(&Call::craft(0, &IDS), &oracle, &images(), labels);
    Attacked { result, state, meter }
}

fn said<T>(result: Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

/// What the host answers the attack with, in spite of it.
fn refused(misbehaves: &str) -> String {
    attack(misbehaves, &[0; 4])
        .state
        .first_error()
        .expect("an error")
        .to_string()
}

/// On a thread of its own: its floating-point state may be spoilt where a test fails.
fn apart(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(test).join().unwrap());
}

fn bits(x: &Tensor) -> Vec<u32> {
    x.data.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn an_attack_that_writes_into_what_it_was_lent_is_refused_and_nothing_has_changed() {
    for (misbehaves, what) in [
        ("writes_images", "the images it was lent (sample 3: 0 became 1)"),
        ("writes_labels", "the labels it was lent (sample 3: 7 became 0)"),
        ("writes_ids", "the sample ids it was lent (1 became 3)"),
    ] {
        let attack = Attack::construct(&Plugin::open(&fixtures::plugin("noise")).unwrap(), mode(misbehaves)).unwrap();
        let (x, y, ids) = (images(), [7; 4], IDS);
        let error = said(attack.perturb(&Call::craft(0, &ids), &oracle(&y).0, &x, &y));
        assert_eq!(
            error,
            format!("attack 'plain_noise': wrote into {what}: it must compute in memory of its own")
        );
        assert_eq!((bits(&x), y, ids), (bits(&images()), [7; 4], IDS));
    }
}

#[test]
fn a_model_that_writes_into_what_it_was_lent_is_refused_and_nothing_has_changed() {
    let call = Call::score(0, &IDS);
    for (misbehaves, what) in [
        ("writes_images", "the images it was lent (sample 3: "),
        ("writes_ids", "the sample ids it was lent (1 became 3)"),
    ] {
        let (model, x) = (model(misbehaves).unwrap(), images());
        for error in [
            said(model.forward(&call, &x)),
            said(model.forward_tape(&call, &x).map(|_| ())),
        ] {
            assert!(
                error.starts_with(&format!("classifier 'plain_linear': wrote into {what}")),
                "{error}"
            );
        }
        assert_eq!(bits(&x), bits(&images()));
    }
    let (y, tape) = model("writes_cotangent")
        .unwrap()
        .forward_tape(&call, &images())
        .unwrap();
    let error = said(tape.backward(&call, &y));
    assert!(error.contains("wrote into the cotangents it was lent"), "{error}");
}

#[test]
fn an_attack_may_ask_about_a_sample_twice_but_about_no_stranger() {
    let twice = attack("asks_twice", &[0; 4]);
    assert!(twice.result.is_ok() && twice.state.first_error().is_none());
    let error = refused("asks_about_a_stranger");
    let text = "the oracle was asked about sample 1000003, which is none of the batch: ask with the sample ids that perturb is given";
    assert_eq!(error, text);
}

#[test]
fn an_attack_is_blamed_for_what_is_not_finite_in_its_questions() {
    let error = refused("asks_about_nan");
    assert_eq!(
        error,
        "the oracle was asked about an image that contains NaN, for sample 3"
    );
    for (misbehaves, value) in [("infinite_cotangent", "inf"), ("huge_cotangent", "3e38")] {
        let text = format!("the cotangent given to the oracle's tape is {value} for sample 3: the loss must be finite");
        assert!(refused(misbehaves).starts_with(&text), "{}", refused(misbehaves));
    }
}

#[test]
fn a_model_is_blamed_for_a_gradient_that_is_not_finite() {
    let call = Call::craft(0, &IDS);
    let (y, tape) = model("infinite_gradient")
        .unwrap()
        .forward_tape(&call, &images())
        .unwrap();
    let error = said(tape.backward(&call, &y));
    assert_eq!(
        error,
        "classifier 'plain_linear': its gradient for sample 3 contains inf"
    );
}

#[test]
fn a_loss_that_is_saturated_where_the_sample_is_still_correct_counts_as_a_zero_gradient() {
    let mut labels = model("sound")
        .unwrap()
        .forward(&Call::craft(0, &IDS), &images())
        .unwrap()
        .argmax();
    labels[3] += 1;
    let attacked = attack("no_cotangent", &labels);
    assert!(attacked.result.is_ok());
    let saturated = Counts {
        gradients: 1,
        zero_gradients: 1,
        saturated: 1,
        queries: 0,
        asked: 1,
    };
    let counts = IDS.map(|id| attacked.meter.of(id));
    // The last one is misclassified: a loss that is content with that is not saturated.
    let content = Counts {
        asked: 1,
        ..Counts::default()
    };
    assert_eq!(counts, [saturated, saturated, saturated, content]);
}

#[test]
fn label_queries_are_counted_by_sample() {
    let (oracle, _, meter) = oracle(&[0; 4]);
    let ids = [4, 4, 15];
    let (call, x) = (Call::craft(0, &ids), images().select(&[2, 2, 3]));
    let (ctx, dims) = (call.context(), Dims::new(&x.shape));
    let labels = oracle.labels(ctx.lend(&ids), AbiTensorRef::from_slice(&x.data, &dims));
    assert!(labels.into_result().is_ok());
    assert_eq!(IDS.map(|id| meter.of(id).queries), [0, 0, 2, 1]);
    assert_eq!(meter.queries(), 3);
}

#[test]
fn a_plugin_that_changes_the_rounding_changes_no_logit_of_another() {
    for misbehaves in ["rounds_in_constructor", "rounds_in_every_call", "rounds_in_destructor"] {
        apart(|| {
            let (sound, call) = (model("sound").unwrap(), Call::craft(0, &IDS));
            let logits = || bits(&sound.forward(&call, &images()).unwrap());
            let before = logits();
            let rude = model(misbehaves).unwrap();
            assert_eq!(logits(), before, "{misbehaves}: constructor");
            let (y, tape) = rude.forward_tape(&call, &images()).unwrap();
            assert_eq!(logits(), before, "{misbehaves}: forward");
            tape.backward(&call, &y).unwrap();
            assert_eq!(logits(), before, "{misbehaves}: backward");
            drop((rude, tape));
            assert_eq!(logits(), before, "{misbehaves}: destructor");
        });
    }
}

#[test]
fn an_attack_that_changes_the_rounding_is_answered_as_any_other() {
    apart(|| {
        let logits = model("sound")
            .unwrap()
            .forward(&Call::craft(0, &IDS), &images())
            .unwrap();
        let shown = attack("rounds_before_asking", &[0; 4]).result.unwrap().x_adv;
        for i in 0..IDS.len() {
            assert_eq!(shown.row(i)[..10], *logits.row(i));
        }
        assert_eq!(
            std::hint::black_box(1f32) / std::hint::black_box(3.),
            0.333_333_34,
            "rounded toward zero"
        );
    });
}

#[test]
fn shapes_that_no_memory_holds_are_refused_before_anything_is_copied() {
    let call = Call::craft(0, &IDS);
    let huge = "has shape [1073741824, 1, 28, 28], expected";
    let error = said(model("huge_output").unwrap().forward(&call, &images()));
    assert_eq!(error, format!("classifier 'plain_linear': an output {huge} [4, 10]"));
    let (y, tape) = model("huge_gradient").unwrap().forward_tape(&call, &images()).unwrap();
    let error = said(tape.backward(&call, &y));
    assert_eq!(
        error,
        format!("classifier 'plain_linear': a gradient {huge} [4, 1, 28, 28]")
    );
    let error = said(attack("huge_images", &[0; 4]).result);
    let text =
        "attack 'plain_noise' returned images of shape [1073741824, 1, 28, 28] for images of shape [4, 1, 28, 28]";
    assert_eq!(error, text);
    let error = said(model("null_output").unwrap().forward(&call, &images()));
    assert!(error.starts_with("classifier 'plain_linear': "), "{error}");
}

#[test]
fn a_description_that_no_model_or_attack_can_have_is_refused() {
    let error = said(model("huge_input"));
    assert!(
        error.contains("images of shape [16384, 16384, 16384]: each extent must be 1 to 4096"),
        "{error}"
    );
    let error = said(model("other_bounds"));
    assert!(
        error.contains("pixels in [-1.0, 1.0]: this host's lie in [0, 1]"),
        "{error}"
    );
    let noise = Plugin::open(&fixtures::plugin("noise")).unwrap();
    let error = said(Attack::construct(&noise, mode("announces_for_ever")));
    assert!(
        error.contains("announces 18446744073709551615 oracle passes a sample"),
        "{error}"
    );
}

fn host(args: &[&str]) -> Command {
    let mut host = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    host.args(args)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE");
    host
}

const CELL: [&str; 7] = [
    "eval",
    "--samples",
    "10",
    "--threads",
    "1",
    "--threat-model",
    "plain_white_box",
];

/// The rows of the sound classifier, without what differs from run to run.
fn rows(out: &Path, classifiers: &[&str]) -> Vec<Value> {
    let mut eval = host(&CELL);
    eval.args(["--attack", "plain_noise", "--out"]).arg(out);
    classifiers.iter().for_each(|classifier| {
        eval.args(["--classifier", classifier]);
    });
    let output = eval.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(out).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sound = lines
        .iter()
        .find(|line| line["classifier"] == serde_json::json!({ "plugin": "plain_linear" }))
        .expect("a header")["key"]
        .clone();
    let mut rows: Vec<Value> = lines
        .into_iter()
        .filter(|line| line["cell"] == sound && line["id"].is_u64())
        .collect();
    // Times differ from run to run.
    let timeless = |row: &mut Value| {
        row.as_object_mut()
            .unwrap()
            .retain(|field, _| !["at", "crc"].contains(&field.as_str()))
    };
    rows.iter_mut().for_each(timeless);
    rows.sort_by_key(|row| row["id"].as_u64());
    assert_eq!(rows.len(), 10);
    rows
}

#[test]
fn a_constructor_that_changes_the_rounding_changes_no_row_of_another_classifier() {
    let dir = tempfile::tempdir().unwrap();
    let alone = rows(&dir.path().join("alone"), &["plain_linear"]);
    let beside = rows(
        &dir.path().join("beside"),
        &["plain_linear:mode=rounds_in_constructor", "plain_linear"],
    );
    assert_eq!(alone, beside);
}

#[cfg(unix)]
#[test]
fn the_first_ctrl_c_says_what_it_waits_for_and_the_second_ends_the_process_at_once() {
    let interrupt = |pid: u32| {
        assert!(
            Command::new("kill")
                .args(["-INT", &pid.to_string()])
                .status()
                .unwrap()
                .success()
        );
    };
    let mut child = host(&CELL)
        .args(["--classifier", "plain_linear", "--attack", "plain_noise:mode=waits"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap())
        .lines()
        .map(|line| line.unwrap());
    assert_eq!(lines.next().as_deref(), Some("a fixture waits"));
    interrupt(child.id());
    let line = "stopping: waiting for attack 'plain_noise' (perturb) to return; Ctrl-C again ends at once";
    assert_eq!(lines.next().as_deref(), Some(line));
    interrupt(child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(lines.next(), None);
}

#[test]
fn escape_codes_of_plugins_never_reach_the_terminal() {
    for cell in [
        [
            "--classifier",
            "plain_linear:mode=escape_codes",
            "--attack",
            "plain_noise",
        ],
        [
            "--classifier",
            "plain_linear",
            "--attack",
            "plain_noise:mode=escape_codes",
        ],
        ["--classifier", "plain\u{1b}[2J", "--attack", "plain_noise"],
    ] {
        let output = host(&CELL).args(cell).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("\\u{1b}") && !stderr.contains('\u{1b}'), "{stderr}");
        assert!(!String::from_utf8(output.stdout).unwrap().contains('\u{1b}'));
    }
}

#[test]
fn escape_codes_in_the_name_of_a_plugin_are_shown() {
    let (dir, mut file) = (
        tempfile::tempdir().unwrap(),
        std::fs::read(fixtures::plugin("linear")).unwrap(),
    );
    let (from, to) = (br#""name":"plain_linear""#, br#""name":"\u001b[2Jabc""#);
    let at = file.windows(from.len()).position(|window| window == from).unwrap();
    file[at..at + to.len()].copy_from_slice(to);
    std::fs::write(dir.path().join("libnamed.so"), file).unwrap();
    let output = host(&["plugins"])
        .env("ADVAE_PLUGIN_PATH", dir.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("classifier \\u{1b}[2Jabc 1.0.0"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'));
}
