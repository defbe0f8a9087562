//! Tensors that stay on the device of a model during an attack, on a device that is none: its memory is the host's, under another name.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use advae_abi::info::{Construct, Kind, Target};
use advae_host::plugin::Plugin;
use advae_host::terminal::cancel::Cancel;
use advae_host::terminal::progress::Ticker;
use advae_host::wire::attack::{Attack, Perturbed};
use advae_host::wire::device::Copies;
use advae_host::wire::model::Model;
use advae_host::wire::oracle::{Counts, Meter, Rules, everything};
use advae_host::wire::pipeline::Pipeline;
use advae_host::wire::tensor::{Call, Tensor};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::process::Command;
use std::sync::Arc;

const IDS: [u64; 4] = [3, 1, 4, 15];
/// Of the four images.
const BYTES: u64 = 4 * 784 * 4;

fn settings(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn model(plugin: &str, mode: &str, device: &str) -> Model {
    let request = Construct {
        config: settings(json!({ "mode": mode })),
        device: device.into(),
        ..Construct::default()
    };
    Model::construct(&Plugin::open(&fixtures::plugin(plugin)).unwrap(), &request).unwrap()
}

/// A purifier in front of the classifier, both there.
fn purified(device: &str) -> Pipeline {
    let request = Construct {
        kind: Some(Kind::Purifier),
        device: device.into(),
        ..Construct::default()
    };
    let plugin = Plugin::open(&fixtures::plugin("device_linear")).unwrap();
    let purifier = Model::construct(&plugin, &request).unwrap();
    Pipeline::new(Some(purifier), model("device_linear", "sound", device))
}

fn linear(mode: &str, device: &str) -> Pipeline {
    Pipeline::undefended(model("device_linear", mode, device))
}

fn images() -> Tensor {
    let data = (0..IDS.len() * 784).map(|i| (i * 31 % 97) as f32 / 97.).collect();
    Tensor::new(vec![IDS.len(), 1, 28, 28], data).unwrap()
}

fn rules(target: Pipeline, eot: u64) -> Rules {
    Rules {
        labelled: target.clone(),
        target,
        access: everything(Target::Pipeline),
        seed: 0,
        eot,
        early_stop: true,
        known_ids: None,
        call_threads: 1,
        flags: 0,
        meter: Arc::default(),
        watch: None,
        cancel: Cancel::default(),
    }
}

/// What became of an attack.
struct Attacked {
    result: Result<Perturbed>,
    /// What the host found, whatever the attack made of it.
    error: Option<String>,
    counts: Vec<Counts>,
    copies: Option<Copies>,
}

impl Attacked {
    fn images(self) -> Tensor {
        self.result.unwrap().x_adv
    }
}

fn search(attack: &str, config: Value, rules: Rules) -> Attacked {
    let plugin = Plugin::open(&fixtures::plugin(attack)).unwrap();
    let attack = Attack::construct(&plugin, settings(config)).unwrap();
    let x = images();
    let y = rules.target.forward(&Call::score(0, &IDS), &x).unwrap().argmax();
    let meter: Arc<Meter> = rules.meter.clone();
    let (result, state) = attack.search(&Call::craft(0, &IDS), rules, &x, &y, Ticker::silent());
    Attacked {
        result,
        error: state.first_error().map(|error| error.to_string()),
        counts: IDS.iter().map(|id| meter.of(*id)).collect(),
        copies: state.copies(),
    }
}

fn ascent(mode: &str, steps: u64, target: Pipeline, eot: u64) -> Attacked {
    let config = json!({ "mode": mode, "steps": steps, "epsilon": 0.1 });
    search("device_ascent", config, rules(target, eot))
}

#[test]
fn results_and_counts_are_those_of_the_cpu() {
    for (fault, mode, eot) in [
        ("sound", "sound", 1),
        ("sound", "sound", 3),
        ("flat", "sound", 1),
        ("flat", "saturated", 1),
        ("sound", "detour", 2),
    ] {
        let on_cpu = ascent(mode, 6, linear(fault, "cpu"), eot);
        let on_device = ascent(mode, 6, linear(fault, "cuda:0"), eot);
        assert_eq!((on_cpu.copies, &on_device.error), (None, &None));
        assert_eq!(on_cpu.counts, on_device.counts, "{fault} {mode}");
        assert!(
            on_cpu
                .counts
                .iter()
                .all(|counts| counts.asked == 6 && counts.gradients > 0)
        );
        let zero: Vec<bool> = on_cpu.counts.iter().map(|counts| counts.zero_gradients > 0).collect();
        let all = mode == "saturated";
        assert_eq!(
            zero,
            [all, all || fault == "flat", all, all || fault == "flat"],
            "{fault} {mode}"
        );
        let images = on_device.images();
        assert_eq!(on_cpu.images(), images);
        assert_eq!(images == self::images(), all, "{fault} {mode}");
    }
}

#[test]
fn a_purifier_on_the_device_takes_part() {
    let [on_cpu, on_device] = ["cpu", "cuda:0"].map(|device| ascent("sound", 6, purified(device), 2));
    assert_eq!((on_device.copies.unwrap().uploads, &on_device.error), (1, &None));
    assert_eq!(on_cpu.counts, on_device.counts);
    assert_eq!(on_cpu.images(), on_device.images());
}

#[test]
fn images_cross_twice_an_attack_whatever_the_number_of_steps() {
    for (steps, eot) in [(1, 1), (20, 1), (3, 5)] {
        let twice = Copies {
            uploads: 1,
            uploaded: BYTES,
            downloads: 1,
            downloaded: BYTES,
        };
        assert_eq!(
            ascent("sound", steps, linear("sound", "cuda:0"), eot).copies,
            Some(twice)
        );
    }
    // An attack that asks about images on the CPU has images, logits, cotangents and gradients copied at every step.
    let logits = 4 * 10 * 4;
    let detour = Copies {
        uploads: 1 + 3 * 2,
        uploaded: BYTES + 3 * (BYTES + logits),
        downloads: 1 + 3 * 2,
        downloaded: BYTES + 3 * (logits + BYTES),
    };
    assert_eq!(ascent("detour", 3, linear("sound", "cuda:0"), 1).copies, Some(detour));
}

#[test]
fn what_is_not_finite_is_named_with_its_sample() {
    for (fault, mode, said) in [
        (
            "infinite_gradient",
            "sound",
            "classifier 'plain_device_linear': its gradient for sample 3 is not finite",
        ),
        (
            "nan",
            "sound",
            "classifier 'plain_device_linear': its output for sample 1 is not finite",
        ),
        (
            "sound",
            "steep",
            "the cotangent given to the oracle's tape is not finite or too large for sample 3: the loss must be finite, and its \
             derivative 1e30 at most",
        ),
    ] {
        let rules = rules(linear(fault, "cuda:0"), 1);
        let plugin = Plugin::open(&fixtures::plugin("device_ascent")).unwrap();
        let attack = Attack::construct(&plugin, settings(json!({ "mode": mode, "steps": 3 }))).unwrap();
        let (_, state) = attack.search(&Call::craft(0, &IDS), rules, &images(), &[0; 4], Ticker::silent());
        assert_eq!(state.first_error().unwrap().to_string(), said);
    }
    // On the CPU the host sees it at once.
    let rules = rules(linear("infinite_gradient", "cpu"), 1);
    let plugin = Plugin::open(&fixtures::plugin("device_ascent")).unwrap();
    let attack = Attack::construct(&plugin, Map::new()).unwrap();
    let (_, state) = attack.search(&Call::craft(0, &IDS), rules, &images(), &[0; 4], Ticker::silent());
    assert!(
        state
            .first_error()
            .unwrap()
            .to_string()
            .contains("its gradient for sample 3 contains inf")
    );
}

#[test]
fn an_output_in_another_place_is_refused() {
    let out = ascent("sound", 2, linear("stays_on_the_cpu", "cuda:0"), 1);
    assert_eq!(
        out.error.unwrap(),
        "classifier 'plain_device_linear': a tensor lies on cpu, expected cuda:0"
    );
    assert!(out.result.is_err());
}

#[test]
fn who_knows_no_device_tensors_has_everything_on_the_cpu() {
    let classifier = model("device_linear", "sound", "cuda:0");
    // A purifier that has no device.
    let purifier = model("purifier", "sound", "cpu");
    let pipeline = Pipeline::new(Some(purifier), classifier);
    let out = ascent("sound", 3, pipeline, 1);
    assert_eq!((out.copies, out.error), (None, None));
    out.result.unwrap();
    // An attack that does not take device tensors.
    let noise = search("noise", json!({}), rules(linear("sound", "cuda:0"), 1));
    assert_eq!((noise.copies, noise.error), (None, None));
    // Nor does an examination that looks at every image.
    struct Blind;
    impl advae_host::wire::oracle::Watch for Blind {
        fn seen(&self, _: &[u64], _: &Tensor, _: &Tensor) {}
    }
    let watched = Rules {
        watch: Some(Arc::new(Blind)),
        ..rules(linear("sound", "cuda:0"), 1)
    };
    let out = search("device_ascent", json!({}), watched);
    assert_eq!((out.copies, out.error), (None, None));
}

#[test]
fn a_cancelled_run_ends_at_the_next_question() {
    let rules = rules(linear("sound", "cuda:0"), 1);
    rules.cancel.cancel();
    let plugin = Plugin::open(&fixtures::plugin("device_ascent")).unwrap();
    let attack = Attack::construct(&plugin, Map::new()).unwrap();
    let (result, state) = attack.search(&Call::craft(0, &IDS), rules, &images(), &[0; 4], Ticker::silent());
    assert!(result.is_err() && state.first_error().unwrap().is(advae_abi::ErrorCode::Cancelled));
}

/// Through `eval`, on as many threads as it likes: tensors of the device are freed on the thread that made them, or the process ends.
#[test]
fn an_evaluation_gives_the_same_rows_on_either_device() {
    let eval = |device: &str| {
        let plugin = |name: &str| fixtures::plugin(name).display().to_string();
        let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
            .args([
                "eval",
                "--samples",
                "40",
                "--threads",
                "4",
                "--format",
                "json",
                "--in-process",
                "-vv",
            ])
            .args(["--device", device, "--epsilon", "0.1"])
            .args(["--classifier", &plugin("device_linear")])
            .args(["--threat-model", &plugin("white_box")])
            .args(["--attack", &format!("{}:steps=4", plugin("device_ascent"))])
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{device}: {stderr}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["cells"][0]["robust_accuracy"].clone(), stderr)
    };
    let (on_cpu, _) = eval("cpu");
    let (on_device, said) = eval("cuda:0");
    assert_eq!(on_cpu, on_device);
    let crossed = 40 * 784 * 4;
    let line = format!("1 uploads of {crossed} bytes, 1 downloads of {crossed} bytes");
    assert!(said.contains(&line), "{said}");
}
