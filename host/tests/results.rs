//! Results files through the real binary: what is kept, what is refused, and that a report needs nothing else.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/run.rs"]
mod run;

use run::{interrupt, outcome, piped, refused, report, said, stderr, stdout, text, until};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::Instant;

/// A host that finds fixtures and the workspace's plugins.
fn command(args: &[&str]) -> Command {
    run::command(&[fixtures::dir(), plugins::plugin_dir()], args)
}

fn host(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn fixture(more: &[&str]) -> Output {
    fixture_of("20", more)
}

/// The same over so many samples.
fn fixture_of(samples: &str, more: &[&str]) -> Output {
    fixture_command(samples, more).output().unwrap()
}

fn fixture_command(samples: &str, more: &[&str]) -> Command {
    let cell = [
        "eval",
        "--classifier",
        "plain_linear",
        "--threat-model",
        "plain_white_box",
    ];
    let attack = ["--attack", "plain_noise", "--samples", samples];
    command(&[&cell[..], &attack, more].concat())
}

/// Cells with warnings: gradients that are zero, a rule that is not the purifier's own.
const WARNED: [&str; 16] = [
    "eval",
    "--classifier",
    "model_d",
    "--purifier",
    "gaussian_blur",
    "--backward",
    "none",
    "--attack",
    "pgd:steps=10",
    "--attack",
    "fgsm",
    "--samples",
    "40",
    "--batch",
    "2",
    "--threads=1",
];

/// Starts the run, and gives it back once its file has that many lines.
fn started(out: &Path, lines: usize, more: &[&str]) -> Child {
    let child = piped(&mut command(&[&WARNED[..], &["--out", text(out)], more].concat()));
    until("the run gets on", || {
        std::fs::read_to_string(out).unwrap_or_default().lines().count() >= lines
    });
    child
}

#[test]
fn the_report_of_an_interrupted_and_resumed_run_is_that_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let undisturbed = host(&WARNED);
    assert!(undisturbed.status.success(), "{}", stderr(&undisturbed));
    let expected = stdout(&undisturbed);
    assert!(expected.contains("of the input gradients are zero"), "{expected}");

    let out = dir.path().join("results.jsonl");
    let mut killed = started(&out, 8, &[]);
    killed.kill().unwrap();
    killed.wait().unwrap();
    let lines = std::fs::read_to_string(&out).unwrap().lines().count();
    let stopped = started(&out, lines + 8, &["--resume"]);
    interrupt(&stopped);
    let stopped = outcome(stopped);
    assert_eq!(stopped.status.code(), Some(130), "{}", stderr(&stopped));
    let kept = rows(&out);
    assert!(
        stderr(&stopped).contains(&format!("stopped: {kept} rows are in")),
        "{}",
        stderr(&stopped)
    );
    assert!((1..160).contains(&kept));

    let resumed = host(&[&WARNED[..], &["--resume", "--out", text(&out)]].concat());
    assert_eq!(stdout(&resumed), expected);
    let report = host(&["report", text(&out)]);
    assert_eq!(stdout(&report), expected);
    assert_eq!(report.status.code(), Some(0));
}

/// Sample lines of a file.
fn rows(path: &Path) -> usize {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.contains("\"type\":\"sample\"")).count()
}

#[test]
fn a_report_prints_every_format_from_the_file_alone_and_every_figure_as_eval_did() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    // Notes, warnings, and a width that has room for the times.
    let more = [
        "--attack",
        "plain_noise:epsilon=0.1",
        "--classifier",
        "plain_linear:mode=probabilities",
        "--purifier",
        "none",
        "--purifier",
        "plain_purifier:mode=escape_codes",
    ];
    let wide = |command: &mut Command| command.env("COLUMNS", "200").output().unwrap();
    for (format, says) in [
        ("table", "plain_linear: mnist-1k, 20 samples, seed 0"),
        (
            "markdown",
            "| plain_linear | none | plain_white_box | plain_noise:epsilon=0.1 | - | Linf 0.1 |",
        ),
        (
            "csv",
            "plain_linear,none,plain_white_box,plain_noise:epsilon=0.1,Linf,0.1,20,",
        ),
        ("json", "\"worst_cases\""),
    ] {
        let _ = std::fs::remove_file(&out);
        let printed = wide(&mut fixture_command(
            "20",
            &[&more[..], &["--format", format, "--out", text(&out)]].concat(),
        ));
        assert!(stdout(&printed).contains(says), "{}", said(&printed));
        assert!(
            stdout(&printed).contains("plain_linear:mode=probabilities"),
            "{}",
            said(&printed)
        );
        let again = wide(&mut command(&["report", text(&out), "--format", format]));
        assert_eq!(stdout(&again), stdout(&printed), "{format}");
        // Notes and warnings are beside the spreadsheet.
        let notes = stderr(&again);
        assert_eq!(notes.contains("warning: "), format == "csv", "{notes}");
        assert!(stderr(&printed).contains(&notes), "{}\n{notes}", said(&printed));
    }
    let missing = host(&["report", "nowhere.jsonl"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("nowhere.jsonl"));
}

#[test]
fn a_flipped_digit_is_named_with_its_line_and_repaired_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let expected = stdout(&fixture(&["--out", text(&out)]));
    let sound = std::fs::read_to_string(&out).unwrap();
    let damaged = sound.replacen("\"robust\":true", "\"robust\":false", 1);
    assert_ne!(sound, damaged);
    std::fs::write(&out, &damaged).unwrap();
    for refused in [
        host(&["report", text(&out)]),
        fixture(&["--resume", "--out", text(&out)]),
    ] {
        assert_eq!(refused.status.code(), Some(2));
        let said = stderr(&refused);
        assert!(
            said.contains("line ") && said.contains("damaged") && said.contains("--repair"),
            "{said}"
        );
    }
    assert_eq!(std::fs::read_to_string(&out).unwrap(), damaged);
    let repaired = fixture(&["--resume", "--repair", "--out", text(&out)]);
    assert_eq!(stdout(&repaired), expected, "{}", stderr(&repaired));
    assert_eq!(stdout(&host(&["report", text(&out)])), expected);
}

#[test]
fn a_larger_resumed_run_writes_its_number_of_samples() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    fixture(&["--out", text(&out)]);
    fixture_of("30", &["--resume", "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&host(&["report", text(&out), "--format", "json"]).stdout).unwrap();
    assert_eq!(report["cells"][0]["samples"], 30);
    assert_eq!(report["unfinished"], Value::Array(vec![]));
}

#[test]
fn a_file_that_is_not_ours_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let (notes, link) = (dir.path().join("notes"), dir.path().join("link"));
    std::fs::write(&notes, "my only copy").unwrap();
    std::os::unix::fs::symlink(&notes, &link).unwrap();
    for path in [&notes, &link] {
        let refused = fixture(&["--resume", "--out", text(path)]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(
            stderr(&refused).contains("first line is not that of a results file"),
            "{}",
            stderr(&refused)
        );
    }
    assert_eq!(std::fs::read_to_string(&notes).unwrap(), "my only copy");
    for path in ["/dev/full", "/dev/null"] {
        let refused = fixture(&["--resume", "--out", path]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains("no regular file"), "{}", stderr(&refused));
    }
}

#[test]
fn a_cell_named_twice_is_measured_and_shown_once() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("results.jsonl");
    let output = fixture(&["--attack", "plain_noise", "--format", "json", "--out", text(&out)]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["cells"].as_array().unwrap().len(), 1);
    assert_eq!(report["worst_cases"].as_array().unwrap().len(), 1);
    assert_eq!(rows(&out), 20);
    assert!(stderr(&output).contains("named twice"), "{}", stderr(&output));
}

#[test]
fn a_failed_cell_has_no_figure() {
    let output = fixture(&["--attack", "plain_noise:mode=panic", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let failed = &report["cells"][1];
    assert!(failed["failed"].as_str().unwrap().contains("panicked"));
    assert_eq!(
        (&failed["robust_accuracy"], &failed["clean_accuracy"]),
        (&Value::Null, &Value::Null)
    );
}

/// Saves adversarial images, and returns the file of the first cell.
fn saved(dir: &Path, more: &[&str]) -> PathBuf {
    let output = fixture(&[&["--save-adversarial", text(dir)], more].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.remove(0)
}

#[test]
fn saved_images_are_not_replaced_by_a_smaller_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = saved(dir.path(), &[]);
    let before = std::fs::read(&file).unwrap();
    let refused = fixture_of("5", &["--save-adversarial", text(dir.path())]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("is there already"), "{}", stderr(&refused));
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

#[test]
fn images_scored_on_another_defence_are_called_a_transfer_and_from_what() {
    let dir = tempfile::tempdir().unwrap();
    let file = saved(dir.path(), &[]);
    let own: Value = serde_json::from_slice(&host(&["score", text(&file), "--format", "json"]).stdout).unwrap();
    assert_eq!(own["cells"][0]["threat_model"], "plain_white_box");
    let args = ["score", text(&file), "--purifier", "gaussian_blur"];
    let other = host(&args);
    let said = stdout(&other);
    assert!(
        said.contains("a transfer: the images were crafted on plain_linear, plain_white_box"),
        "{said}"
    );
    assert!(!said.contains("white_box  "), "{said}");
}

#[test]
fn logits_are_never_written_over_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, logits) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("logits"));
    let file = saved(&a, &[]);
    std::fs::create_dir_all(&b).unwrap();
    let copy = b.join(file.file_name().unwrap());
    std::fs::copy(&file, &copy).unwrap();
    let both = host(&["score", text(&file), text(&copy), "--logits", text(&logits)]);
    assert_eq!(both.status.code(), Some(2));
    assert!(stderr(&both).contains("would both be"), "{}", stderr(&both));
    assert!(
        host(&["score", text(&file), "--logits", text(&logits)])
            .status
            .success()
    );
    let again = host(&["score", text(&file), "--logits", text(&logits)]);
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));
}

/// Label queries of the attack that asks for labels.
fn queries(samples: &str, more: &[&str]) -> u64 {
    let attack = ["--attack", "plain_noise:mode=asks_for_labels", "--format", "json"];
    let output = fixture_of(samples, &[&attack, more].concat());
    assert!(output.status.success(), "{}", said(&output));
    report(&output)["cells"][1]["queries"].as_u64().unwrap()
}

#[test]
fn label_queries_of_a_resumed_run_are_those_of_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    let [whole, cut, grown] = ["whole", "cut", "grown"].map(|name| dir.path().join(name));
    let expected = queries("40", &["--out", text(&whole)]);
    // Every sample is asked about, and some of them twice.
    assert!((41..80).contains(&expected), "{expected}");

    // Killed in the middle of a line of the cell's rows.
    let written = std::fs::read_to_string(&whole).unwrap();
    let row = written.match_indices("\"type\":\"sample\"").nth(60).unwrap().0;
    std::fs::write(&cut, &written[..row + 20]).unwrap();
    assert_eq!(queries("40", &["--resume", "--out", text(&cut)]), expected);

    let fewer = queries("15", &["--out", text(&grown)]);
    assert!(fewer < expected);
    assert_eq!(queries("40", &["--resume", "--out", text(&grown)]), expected);
    for file in [&whole, &cut, &grown] {
        let again = host(&["report", text(file), "--format", "json"]);
        assert_eq!(report(&again)["cells"][1]["queries"], expected);
    }
}

#[test]
fn a_pipe_is_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let at_once = |command: &mut Command| outcome(piped(command));
    for (more, says) in [
        (&["--resume"][..], "no regular file"),
        (&["--resume", "--repair"], "no regular file"),
        (&[], "is there already"),
    ] {
        let mut eval = fixture_command("5", &[&["--out", text(&pipe)], more].concat());
        refused(&at_once(&mut eval), &[text(&pipe), says]);
    }
    let mut again = command(&["report", text(&pipe)]);
    refused(&at_once(&mut again), &[text(&pipe), "no regular file"]);
}

/// Two files of one name in the folders `a` and `b`.
fn namesakes(dir: &Path, name: &str, contents: [Vec<u8>; 2]) {
    for (folder, bytes) in ["a", "b"].into_iter().zip(contents) {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join(name), bytes).unwrap();
    }
}

/// Names in a column of the cells and of the worst cases.
fn named(report: &Value, column: &str) -> [Vec<String>; 2] {
    ["cells", "worst_cases"].map(|part| {
        let rows = report[part].as_array().unwrap().iter();
        rows.map(|row| row[column].as_str().unwrap().to_string()).collect()
    })
}

/// Runs the noise against defences that are named from a folder.
fn eval_in(dir: &Path, defences: &[&str]) -> Output {
    let attack = ["--threat-model", "plain_white_box", "--attack", "plain_noise"];
    let few = ["--samples", "20", "--format", "json"];
    let mut host = command(&[&["eval"], defences, &attack, &few].concat());
    let output = host.current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    output
}

#[test]
fn two_files_of_one_name_have_two_rows_two_worst_cases_and_two_labels() {
    let dir = tempfile::tempdir().unwrap();
    // The same code in two files that differ.
    for name in ["linear", "purifier"] {
        let bytes = std::fs::read(fixtures::plugin(name)).unwrap();
        let other = [&bytes[..], b"another build"].concat();
        namesakes(dir.path(), &format!("lib{name}.so"), [bytes, other]);
    }
    let shown = |column: &str, labels: [&str; 2], defences: &[&str]| {
        let told = report(&eval_in(dir.path(), defences));
        let labels = labels.map(String::from).to_vec();
        assert_eq!(named(&told, column), [labels.clone(), labels]);
        told
    };
    let classifiers = ["--classifier", "a/liblinear.so", "--classifier", "b/liblinear.so"];
    shown("classifier", ["a/linear", "b/linear"], &classifiers);
    let purifiers = ["--purifier", "a/libpurifier.so", "--purifier", "b/libpurifier.so"];
    let defences = [&["--classifier", "plain_linear"], &purifiers[..]].concat();
    shown("purifier", ["a/purifier", "b/purifier"], &defences);

    let class = |class: usize| format!("class {class}").into_bytes();
    namesakes(dir.path(), "w.safetensors", [class(3), class(4)]);
    let weights = ["plain_probe@a/w.safetensors", "plain_probe@b/w.safetensors"];
    let defences = ["--classifier", weights[0], "--classifier", weights[1]];
    let told = shown("classifier", weights, &defences);
    let clean = [0, 1].map(|i| &told["cells"][i]["clean_accuracy"]["value"]);
    assert_ne!(clean[0], clean[1]);
    for (i, clean) in clean.into_iter().enumerate() {
        assert_eq!(told["worst_cases"][i]["robust_accuracy"]["value"], *clean);
    }
}

#[test]
fn two_copies_of_one_file_do_not_become_one_row_without_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(fixtures::plugin("linear")).unwrap();
    namesakes(dir.path(), "libnet.so", [bytes.clone(), bytes]);
    let output = eval_in(
        dir.path(),
        &["--classifier", "a/libnet.so", "--classifier", "b/libnet.so"],
    );
    match named(&report(&output), "classifier").map(|names| names.len()) {
        [2, 2] => {}
        rows => assert!(
            rows == [1, 1] && stderr(&output).contains("named twice"),
            "{}",
            said(&output)
        ),
    }
}

#[test]
fn seconds_are_wall_time_whatever_the_number_of_threads() {
    let start = Instant::now();
    // Eight workers that each sleep for half a second.
    let eight = ["--threads", "8", "--batch", "1", "--format", "json"];
    let output = fixture_of("8", &[&["--attack", "plain_noise:mode=sleeps"], &eight[..]].concat());
    let wall = start.elapsed().as_secs_f64();
    assert!(output.status.success(), "{}", said(&output));
    let cell = &report(&output)["cells"][1];
    let seconds = cell["seconds"].as_f64().unwrap();
    assert!((0.5..=wall).contains(&seconds), "{seconds} of {wall}");
    let rate = cell["images_per_second"].as_f64().unwrap();
    assert!(
        (rate * seconds / 8. - 1.).abs() < 1e-9,
        "{rate} images a second in {seconds}"
    );
}

#[test]
fn the_table_is_printed_where_saved_images_find_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let images = dir.path().join("images");
    let more = [
        "--attack",
        "plain_noise:epsilon=0.1",
        "--save-adversarial",
        text(&images),
    ];
    let inner = fixture_command("20", &more);
    // No file of the process may have more than a few blocks.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", r#"trap "" XFSZ; ulimit -f 4; exec "$@""#, "sh"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    let output = outcome(piped(&mut shell));
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0), "{}", said(&output));
    for says in [
        "plain_linear: mnist-1k, 20 samples, seed 0",
        "epsilon=0.1",
        "worst case of",
    ] {
        assert!(stdout(&output).contains(says), "no '{says}' in: {}", said(&output));
    }
    let named = |line: &str| line.starts_with("error: ") && line.contains(text(&images));
    assert!(stderr(&output).lines().any(named), "{}", said(&output));
}
