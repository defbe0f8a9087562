//! Every setting of every plugin that ships, with absurd values: each gives a result or one clear line, and soon.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longer is never: what is refused takes less than a second, what is accepted a few.
const PATIENCE: Duration = Duration::from_secs(120);
/// Values that no setting can mean, and 0, which some can.
const ABSURD: [&str; 5] = ["0", "-1", "1e300", "18446744073709551615", "nan"];
/// The one setting whose text may be anything: the name of a plugin.
const NAME: &str = "substitute";
/// Folders of `plugins/`, and the option of `eval` that takes what is in them.
const KINDS: [(&str, &str); 4] = [
    ("attacks", "--attack"),
    ("classifiers", "--classifier"),
    ("purifiers", "--purifier"),
    ("threat_models", "--threat-model"),
];

/// A plugin that ships, and the option it is named by.
struct Shipped {
    option: &'static str,
    name: String,
}

fn shipped() -> Vec<Shipped> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins"));
    let named = |(folder, option): (&str, &'static str)| {
        let entries = std::fs::read_dir(root.join(folder)).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        entries
            .map(move |entry| Shipped {
                option,
                name: name(entry),
            })
            .collect::<Vec<_>>()
    };
    KINDS.into_iter().flat_map(named).collect()
}

impl Shipped {
    /// Attacks two images with `setting=value`, everything else being small.
    fn eval(&self, setting: &str, value: &str) -> Output {
        // A classifier of this file would say that it is none; its settings are those of the purifier.
        let (option, file) = match self.name.as_str() {
            "onnx" if setting != "model" => (
                "--purifier",
                concat!("model=", env!("CARGO_MANIFEST_DIR"), "/tests/data/advae.onnx,"),
            ),
            _ => (self.option, ""),
        };
        let spec = format!("{}:{file}{setting}={value}", self.name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        command.args(["eval", "--samples", "2", "--threads", "1", option, &spec]);
        for (other, default) in [
            ("--classifier", "model_d"),
            ("--purifier", "none"),
            ("--attack", "fgsm"),
            ("--threat-model", "white_box"),
        ] {
            if other != option {
                command.args([other, default]);
            }
        }
        command
            .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
            .env_remove("RUST_BACKTRACE");
        output(&mut command, &spec)
    }

    /// Names of its settings, as it lists them when it is given one that it does not have.
    fn settings(&self) -> Vec<String> {
        let said = said(&self.eval("no_such_setting", "1"));
        match said.split_once("its settings are ") {
            Some((_, names)) => names.trim().split(", ").map(str::to_string).collect(),
            None => {
                assert!(said.contains("it has no settings"), "{}: {said}", self.name);
                vec![]
            }
        }
    }

    fn check(&self, setting: &str, value: &str) {
        let spec = format!("{}:{setting}={value}", self.name);
        let output = self.eval(setting, value);
        let said = said(&output);
        match output.status.code() {
            Some(0) => {}
            Some(2) => {
                assert_eq!(said.trim().lines().count(), 1, "{spec}: {said}");
                assert!(said.contains(setting), "{spec} is refused without its name: {said}");
                assert!(
                    said.contains("choose") || said.contains("expected"),
                    "{spec}: no remedy: {said}"
                );
                assert!(!said.contains("panicked") && said.len() < 400, "{spec}: {said}");
            }
            other => panic!("{spec} ends with {other:?}: {said}"),
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the command says, within [`PATIENCE`]; it says little, so that no pipe fills up.
fn output(command: &mut Command, what: &str) -> Output {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("{what} does not end");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn no_value_of_a_setting_ends_the_host_or_never_ends() {
    let plugins = shipped();
    let settings = plugins.iter().flat_map(|plugin| {
        // Without their file they look at nothing else.
        let alone = |name: &String| !["transfer", "python"].contains(&plugin.name.as_str()) || name == "file";
        let names = plugin.settings().into_iter().filter(|name| name != NAME).filter(alone);
        names.map(move |name| (plugin, name))
    });
    let cases: Vec<_> = settings
        .flat_map(|(plugin, name)| ABSURD.map(|value| (plugin, name.clone(), value)))
        .collect();
    assert!(cases.len() > 200, "{} cases", cases.len());
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((plugin, name, value)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            plugin.check(name, value);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
}
