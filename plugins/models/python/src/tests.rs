//! Processes that speak as a Python does, so that no Python is needed. The Python side has tests of its own (`python/tests`), and the
//! host's tests run both together.

use advae_sdk::candle_core::{Device, Tensor, Var};
use advae_sdk::nn::vjp;
use advae_sdk::prelude::*;

use crate::{PythonClassifier, PythonPurifier, PythonSettings};

/// Settings with a script of this folder as the interpreter.
fn by(script: &str) -> PythonSettings {
    PythonSettings {
        file: InputFile::at("net.py"),
        python: format!("{}/tests/{script}", env!("CARGO_MANIFEST_DIR")),
        ..PythonSettings::default()
    }
}

fn classifier(settings: PythonSettings) -> Result<PythonClassifier> {
    PythonClassifier::new(settings, &Weights::own())
}

fn refused(settings: PythonSettings) -> String {
    classifier(settings).err().unwrap().to_string()
}

fn images() -> Tensor {
    Tensor::arange(0f32, 8., &Device::Cpu)
        .unwrap()
        .reshape((2, 1, 2, 2))
        .unwrap()
}

fn numbers(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn images_go_there_and_outputs_and_gradients_come_back() {
    let model = classifier(by("echoes.sh")).unwrap();
    assert_eq!((model.input(), model.classes()), ([1, 2, 2], 4));
    let x = Var::from_tensor(&images()).unwrap();
    let y = model.forward(&Pass::eval(), &x).unwrap();
    assert_eq!((y.dims(), numbers(&y)), (&[2, 4][..], numbers(&images())));
    let cotangent = (y.detach() + 1.).unwrap();
    for _ in 0..2 {
        let gradient = vjp(&x, &y, &cotangent).unwrap().0.unwrap();
        assert_eq!((gradient.dims(), numbers(&gradient)), (x.dims(), numbers(&cotangent)));
    }
}

#[test]
fn the_normalisation_is_part_of_the_model() {
    let settings = PythonSettings {
        mean: Some(PerChannel::One(1.)),
        std: Some(PerChannel::One(0.5)),
        ..by("echoes.sh")
    };
    let model = classifier(settings).unwrap();
    let x = Var::from_tensor(&images()).unwrap();
    let y = model.forward(&Pass::eval(), &x).unwrap();
    assert_eq!(numbers(&y), [-2., 0., 2., 4., 6., 8., 10., 12.]);
    let gradient = vjp(&x, &y, &y.ones_like().unwrap()).unwrap().0.unwrap();
    assert_eq!(numbers(&gradient), [2.; 8]);
}

#[test]
fn a_process_that_ends_is_told_and_started_again() {
    let model = classifier(by("crashes.sh")).unwrap();
    let error = model.forward(&Pass::eval(), &images()).unwrap_err().to_string();
    assert_eq!(
        error.lines().next().unwrap(),
        "the Python process was ended by signal 11 (SIGSEGV) while it computed (its last line: the last words)"
    );
    // Its first pass is well again.
    let y = model.forward(&Pass::eval(), &images()).unwrap();
    assert_eq!(numbers(&y), numbers(&images()));
}

#[test]
fn a_graph_does_not_outlive_its_process() {
    let model = classifier(by("echoes.sh")).unwrap();
    let x = Var::from_tensor(&images()).unwrap();
    let y = model.forward(&Pass::eval(), &x).unwrap();
    model.end_process();
    let error = vjp(&x, &y, &y.ones_like().unwrap()).unwrap_err().to_string();
    assert!(error.contains("its graph with it"), "{error}");
}

#[test]
fn what_goes_wrong_at_the_start_is_told() {
    let named = |text: &str, script: &str| {
        let said = refused(by(script));
        assert!(said.contains(text), "{script}: {said}");
    };
    named(
        "the Python process ended with exit code 3 while it was loaded",
        "exits.sh",
    );
    named("answered with something else than JSON", "mumbles.sh");
    named("there is no such model", "refuses.sh");
    named("expected a Python of version 3.9 or newer, python=PATH", "no_such.sh");
    let late = refused(PythonSettings {
        timeout: 0.2,
        ..by("sleeps.sh")
    });
    assert!(late.contains("no answer within 0.2 s while it was loaded"), "{late}");
}

#[test]
fn settings_out_of_range_are_refused() {
    let file = || by("echoes.sh");
    for (settings, expected) in [
        (PythonSettings::default(), "no file: name one, python:file=FILE.py"),
        (
            PythonSettings { timeout: 0., ..file() },
            "timeout is 0.0: expected seconds between",
        ),
        (
            PythonSettings { batch: 0, ..file() },
            "batch is 0: expected between 1 and",
        ),
        (
            PythonSettings {
                shape: Some(vec![1, 2]),
                ..file()
            },
            "shape is [1, 2]: expected [channels,rows,columns]",
        ),
        (
            PythonSettings {
                socket: "s".into(),
                ..file()
            },
            "a file and a socket are given: choose one",
        ),
        (
            PythonSettings {
                socket: "/nowhere".into(),
                ..PythonSettings::default()
            },
            "cannot connect to the socket '/nowhere'",
        ),
    ] {
        let said = refused(settings);
        assert!(said.contains(expected), "{said}");
    }
    let seeded = PythonClassifier::new(file(), &Weights::init(1))
        .err()
        .unwrap()
        .to_string();
    assert!(seeded.contains("it cannot begin anew from a seed"), "{seeded}");
}

#[test]
fn a_purifier_gives_images_of_the_shape_it_takes() {
    let purifier = PythonPurifier::new(by("echoes.sh"), &Weights::own()).unwrap();
    let error = purifier.purify(&Pass::eval(), &images()).unwrap_err().to_string();
    assert!(error.contains("it gives [2, 4] for images [2, 1, 2, 2]"), "{error}");
}
