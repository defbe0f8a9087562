//! Weight files with other names and orders of axes, read by a map.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::path::Path;
use std::process::{Command, Output};

fn eval(dir: &Path, classifier: &str) -> Output {
    let args = [
        "eval",
        "--attack",
        "fgsm",
        "--samples",
        "50",
        "--format",
        "csv",
        "--classifier",
        classifier,
    ];
    Command::new(env!("CARGO_BIN_EXE_advae-host"))
        .args(args)
        .current_dir(dir)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .env_remove("RUST_BACKTRACE")
        .output()
        .unwrap()
}

/// Model D's weights as another framework could have them: `head/` in front of the names, matrices as `[in, out]`.
fn foreign(path: &Path) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/classifiers/model_d/weights/clean.safetensors");
    let bytes = std::fs::read(own).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let changed: Vec<(String, Vec<usize>, Vec<u8>)> = file.iter().map(changed).collect();
    let views = changed.iter().map(|(name, shape, data)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn changed((name, view): (&str, TensorView<'_>)) -> (String, Vec<usize>, Vec<u8>) {
    let (name, data) = (format!("head/{name}"), view.data().to_vec());
    let &[rows, columns] = view.shape() else {
        return (name, view.shape().to_vec(), data);
    };
    let (numbers, _) = data.as_chunks::<4>();
    let transposed = (0..columns).flat_map(|c| (0..rows).map(move |r| numbers[r * columns + c]));
    (name, vec![columns, rows], transposed.flatten().collect())
}

#[test]
fn a_map_reads_what_another_framework_wrote() {
    let dir = tempfile::tempdir().unwrap();
    foreign(&dir.path().join("net.safetensors"));
    // One of its matrices is square.
    let map = "\"*\" = \"head/*\"\n\"fc2.weight\" = { tensor = \"head/fc2.weight\", axes = [1, 0] }\n";
    std::fs::write(dir.path().join("keys.toml"), map).unwrap();
    let read = eval(dir.path(), "model_d@net.safetensors?map=keys.toml");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(read.status.success(), "{}", text(&read.stderr));
    let figures = |output: &Output| {
        let csv = text(&output.stdout);
        let row = csv.lines().nth(1).unwrap().to_string();
        // Behind the names: everything but the time.
        let columns: Vec<String> = row.split(',').skip(1).take(8).map(String::from).collect();
        columns
    };
    assert_eq!(figures(&read), figures(&eval(dir.path(), "model_d")));
    assert!(
        text(&read.stdout).contains("model_d@net.safetensors?map=keys.toml"),
        "{}",
        text(&read.stdout)
    );
}

#[test]
fn a_file_that_does_not_fit_is_refused_with_a_map_that_could() {
    let dir = tempfile::tempdir().unwrap();
    foreign(&dir.path().join("net.safetensors"));
    let refused = eval(dir.path(), "model_d@net.safetensors");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let (line, map) = said.split_once('\n').unwrap();
    assert!(
        line.contains("by shapes this map could be right, a file for @FILE?map=MAP.toml"),
        "{said}"
    );
    // What it proposes is a map that fits.
    std::fs::write(dir.path().join("keys.toml"), map).unwrap();
    let read = eval(dir.path(), "model_d@net.safetensors?map=keys.toml");
    assert!(read.status.success(), "{map}{}", String::from_utf8_lossy(&read.stderr));
}

#[test]
fn faults_of_a_map_are_named() {
    let dir = tempfile::tempdir().unwrap();
    foreign(&dir.path().join("net.safetensors"));
    let spec = "model_d@net.safetensors?map=keys.toml";
    for (map, expected) in [
        ("\"a\" = 3\n", "'a' is 3: expected the name of a tensor"),
        ("\"*\" = \"nothing\"\n", "a '*' stands once on both sides or on none"),
        (
            "\"a\" = \"b\"\n",
            "the map names 'b', which the weight file does not have",
        ),
        ("no map\n", "the map 'keys.toml' is no TOML: expected lines"),
    ] {
        std::fs::write(dir.path().join("keys.toml"), map).unwrap();
        let refused = eval(dir.path(), spec);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(expected), "{said}");
    }
    std::fs::remove_file(dir.path().join("keys.toml")).unwrap();
    let said = String::from_utf8_lossy(&eval(dir.path(), spec).stderr).into_owned();
    assert!(said.contains("cannot read the map 'keys.toml'"), "{said}");
}
