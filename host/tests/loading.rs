//! What the host executes and reads: files that were named, checked and hashed, and the very bytes that were.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use advae_abi::info::{Construct, Kind};
use advae_host::plugin::{Plugin, PluginSpec};
use advae_host::wire::construct::{Wanted, construct, request};
use advae_host::wire::model::Model;
use advae_host::wire::tensor::{Call, Tensor};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder with a copy of a plugin under another name.
fn copied(plugin: &Path, name: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::copy(plugin, &path).unwrap();
    (dir, path)
}

fn classify(model: &Model) -> Vec<f32> {
    let x = Tensor::new(vec![1, 1, 28, 28], vec![0.5; 784]).unwrap();
    model.forward(&Call::score(0, &[0]), &x).unwrap().data
}

fn host(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .current_dir(dir)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE");
    command
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

fn refused(output: &Output, says: &str) {
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.lines().count() == 1 && stderr.contains(says),
        "no '{says}' in: {}",
        said(output)
    );
}

#[test]
fn a_plugin_that_is_overwritten_in_place_still_works() {
    let (_dir, path) = copied(&fixtures::plugin("linear"), "libplain_linear.so");
    let plugin = Plugin::open(&path).unwrap();
    let before = classify(&Model::construct(&plugin, &Construct::default()).unwrap());
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, vec![0; bytes.len()]).unwrap();
    assert_eq!(
        classify(&Model::construct(&plugin, &Construct::default()).unwrap()),
        before
    );
    // Cut to nothing: a mapped file would now end the process by SIGBUS.
    std::fs::write(&path, "").unwrap();
    assert_eq!(
        classify(&Model::construct(&plugin, &Construct::default()).unwrap()),
        before
    );
    // The path stands for what was loaded.
    assert_eq!(Plugin::open(&path).unwrap().sha256, plugin.sha256);
}

#[test]
fn two_plugins_are_loaded_side_by_side() {
    let [linear, probe] = ["linear", "probe"].map(|name| Plugin::open(&fixtures::plugin(name)).unwrap());
    let construct = |plugin| classify(&Model::construct(plugin, &Construct::default()).unwrap());
    assert_ne!(construct(&linear), construct(&probe));
    // A copy is another plugin, with statics of its own.
    let (_dir, path) = copied(&fixtures::plugin("linear"), "copy.so");
    assert_eq!(construct(&Plugin::open(&path).unwrap()), construct(&linear));
}

#[test]
fn a_plugin_finds_its_libraries_in_its_own_folder() {
    let [plugin, helper] = fixtures::beside();
    let (dir, path) = copied(&plugin, "libplain_beside.so");
    std::fs::copy(helper, dir.path().join("libplain_helper.so")).unwrap();
    let plugin = Plugin::open(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    classify(&Model::construct(&plugin, &Construct::default()).unwrap());
    let mut files: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    files.sort();
    assert_eq!(files, ["libplain_beside.so", "libplain_helper.so"]);
}

#[test]
fn weights_are_the_bytes_that_were_hashed() {
    let (dir, path) = copied(&fixtures::plugin("probe"), "libprobe_of_weights.so");
    let file = dir.path().join("w.safetensors");
    std::fs::write(&file, "class 3").unwrap();
    let spec = PluginSpec::parse(&format!("{}@{}", path.display(), file.display())).unwrap();
    let plugin = Plugin::open(&path).unwrap();
    let (request, recorded) = request(&plugin, &spec, &Wanted::on_cpu(Kind::Classifier)).unwrap();
    std::fs::write(&file, "class 4").unwrap();
    let model = Model::construct(&plugin, &request).unwrap();
    assert_eq!(classify(&model)[3], 1.);
    // What is recorded is the hash of "class 3", and what is shown is the user's file.
    assert_eq!(
        recorded,
        "file:3ceac4eec5cac3b227ae2d741d00cce4fcc8f3260ecbfb324b3cb123d4d2a596"
    );
    assert_eq!(model.info().weights, file.display().to_string());
    let changed = construct(&spec, &Wanted::on_cpu(Kind::Classifier)).unwrap();
    assert_eq!(classify(&changed.model)[4], 1.);
    assert_ne!(changed.weights, recorded);
}

#[test]
fn an_error_about_weights_names_the_users_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.safetensors"), "nonsense").unwrap();
    let output = host(dir.path(), &["eval", "--classifier", "plain_probe@w.safetensors"])
        .output()
        .unwrap();
    refused(&output, "classifier 'plain_probe': 'w.safetensors' holds no weights");
}

#[test]
fn weights_are_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("w.safetensors");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = std::thread::spawn(move || std::fs::write(pipe, "class 7").unwrap());
    let args = [
        "eval",
        "--classifier",
        "plain_probe@w.safetensors",
        "--attack",
        "plain_noise",
    ];
    let more = [
        "--threat-model",
        "plain_white_box",
        "--samples",
        "20",
        "--format",
        "json",
    ];
    let output = host(dir.path(), &[&args[..], &more].concat()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    writer.join().unwrap();
}

#[test]
fn paths_with_colons_and_at_signs_are_plugins_and_weights() {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["a:b", "c@d:1"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        std::fs::copy(fixtures::plugin("probe"), dir.path().join(folder).join("libprobe@2.so")).unwrap();
    }
    std::fs::write(dir.path().join("w@2.safetensors"), "class 7").unwrap();
    std::fs::write(dir.path().join("c@d:1/w:3@x.safetensors"), "class 7").unwrap();
    let cell = ["--attack", "plain_noise", "--threat-model", "plain_white_box"];
    for (i, classifier) in [
        "a:b/libprobe@2.so@w@2.safetensors",
        "a:b/libprobe@2.so@w@2.safetensors:mode=sound",
        "c@d:1/libprobe@2.so@c@d:1/w:3@x.safetensors:mode=sound",
        r#""a:b/libprobe@2.so"@"w@2.safetensors":mode=sound"#,
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("rows{i}");
        let args = ["eval", "--classifier", classifier, "--out", &out, "--samples", "5"];
        let output = host(dir.path(), &[&args[..], &cell].concat()).output().unwrap();
        assert!(output.status.success(), "{classifier}: {}", said(&output));
        let rows = std::fs::read_to_string(dir.path().join(out)).unwrap();
        let sevens = rows.matches(r#""clean_prediction":7"#).count();
        assert_eq!(sevens, 5, "{classifier} is not the probe with those weights: {rows}");
    }
}

#[test]
fn a_name_is_never_a_file_of_the_current_folder() {
    let (dir, path) = copied(&fixtures::plugin("probe"), "plain_fgsm");
    let loaded = dir.path().join("loaded");
    let run = |name: &str| {
        let args = [
            "eval",
            "--classifier",
            "plain_linear",
            "--threat-model",
            "plain_white_box",
            "--attack",
            name,
        ];
        host(dir.path(), &args)
            .env("PLAIN_PROBE_LOADED", &loaded)
            .output()
            .unwrap()
    };
    refused(
        &run("plain_fgsm"),
        "for the file of the current folder write './plain_fgsm'",
    );
    assert!(!loaded.exists());
    // A plugin of the search path is not hidden by a file of the same name.
    std::fs::copy(&path, dir.path().join("plain_noise")).unwrap();
    std::fs::copy(&path, dir.path().join("plain_noise.so")).unwrap();
    assert!(run("plain_noise").status.success());
    assert!(!loaded.exists());
    refused(
        &run("./plain_fgsm"),
        "plugin 'plain_fgsm' is a classifier, not an attack",
    );
}

#[test]
fn nothing_is_executed_that_is_not_asked_for_or_is_of_another_kind() {
    let (dir, path) = copied(&fixtures::plugin("probe"), "libprobe.so");
    let loaded = dir.path().join("loaded");
    let run = |args: &[&str], search: &Path| {
        let mut command = host(dir.path(), args);
        command
            .env("PLAIN_PROBE_LOADED", &loaded)
            .env("ADVAE_PLUGIN_PATH", search);
        command.output().unwrap()
    };
    let listing = run(&["plugins"], dir.path());
    let text = String::from_utf8_lossy(&listing.stdout);
    assert!(
        listing.status.success() && text.contains("classifier plain_probe 1.0.0"),
        "{}",
        said(&listing)
    );
    assert!(
        text.ends_with("None of them was loaded. The settings of one: advae-host plugins NAME\n"),
        "{text}"
    );
    // A classifier on the path of the attacks that run by default.
    std::fs::copy(fixtures::plugin("noise"), dir.path().join("libplain_noise.so")).unwrap();
    let linear = fixtures::plugin("linear").display().to_string();
    let white_box = fixtures::plugin("white_box").display().to_string();
    let cell = [
        "eval",
        "--classifier",
        &linear,
        "--threat-model",
        &white_box,
        "--samples",
        "3",
    ];
    let output = run(&cell, dir.path());
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("plain_noise"),
        "{}",
        said(&output)
    );
    let path = path.display().to_string();
    for flag in ["--purifier", "--attack", "--threat-model"] {
        refused(
            &run(&[&cell[..], &[flag, &path]].concat(), dir.path()),
            "give it with --classifier",
        );
    }
    assert!(!loaded.exists(), "the probe was loaded");
    let shown = run(&["plugins", &path, "plain_noise"], dir.path());
    assert!(
        String::from_utf8_lossy(&shown.stdout).contains("epsilon = 0.3   radius of the Linf ball"),
        "{}",
        said(&shown)
    );
    assert_eq!(std::fs::read_to_string(&loaded).unwrap(), "loaded\n");
}
