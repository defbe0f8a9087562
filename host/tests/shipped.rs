//! The plugins that ship, on real images, through the real binary.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

fn command(name: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .arg(name)
        .args(args)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir());
    command
}

fn eval(args: &[&str]) -> Output {
    let output = command("eval", args).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output
}

/// Sample rows of a results file by cell and sample, without what differs from run to run.
fn rows(path: &Path) -> BTreeMap<(String, u64), Value> {
    let text = std::fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let samples = lines.filter(|line| line["type"] == "sample").map(|mut row| {
        row.as_object_mut()
            .unwrap()
            .retain(|field, _| !["at", "crc"].contains(&field.as_str()));
        ((row["cell"].to_string(), row["id"].as_u64().unwrap()), row)
    });
    samples.collect()
}

/// Share of the samples for which a row's key is true.
fn share(rows: &BTreeMap<(String, u64), Value>, key: &str) -> f64 {
    rows.values().filter(|row| row[key] == true).count() as f64 / rows.len() as f64
}

fn results(args: &[&str]) -> BTreeMap<(String, u64), Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    eval(&[args, &["--out", path.to_str().unwrap()]].concat());
    rows(&path)
}

#[test]
fn a_denoiser_that_does_not_know_its_attacker_falls_in_white_box() {
    let robust = |threat_model: &str| {
        let cell = [
            "--classifier",
            "model_x",
            "--purifier",
            "hgd",
            "--samples",
            "60",
            "--threat-model",
            threat_model,
        ];
        let attack = ["--attack", "pgd:steps=20,relative_step_size=0.1"];
        share(&results(&[&cell[..], &attack].concat()), "robust")
    };
    let (known, unknown) = (robust("white_box"), robust("oblivious"));
    assert!(known < 0.1 && unknown > 0.9, "{known} {unknown}");
}

#[test]
fn attacks_do_not_depend_on_batches_or_threads() {
    let cell = [
        "--classifier",
        "model_x.so",
        "--purifier",
        "advae.so",
        "--samples",
        "19",
        "--attack",
        "fgsm",
        "--attack",
        "pgd:steps=5,restarts=2",
        "--attack",
        "pgd:norm=l2,steps=5",
        "--attack",
        "cw:iterations=20",
    ];
    let one = results(&[&cell[..], &["--batch", "1", "--threads", "1"]].concat());
    assert_eq!(one.len(), 19 * 4 * 2);
    for layout in [["--batch", "16", "--threads", "2"], ["--batch", "7", "--threads", "1"]] {
        assert_eq!(results(&[&cell[..], &layout].concat()), one, "{layout:?}");
    }
}

#[test]
fn the_shipped_classifiers_are_accurate_and_undefended() {
    for (classifier, accuracy) in [
        ("model_x", 0.985),
        ("model_a", 0.985),
        ("model_b", 0.98),
        ("model_c", 0.985),
        ("model_d", 0.97),
    ] {
        let rows = results(&[
            "--classifier",
            classifier,
            "--attack",
            "pgd:steps=10,relative_step_size=0.1",
            "--samples",
            "400",
        ]);
        assert!(
            share(&rows, "clean_correct") >= accuracy,
            "{classifier} {}",
            share(&rows, "clean_correct")
        );
        assert!(share(&rows, "robust") <= 0.2, "{classifier} {}", share(&rows, "robust"));
    }
}

#[test]
fn advae_withstands_what_breaks_the_classifier_it_was_trained_with() {
    let args = [
        "--classifier",
        "model_x",
        "--purifier",
        "advae",
        "--samples",
        "100",
        "--attack",
        "pgd",
        "--threat-model",
    ];
    let white_box = results(&[&args[..], &["white_box"]].concat());
    let oblivious = results(&[&args[..], &["oblivious"]].concat());
    assert!(share(&white_box, "clean_correct") >= 0.95);
    assert!(share(&white_box, "robust") >= 0.7, "{}", share(&white_box, "robust"));
    assert!(share(&oblivious, "robust") >= share(&white_box, "robust"));
}

/// Ten steps of the paper's length cross a sixth of the ball, and left half of the images.
#[test]
fn few_steps_of_the_default_length_break_an_undefended_network() {
    let cell = [
        "--classifier",
        "model_x",
        "--threat-model",
        "white_box",
        "--samples",
        "100",
    ];
    let rows = results(&[&cell[..], &["--attack", "pgd:steps=10"]].concat());
    assert!(share(&rows, "robust") <= 0.05, "{}", share(&rows, "robust"));
}

#[test]
fn more_steps_and_larger_balls_never_help_the_defence() {
    let robust = |attack: &str| {
        let rows = results(&[
            "--classifier",
            "model_x",
            "--purifier",
            "advae",
            "--threat-model",
            "white_box",
            "--samples",
            "200",
            "--attack",
            attack,
        ]);
        share(&rows, "robust")
    };
    let (few, many) = (robust("pgd:steps=10,step_size=0.01"), robust("pgd:steps=40"));
    assert!(many <= few, "10 steps of 0.01: {few}, 40 of them: {many}");
    // A single long step may find what one walk of short ones does not; several walks find more.
    let (fgsm, restarted) = (robust("fgsm"), robust("pgd:steps=40,restarts=2"));
    assert!(
        restarted <= fgsm && restarted <= many,
        "fgsm {fgsm}, 40 steps {many}, twice {restarted}"
    );
    assert!(
        robust("pgd:epsilon=0.9,steps=20,step_size=0.1") <= 0.2,
        "a ball that holds every image must break the defence"
    );
}

/// Ctrl-C in the middle of a long attack leaves a readable file, and the same command goes on from there.
#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (path, whole) = (dir.path().join("results.jsonl"), dir.path().join("whole.jsonl"));
    let cell = |path: &Path| {
        let path = path.to_str().unwrap().to_string();
        let args = [
            "--classifier",
            "model_d",
            "--samples",
            "300",
            "--threads",
            "1",
            "--batch",
            "4",
            "--attack",
            "cw:iterations=60,abort=false",
            "--out",
        ];
        args.into_iter().map(String::from).chain([path]).collect::<Vec<_>>()
    };
    let text = cell(&path);
    let args: Vec<&str> = text.iter().map(String::as_str).collect();
    let mut running = command("eval", &args).spawn().unwrap();
    let waiting = Instant::now();
    let started = || std::fs::read_to_string(&path).is_ok_and(|text| text.lines().count() > 4);
    while !started() && waiting.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let interrupted = Command::new("kill")
        .args(["-INT", &running.id().to_string()])
        .status()
        .unwrap();
    assert!(interrupted.success());
    assert_eq!(running.wait().unwrap().code(), Some(130));
    let part = rows(&path);
    assert!(!part.is_empty() && part.len() < 300, "{} rows", part.len());

    eval(&[&args[..], &["--resume"]].concat());
    let text = cell(&whole);
    eval(&text.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(rows(&path), rows(&whole));
}

/// Width, height and grey values.
fn picture(path: &Path) -> (usize, usize, Vec<u8>) {
    let file = BufReader::new(File::open(path).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    (frame.width as usize, frame.height as usize, pixels)
}

#[test]
fn a_picture_shows_what_a_purifier_makes_of_images() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    eval(
        &[
            "--classifier",
            "model_d",
            "--threat-model",
            "white_box",
            "--attack",
            "fgsm",
            "--samples",
            "4",
        ]
        .into_iter()
        .chain(["--save-adversarial", images.to_str().unwrap()])
        .collect::<Vec<_>>(),
    );
    let file = std::fs::read_dir(&images).unwrap().next().unwrap().unwrap().path();
    let png = dir.path().join("p.png");
    let purify = |input: &str| {
        let flags = [
            "--purifier",
            "bit_depth:bits=1",
            "--samples",
            "3",
            "--zoom",
            "1",
            "--overwrite",
            "--out",
        ];
        let args = [&flags[..], &[png.to_str().unwrap(), input]].concat();
        let output = command("purify", &args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (picture(&png), String::from_utf8(output.stdout).unwrap())
    };
    let ((width, height, pixels), legend) = purify(file.to_str().unwrap());
    assert_eq!((width, height), (2 + 3 * 30, 2 + 3 * 30));
    assert!(
        legend.contains("adversarial") && legend.contains("from clean"),
        "{legend}"
    );
    // The purified row lies 30 lines under the adversarial one.
    for (y, x) in (32..60).flat_map(|y| (2..30).map(move |x| (y, x))) {
        let (given, purified) = (pixels[y * width + x], pixels[(y + 30) * width + x]);
        assert_eq!(purified, if given > 127 { 255 } else { 0 }, "{x}, {y}: {given}");
    }
    let ((_, height, noise), legend) = purify("--noise");
    assert_eq!(height, 2 + 2 * 30);
    let grey = noise[..32 * width].iter().filter(|v| (1..255).contains(*v)).count();
    assert!(grey > 2000 && legend.contains("noise"), "{grey} {legend}");
}

#[test]
fn every_set_of_kernels_gives_the_same_verdicts_and_an_unknown_one_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cell = [
        "--classifier",
        "model_d",
        "--purifier",
        "none",
        "--attack",
        "fgsm",
        "--samples",
        "40",
    ];
    let run = |kernels: &str| {
        let path = dir.path().join(kernels);
        let mut command = command("eval", &cell);
        command.arg("--out").arg(&path).env("ADVAE_KERNELS", kernels);
        (command.output().unwrap(), path)
    };
    let verdicts = |kernels: &str| {
        let (output, path) = run(kernels);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let verdict = |(key, row): (_, Value)| (key, row["robust"].clone());
        rows(&path).into_iter().map(verdict).collect::<Vec<_>>()
    };
    let portable = verdicts("portable");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        assert_eq!(verdicts("avx2"), portable);
    }
    let (output, _) = run("sse");
    let says = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && says.contains("ADVAE_KERNELS: 'sse' is none of portable, avx2, avx512"),
        "{says}"
    );
}

#[test]
fn a_range_of_budgets_is_a_curve_that_falls() {
    let cell = [
        "--classifier",
        "model_d",
        "--attack",
        "fgsm",
        "--attack",
        "pgd:steps=5",
        "--samples",
        "60",
    ];
    let rows = results(&[&cell[..], &["--epsilon", "0:0.2:0.1"]].concat());
    let mut cells: BTreeMap<String, (usize, usize, f64)> = BTreeMap::new();
    for ((cell, _), row) in &rows {
        let (all, robust, longest) = cells.entry(cell.clone()).or_default();
        *all += 1;
        *robust += usize::from(row["robust"] == true);
        *longest = longest.max(row["linf"].as_f64().unwrap());
    }
    // Budgets by how far the farthest image is; two attacks at each.
    let mut curve: Vec<(f64, usize)> = cells.values().map(|(_, robust, longest)| (*longest, *robust)).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    assert!(curve.len() == 6 && cells.values().all(|(all, ..)| *all == 60));
    for (i, (longest, _)) in curve.iter().enumerate() {
        assert!((longest - 0.1 * (i / 2) as f64).abs() < 1e-6, "{curve:?}");
    }
    let clean = rows.values().filter(|row| row["clean_correct"] == true).count() / 6;
    assert!(
        curve[0].1 == clean && curve[1].1 == clean,
        "a budget of 0 breaks nothing"
    );
    assert!(curve[2].1 < clean && curve[5].1 < curve[2].1, "{curve:?}");
}

#[test]
fn who_knows_the_draw_of_a_random_defence_breaks_more_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("results.jsonl");
    let cell = [
        "--classifier",
        "model_d",
        "--purifier",
        "resize_pad",
        "--threat-model",
        "white_box",
    ];
    let attack = [
        "--attack",
        "pgd",
        "--epsilon",
        "0.05",
        "--samples",
        "60",
        "--known-draw",
    ];
    let images = dir.path().join("images");
    let files = [
        "--out",
        path.to_str().unwrap(),
        "--save-adversarial",
        images.to_str().unwrap(),
    ];
    let output = eval(&[&cell[..], &attack, &files].concat());
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let known = lines.filter(|line| line["type"] == "cell" && line["config"]["known_draw"] == true);
    let known: Vec<Value> = known.collect();
    assert_eq!((known.len(), &known[0]["config"]["draws"]), (1, &Value::from(1)));
    let rows = rows(&path);
    let mean = |key: &Value, known: bool| {
        let of = |row: &&Value| (row["cell"] == *key) == known;
        let robust = |row: &Value| {
            row["draws"]["robust"]
                .as_f64()
                .unwrap_or(f64::from(u8::from(row["robust"] == true)))
        };
        rows.values().filter(of).map(robust).sum::<f64>() / 60.
    };
    let (with, without) = (mean(&known[0]["key"], true), mean(&known[0]["key"], false));
    assert!(with + 0.05 < without, "{with} {without}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("known draw"));
    // Scored again, they meet draws that nobody knew when they were made.
    let key = known[0]["key"].as_str().unwrap();
    let mut files = std::fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path());
    let file = files.find(|file| file.to_string_lossy().contains(key)).unwrap();
    let again = command("score", &[file.to_str().unwrap(), "--format", "json"])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    let config = &report["cells"][0]["config"];
    assert_eq!(
        (&config["draws"], &config["known_draw"]),
        (&Value::from(10), &Value::Null)
    );
}

#[test]
fn images_are_scored_as_a_file_of_eight_bits_holds_them() {
    let dir = tempfile::tempdir().unwrap();
    let cell = [
        "--classifier",
        "model_d",
        "--attack",
        "pgd:steps=7",
        "--threat-model",
        "white_box",
        "--samples",
        "20",
    ];
    eval(
        &[
            &cell[..],
            &["--quantize", "8", "--save-adversarial", dir.path().to_str().unwrap()],
        ]
        .concat(),
    );
    let file = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
    let saved = advae_data::npz::Saved::read(&file).unwrap();
    let level = |v: &f32| (f64::from(*v) * 255. - (f64::from(*v) * 255.).round()).abs() < 1e-4;
    assert!(saved.images.iter().all(level));
    let originals = saved.originals.unwrap();
    let far = saved
        .images
        .iter()
        .zip(&originals)
        .map(|(a, b)| (a - b).abs())
        .fold(0., f32::max);
    assert!(far > 0.29 && far < 0.3 + 0.5 / 255. + 1e-5, "{far}");
    // Half a level beyond the budget, none of them is refused when it is scored again.
    let again = command("score", &[file.to_str().unwrap()]).output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let output = command("eval", &[&cell[..], &["--quantize", "0"]].concat())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("--quantize is 0: give 1 to 16 bits")
    );
}
