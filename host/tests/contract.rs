//! The contract across versions, compilers and dependencies: a plugin built against an older or a newer contract, by
//! another compiler, or without candle, works in `eval`.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/golden.rs"]
mod golden;

use advae_abi::info::Construct;
use advae_host::plugin::Plugin;
use advae_host::wire::model::Model;
use advae_host::wire::tensor::{Call, Tensor};
use std::path::Path;
use std::process::Command;

const START: &str = "    // The contract is append-only";
const END: &str = "    // End of AbiModel.";
const LATER: &str = "    // What later versions append";
const LAST: &str = "    // End of AbiTrainable.";
const EXTRA: &str = "
    /// What a later version appends.
    fn extra(&self, text: RStr<'_>) -> AbiResult<RString> {
        ROk(text.into())
    }
";

/// Runs `eval` with plugins `{prefix}_linear`, `{prefix}_noise` and `{prefix}_white_box`, and returns its JSON.
fn eval(dir: &Path, prefix: &str) -> serde_json::Value {
    let plugin = |name: &str| dir.join(format!("lib{prefix}_{name}.so")).display().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(["eval", "--samples", "20", "--threads", "2", "--format", "json"])
        .args(["--classifier", &plugin("linear")])
        .args(["--threat-model", &plugin("white_box")])
        .args(["--attack", &plugin("noise")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{prefix}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn robust(report: &serde_json::Value) -> &serde_json::Value {
    assert_eq!(report["cells"][0]["samples"], 20);
    &report["cells"][0]["robust_accuracy"]["value"]
}

fn as_today() -> serde_json::Value {
    robust(&eval(fixtures::dir(), "plain")).clone()
}

/// The text without what stands between two lines that begin so; the second one stays.
fn without(text: &str, start: &str, end: &str) -> String {
    let (from, to) = (text.find(start).expect(start), text.find(end).expect(end));
    format!("{}{}", &text[..from], &text[to..])
}

/// Appends a method to the trait whose body `last` is the end of.
fn append(text: &str, last: &str) -> String {
    let at = text.find(last).expect(last) + last.len();
    format!("{}{EXTRA}{}", &text[..at], &text[at..])
}

#[test]
fn a_plugin_of_a_contract_with_one_method_fewer() {
    let dir = golden::build("fewer", |file, text| match file {
        "model.rs" => without(&without(&text, START, END), LATER, LAST),
        "manifest.rs" => text.replacen("\"1.3.0\"", "\"1.0.0\"", 1),
        _ => text,
    });
    assert_eq!(*robust(&eval(&dir, "fewer")), as_today());
    // What the plugin has never heard of has its default.
    let plugin = Plugin::open(&dir.join("libfewer_linear.so")).unwrap();
    let model = Model::construct(&plugin, &Construct::default()).unwrap();
    assert!(!model.on_device(), "its tensors cross by the CPU");
    let error = model
        .features(&Call::score(0, &[0]), &Tensor::zeros(&[1, 1, 28, 28]))
        .unwrap_err();
    assert_eq!(
        format!("{error:#}"),
        "classifier 'fewer_linear': this model exposes no features"
    );
}

#[test]
fn a_plugin_of_a_contract_with_one_method_more() {
    let dir = golden::build("more", |file, text| match file {
        "model.rs" => {
            let text = append(&append(&text, END), LAST);
            append(
                &text,
                "cotangent: AbiTensorRef<'_>) -> AbiResult<ROption<AbiTensor>>;\n",
            )
        }
        "Cargo.toml" | "manifest.rs" => text.replacen("\"1.3.0\"", "\"1.4.0\"", 1),
        "attack.rs" => {
            let text = text.replacen("std_types::{", "std_types::{ROk, RStr, ", 1);
            let text = append(&text, ") -> AbiResult<Taped>;\n");
            append(&text, ") -> AbiResult<Perturbed>;\n")
        }
        _ => text,
    });
    assert_eq!(*robust(&eval(&dir, "more")), as_today());
}

#[test]
fn a_plugin_without_candle() {
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--manifest-path",
            &fixtures::manifest(),
        ])
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(
        tree.contains("advae-abi") && !tree.contains("candle") && !tree.contains("advae-sdk"),
        "{tree}"
    );
    as_today();
}

#[test]
fn a_plugin_of_another_compiler() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/other_rustc.sh");
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("other_rustc");
    let output = Command::new("sh")
        .arg(script)
        .arg(&dir)
        .env("CARGO", env!("CARGO"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.trim();
    match output.status.code() {
        Some(0) => {}
        Some(77) => return println!("skipped: {said}"),
        _ => panic!("{said}\n{}", String::from_utf8_lossy(&output.stderr)),
    }
    let built = dir.join("debug/libplain_linear.so");
    let manifest = std::fs::read(&built).unwrap();
    let ours = advae_abi::RUSTC_VERSION.as_bytes();
    assert!(
        manifest.windows(ours.len()).all(|window| window != ours),
        "{said} is the compiler of the host"
    );
    assert_eq!(*robust(&eval(&dir.join("debug"), "plain")), as_today());
}
