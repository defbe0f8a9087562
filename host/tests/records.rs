//! Models that a record names: by name, never by path, and only the file that the record was made with.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use advae_abi::info::Kind;
use advae_host::experiment::{load_model, load_recorded};
use advae_host::results::ModelConfig;

fn error(recorded: &ModelConfig) -> String {
    match load_recorded(recorded, Kind::Classifier, "cpu") {
        Ok(_) => panic!("{recorded:?} was loaded"),
        Err(error) => format!("{error:#}"),
    }
}

/// The only test of this file: it sets the process's environment.
#[test]
fn a_recorded_model_is_loaded_by_its_name_if_its_file_is_the_recorded_one() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["linear", "probe", "noise"] {
        std::fs::copy(fixtures::plugin(name), dir.path().join(format!("libplain_{name}.so"))).unwrap();
    }
    let loaded = dir.path().join("loaded");
    // SAFETY: no other thread of this process reads or writes the environment meanwhile.
    unsafe {
        std::env::set_var("ADVAE_PLUGIN_PATH", dir.path());
        std::env::set_var("PLAIN_PROBE_LOADED", &loaded);
    }

    let whole = load_model("plain_linear:mode=sound", Kind::Classifier, "cpu", None).unwrap();
    let again = load_recorded(&whole.config, Kind::Classifier, "cpu").unwrap();
    assert_eq!((again.label, again.config), (whole.label, whole.config.clone()));

    let mut path = whole.config.clone();
    path.plugin.name = dir.path().join("libplain_probe.so").display().to_string();
    assert!(error(&path).contains("a path out of a file is never loaded: name the classifier on the command line"));

    let mut other = whole.config.clone();
    other.plugin.name = "plain_probe".into();
    let said = error(&other);
    assert!(
        said.contains("classifier 'plain_probe' is another file than the recorded one"),
        "{said}"
    );
    assert!(said.contains(&whole.config.plugin.sha256), "{said}");
    assert!(!loaded.exists(), "the probe was loaded");

    let mut kind = whole.config.clone();
    kind.plugin.name = "plain_noise".into();
    assert!(error(&kind).contains("is an attack, not a classifier"));

    let mut weights = whole.config;
    weights.weights = "file:00".into();
    assert!(error(&weights).contains("ran with weights from a file: name it on the command line"));
}
