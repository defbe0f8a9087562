//! Plugins that crash, hang, exit or eat memory cost their own cells and nothing else: one line each, exit code 2, and the other cells as they
//! are without them.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;
#[path = "common/processes.rs"]
mod processes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SAMPLES: usize = 20;
/// Longer than any of these commands takes, on a machine with other work.
const PATIENCE: Duration = Duration::from_secs(120);

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The outcome of a command that ends.
fn outcome(mut command: Command) -> Output {
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("the host hangs: {}", said(&child.wait_with_output().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// The lines in which the host complains. What the runtime of a plugin prints while it dies is not the host's.
fn complaints(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().filter(|line| line.starts_with("error: "));
    lines.map(String::from).collect()
}

/// Rows of a results file, by the classifier of their cell, without the times they were measured at.
fn rows(path: &Path) -> BTreeMap<String, Vec<serde_json::Value>> {
    let (mut classifiers, mut rows) = (BTreeMap::new(), BTreeMap::<String, Vec<_>>::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["type"] == "cell" {
            classifiers.insert(
                line["key"].as_str().unwrap().to_string(),
                line["classifier"].to_string(),
            );
        } else if line["type"] == "sample" {
            let name = classifiers[line["cell"].as_str().unwrap()].clone();
            for measured in ["at", "crc"] {
                line.as_object_mut().unwrap().remove(measured);
            }
            rows.entry(name).or_default().push(line);
        }
    }
    for rows in rows.values_mut() {
        rows.sort_by_key(|row| row["id"].as_u64());
    }
    rows
}

/// Three classifiers, the second of which misbehaves, in a folder of their own.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("results.jsonl")
    }

    fn eval(&self, bad: Option<&str>, more: &[&str]) -> Command {
        let out = self.out().display().to_string();
        let mut args = vec!["eval", "--classifier", "plain_linear"];
        args.extend(bad.iter().flat_map(|bad| ["--classifier", bad]));
        args.extend(["--classifier", "plain_probe", "--threat-model", "plain_white_box"]);
        args.extend([
            "--attack",
            "plain_noise",
            "--samples",
            "20",
            "--threads",
            "2",
            "--out",
            &out,
        ]);
        args.extend(more);
        command(&args)
    }
}

/// What is measured of the two good classifiers where no bad one stands between them.
fn undisturbed() -> BTreeMap<String, Vec<serde_json::Value>> {
    let scene = Scene::new();
    let output = outcome(scene.eval(None, &[]));
    assert!(output.status.success(), "{}", said(&output));
    let rows = rows(&scene.out());
    assert!(
        rows.len() == 2 && rows.values().all(|rows| rows.len() == SAMPLES),
        "{rows:?}"
    );
    rows
}

/// A misbehaving classifier leads to one line that says this, and the others are measured as ever.
fn costs_its_cell(mode: &str, more: &[&str], says: &str) {
    let scene = Scene::new();
    let bad = format!("plain_probe:mode={mode}");
    let output = outcome(scene.eval(Some(&bad), more));
    assert_eq!(output.status.code(), Some(2), "{mode}: {}", said(&output));
    let lines = complaints(&output);
    assert_eq!(lines.len(), 1, "{mode}: {}", said(&output));
    assert!(
        lines[0].contains(says) && lines[0].contains(mode),
        "{mode}: {}",
        lines[0]
    );
    assert_eq!(rows(&scene.out()), undisturbed(), "{mode}");
    // The report of the file says the same.
    let report = outcome(command(&["report", &scene.out().display().to_string()]));
    assert_eq!(report.status.code(), Some(2), "{mode}: {}", said(&report));
    assert_eq!(complaints(&report), lines, "{mode}");
    assert_eq!(report.stdout, output.stdout, "{mode}: {}", said(&report));
}

#[test]
fn a_segmentation_fault() {
    costs_its_cell(
        "segfault_in_forward",
        &[],
        "killed by SIGSEGV in classifier 'plain_probe', forward",
    );
}

#[test]
fn a_stack_that_overflows() {
    let says = "killed by SIGSEGV in classifier 'plain_probe', forward: its stack overflowed";
    costs_its_cell("overflow_in_forward", &[], says);
}

#[test]
fn an_abort() {
    costs_its_cell(
        "abort_in_forward",
        &[],
        "killed by SIGABRT in classifier 'plain_probe', forward",
    );
}

#[test]
fn exits() {
    let says = "plugin 'libplain_probe.so' ended the process by calling exit, where it should return an error";
    costs_its_cell("exit_in_forward", &[], says);
    let says = "the process was ended with exit code 0 during classifier 'plain_probe' (forward), where an error should be returned";
    costs_its_cell("quit_in_forward", &[], says);
}

#[test]
fn a_plugin_that_eats_memory() {
    let says = "killed by SIGABRT in classifier 'plain_probe', forward, perhaps for lack of memory (--cell-memory allows 512M)";
    costs_its_cell("eat_in_forward", &["--cell-memory", "512M"], says);
}

#[test]
fn plugins_that_hang() {
    for mode in ["hang", "deaf", "stop"] {
        let says = "without progress in classifier 'plain_probe', forward (--cell-timeout allows 2 s)";
        costs_its_cell(&format!("{mode}_in_forward"), &["--cell-timeout", "2"], says);
    }
}

#[test]
fn a_plugin_that_forks_is_heard_once() {
    let scene = Scene::new();
    let output = outcome(scene.eval(Some("plain_probe:mode=fork_in_forward"), &[]));
    assert!(output.status.success(), "{}", said(&output));
    let rows = rows(&scene.out());
    assert_eq!(rows.len(), 3);
    assert!(rows.values().all(|rows| rows.len() == SAMPLES), "{rows:?}");
}

#[test]
fn what_is_lost_is_measured_on_resuming() {
    let scene = Scene::new();
    let bad = "plain_probe:mode=segfault_in_forward";
    assert_eq!(outcome(scene.eval(Some(bad), &[])).status.code(), Some(2));
    let before = rows(&scene.out());
    let output = outcome(scene.eval(Some(bad), &["--resume"]));
    assert_eq!(complaints(&output).len(), 1, "it is tried again: {}", said(&output));
    assert_eq!(rows(&scene.out()), before);
}

#[test]
fn one_that_crashes_before_it_is_asked_anything_is_an_error_of_the_evaluation() {
    let scene = Scene::new();
    let output = outcome(scene.eval(Some("plain_probe:mode=segfault_in_constructor"), &[]));
    assert_eq!(output.status.code(), Some(2));
    let lines = complaints(&output);
    assert_eq!(
        lines,
        ["error: killed by SIGSEGV in classifier 'plain_probe', constructor"],
        "{}",
        said(&output)
    );
    let mut loading = scene.eval(None, &[]);
    loading.env("PLAIN_PROBE_CRASH", "1");
    let lines = complaints(&outcome(loading));
    assert_eq!(lines, ["error: killed by SIGSEGV in plugin 'libplain_probe.so', load"]);
}

#[test]
fn a_sweep_goes_on_behind_an_evaluation_that_cannot_be_begun() {
    let scene = Scene::new();
    let file = scene.dir.path().join("sweep.toml");
    let text = "[[matrix]]\nclassifier = [\"plain_linear\"]\n[[matrix]]\nclassifier = \
                [\"plain_probe:mode=segfault_in_constructor\"]\n[[matrix]]\nclassifier = [\"plain_probe\"]\n";
    let common =
        "[defaults]\nthreat-model = [\"plain_white_box\"]\nattack = [\"plain_noise\"]\nsamples = 20\nthreads = 2\n";
    std::fs::write(&file, format!("{common}{text}")).unwrap();
    let says = "error: evaluation 2: killed by SIGSEGV in classifier 'plain_probe', constructor";
    for launcher in [None, Some("local:2")] {
        let out = scene.dir.path().join(format!("{}.jsonl", launcher.unwrap_or("here")));
        let (file, path) = (file.display().to_string(), out.display().to_string());
        let mut args = vec!["run", &file, "--out", &path];
        args.extend(launcher.iter().flat_map(|launcher| ["--launcher", launcher]));
        let output = outcome(command(&args));
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert_eq!(complaints(&output), [says], "{}", said(&output));
        assert_eq!(rows(&out), undisturbed());
    }
}

#[test]
fn the_doctor_and_the_list_of_plugins_live_on() {
    let output = outcome(command(&["doctor", "plain_probe:mode=segfault_in_forward"]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(
        complaints(&output),
        ["error: killed by SIGSEGV in classifier 'plain_probe', forward"]
    );
    let mut list = command(&["plugins", "plain_probe"]);
    list.env("PLAIN_PROBE_CRASH", "1");
    let output = outcome(list);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(
        complaints(&output),
        ["error: killed by SIGSEGV in plugin 'libplain_probe.so', load"]
    );
    let output = outcome(command(&[
        "doctor",
        "plain_probe:mode=hang_in_forward",
        "--cell-timeout",
        "2",
    ]));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(complaints(&output)[0].contains("without progress in classifier 'plain_probe', forward"));
}

/// Whether a plugin wrote a file and reached a port of this machine.
fn reached_out(more: &[&str]) -> (bool, bool) {
    let scene = Scene::new();
    let (file, images) = (scene.dir.path().join("written"), scene.dir.path().join("images"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let saved = ["--save-adversarial", images.to_str().unwrap()];
    let mut command = scene.eval(
        Some("plain_probe:mode=reach_out_in_forward"),
        &[&saved[..], more].concat(),
    );
    command.env("PLAIN_PROBE_FILE", &file);
    command.env("PLAIN_PROBE_ADDRESS", listener.local_addr().unwrap().to_string());
    let output = outcome(command);
    assert!(output.status.success(), "{}", said(&output));
    // What the host writes is there in any case.
    assert_eq!(std::fs::read_dir(&images).unwrap().count(), 3);
    assert_eq!(rows(&scene.out()).len(), 3);
    (file.is_file(), listener.accept().is_ok())
}

#[test]
#[cfg(target_os = "linux")]
fn a_sandbox_takes_network_and_writing_away() {
    assert_eq!(reached_out(&[]), (true, true));
    assert_eq!(reached_out(&["--sandbox"]), (false, false));
    let listed = outcome(command(&["doctor", "plain_linear", "--sandbox"]));
    let without = outcome(command(&["doctor", "plain_linear"]));
    assert_eq!(listed.status.code(), without.status.code(), "{}", said(&listed));
}

#[test]
fn no_process_is_left_where_the_host_is_killed() {
    let scene = Scene::new();
    let mut host = scene
        .eval(Some("plain_probe:mode=hang_in_forward"), &[])
        .spawn()
        .unwrap();
    let start = Instant::now();
    // Until the good cell is there, and the bad one hangs.
    while !scene.out().is_file() || rows(&scene.out()).values().map(Vec::len).sum::<usize>() < SAMPLES {
        assert!(start.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(10));
    }
    let children = processes::children(host.id());
    assert!(!children.is_empty());
    host.kill().unwrap();
    host.wait().unwrap();
    while children.iter().any(|child| processes::lives(*child)) {
        assert!(start.elapsed() < PATIENCE, "{children:?} live on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Where the program headers and the dynamic section of a shared library lie.
fn headers(file: &[u8]) -> Vec<std::ops::Range<usize>> {
    let word = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let half = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap()) as usize;
    let (start, size, count) = (word(32), half(54), half(56));
    let dynamic = (0..count)
        .map(|i| start + i * size)
        .find(|at| file[*at..*at + 4] == [2, 0, 0, 0]);
    let dynamic = dynamic.unwrap();
    vec![
        start..start + size * count,
        word(dynamic + 8)..word(dynamic + 8) + word(dynamic + 32),
    ]
}

/// `ADVAE_DAMAGED_FILES` files are tried, or 60.
#[test]
fn files_with_damaged_headers_are_one_clean_line_each() {
    let count = std::env::var("ADVAE_DAMAGED_FILES").map_or(60, |count| count.parse().unwrap());
    let whole = std::fs::read(fixtures::plugin("linear")).unwrap();
    let (ranges, dir, mut dice) = (headers(&whole), tempfile::tempdir().unwrap(), Dice(7));
    let mut died = 0;
    for number in 0..count {
        let mut file = whole.clone();
        for _ in 0..=dice.below(4) {
            let range = ranges[dice.below(ranges.len())].clone();
            file[range.start + dice.below(range.len())] = dice.below(256) as u8;
        }
        let path = dir.path().join(format!("damaged{number}.so"));
        std::fs::write(&path, file).unwrap();
        let output = outcome(command(&[
            "plugins",
            &path.display().to_string(),
            "--cell-timeout",
            "20",
        ]));
        let lines = complaints(&output);
        let text = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => assert!(lines.is_empty(), "{number}: {}", said(&output)),
            // What the C library prints while it aborts is not the host's.
            Some(2) => assert_eq!(lines.len(), 1, "{number}: {}", said(&output)),
            _ => panic!("{number}: {}", said(&output)),
        }
        died += usize::from(text.contains("killed by"));
        std::fs::remove_file(path).unwrap();
    }
    assert!(died > 0, "no file killed its process: the damage is too small");
}
