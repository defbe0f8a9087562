//! Models written in Python through the real binary, where there is a Python with numpy.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

/// Logits `[s, -s]` where `s` is by how much the upper half is brighter: linear, so that FGSM is the strongest attack.
const HALVES: &str = "
import numpy
import os

class Halves:
    calls = 0

    def forward(self, x):
        s = x[:, :, :14].mean((1, 2, 3)) - x[:, :, 14:].mean((1, 2, 3))
        return numpy.stack([s, -s], 1)

    def vjp(self, x, cotangent):
        self.calls += 1
        if os.environ.get('CRASH') and self.calls > 5:
            os.abort()
        slope = numpy.ones_like(x) / (14 * 28)
        slope[:, :, 14:] *= -1
        return slope * (cotangent[:, 0] - cotangent[:, 1])[:, None, None, None]
";

/// Whether the tests can run: they say so where they cannot.
fn no_numpy() -> bool {
    let found = Command::new("python3").args(["-c", "import numpy"]).output();
    let lacking = !found.is_ok_and(|output| output.status.success());
    if lacking {
        eprintln!("skipped: no python3 with numpy");
    }
    lacking
}

struct Run {
    folder: tempfile::TempDir,
    crash: bool,
}

impl Run {
    fn new(crash: bool) -> Run {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("halves.py"), HALVES).unwrap();
        Run { folder, crash }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn spec(&self) -> String {
        format!("python:file={},shape=[1,28,28]", self.path("halves.py"))
    }

    fn host(&self, args: &[&str]) -> Output {
        let mut host = Command::new(env!("CARGO_BIN_EXE_advae-host"));
        host.args(args)
            .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
            .env_remove("VIRTUAL_ENV");
        if self.crash {
            host.env("CRASH", "1");
        }
        host.output().unwrap()
    }

    /// Writes images of a folder a class: the halves differ by 0.1, 0.2 and 0.6.
    fn images(&self) -> String {
        let dir = self.folder.path().join("images");
        for (class, up) in [("0", true), ("1", false)] {
            std::fs::create_dir_all(dir.join(class)).unwrap();
            for (i, gap) in [26u8, 51, 153].into_iter().enumerate() {
                let bright = |row: u32| if (row < 14) == up { 50 + gap } else { 50 };
                let image = image::GrayImage::from_fn(28, 28, |_, row| image::Luma([bright(row)]));
                write_png(&dir.join(class).join(format!("{i}.png")), &image);
            }
        }
        dir.display().to_string()
    }
}

fn write_png(path: &Path, image: &image::GrayImage) {
    let mut encoder = png::Encoder::new(std::fs::File::create(path).unwrap(), image.width(), image.height());
    encoder.set_color(png::ColorType::Grayscale);
    encoder
        .write_header()
        .unwrap()
        .write_image_data(image.as_raw())
        .unwrap();
}

fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    both.concat()
}

#[test]
fn a_linear_model_falls_as_arithmetic_says() {
    if no_numpy() {
        return;
    }
    let run = Run::new(false);
    let (spec, images) = (run.spec(), run.images());
    let args = [
        "eval",
        "--classifier",
        &spec,
        "--dataset",
        &images,
        "--samples",
        "6",
        "--epsilon",
        "0.15",
    ];
    let output = run.host(&[&args[..], &["--attack", "fgsm", "--attack", "pgd", "--format", "json"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    for cell in report["cells"].as_array().unwrap() {
        // A difference of less than 2 epsilon is turned round.
        assert_eq!(cell["clean_correct"], 6, "{cell}");
        assert_eq!(cell["broken"], 4, "{cell}");
        assert_eq!(cell["zero_gradients"], 0.0, "{cell}");
        let hash = &cell["config"]["classifier"]["files"]["file"];
        assert_eq!(hash.as_str().map(str::len), Some(64), "{cell}");
    }
}

#[test]
fn doctor_finds_it_well() {
    if no_numpy() {
        return;
    }
    let run = Run::new(false);
    let output = run.host(&["doctor", &run.spec()]);
    let said = text(&output);
    assert!(output.status.success() && said.contains(" 0 failed"), "{said}");
}

#[test]
fn a_crash_costs_a_cell_and_not_the_run() {
    if no_numpy() {
        return;
    }
    let run = Run::new(true);
    let (spec, images) = (run.spec(), run.images());
    let attacks = ["fgsm", "pgd", "noise"].map(|attack| ["--attack", attack]);
    let args = [
        "eval",
        "--classifier",
        &spec,
        "--dataset",
        &images,
        "--samples",
        "6",
        "--epsilon",
        "0.01",
    ];
    let output = run.host(
        &[
            &args[..],
            attacks.as_flattened(),
            &["--format", "json", "--no-early-stop"],
        ]
        .concat(),
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let failed: Vec<_> = report["cells"]
        .as_array()
        .unwrap()
        .iter()
        .map(|cell| &cell["failed"])
        .collect();
    assert!(failed[0].is_null() && failed[2].is_null(), "{failed:?}");
    let why = failed[1].as_str().unwrap();
    assert!(
        why.contains("the Python process was ended by signal 6 (SIGABRT)"),
        "{why}"
    );
}
