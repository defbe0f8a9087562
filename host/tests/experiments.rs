//! Experiment files through the real binary: whole, in parts, in several processes, and after a kill.
#![allow(clippy::unwrap_used)]

#[path = "common/plugins.rs"]
mod plugins;
#[path = "common/processes.rs"]
mod processes;

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const SWEEP: &str = "
[defaults]
samples = 12
threat-model = \"white_box\"

[[matrix]]
classifier = [\"model_d\", \"model_x\"]
purifier = [\"none\", \"bit_depth\"]
attack = [\"fgsm\", \"pgd:steps=5\"]
epsilon = [0.1, 0.3]
exclude = [{ classifier = \"model_x\", purifier = \"bit_depth\" }]

[[matrix]]
classifier = \"model_d\"
attack = \"autoattack\"
epsilon = 0.2
";
/// Of the first matrix, and the stages of AutoAttack.
const CELLS: usize = 3 * 2 * 2 + 4;

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .current_dir(dir)
        .env("ADVAE_PLUGIN_PATH", plugins::plugin_dir())
        .env_remove("RUST_BACKTRACE");
    command
}

fn host(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().unwrap()
}

fn text(output: &Output) -> String {
    let both = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    both.concat()
}

fn sweep() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("sweep.toml"), SWEEP).unwrap();
    dir
}

/// The figures of a results file by cell, without times.
fn figures(dir: &Path, file: &str) -> Vec<String> {
    let output = host(dir, &["report", file, "--format", "json"]);
    assert!(output.status.success(), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["unfinished"], serde_json::json!([]));
    let figures = |cell: &Value| {
        let keys = [
            "key",
            "samples",
            "clean_accuracy",
            "robust_accuracy",
            "broken",
            "l2",
            "linf",
            "asked",
        ];
        keys.map(|key| cell[key].to_string()).join(" ")
    };
    let mut all: Vec<String> = report["cells"].as_array().unwrap().iter().map(figures).collect();
    all.extend([report["warnings"].to_string()]);
    all.sort();
    all
}

fn measured(dir: &Path, args: &[&str]) -> String {
    let output = host(dir, args);
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

#[test]
fn parts_and_processes_find_what_one_process_finds() {
    let dir = sweep();
    let dir = dir.path();
    measured(dir, &["run", "sweep.toml"]);
    let whole = figures(dir, "sweep.jsonl");
    assert_eq!(whole.len(), CELLS + 1);
    // Again: everything is there.
    let lines = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap().lines().count();
    let before = lines("sweep.jsonl");
    measured(dir, &["run", "sweep.toml"]);
    assert_eq!(lines("sweep.jsonl"), before + 1, "one line for the run itself");

    measured(
        dir,
        &["run", "sweep.toml", "--launcher", "local:3", "--out", "local.jsonl"],
    );
    assert_eq!(figures(dir, "local.jsonl"), whole);

    // More parts than an evaluation has cells: samples are shared out.
    let parts: Vec<String> = (1..=9).map(|i| format!("{i}/9")).collect();
    for part in &parts {
        let said = measured(dir, &["run", "sweep.toml", "--shard", part, "--out", "part.jsonl"]);
        assert!(said.contains("cells with"), "{said}");
    }
    let files: Vec<String> = (1..=9).map(|i| format!("part.{i}-of-9.jsonl")).collect();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let joined = measured(dir, &[&["merge", "--out", "joined.jsonl"], &files[..]].concat());
    assert!(
        joined.contains(&format!("{CELLS} cells with {} rows", CELLS * 12)),
        "{joined}"
    );
    assert_eq!(figures(dir, "joined.jsonl"), whole);

    let lacking = host(dir, &[&["merge", "--out", "lacking.jsonl"], &files[1..]].concat());
    assert_eq!(lacking.status.code(), Some(2));
    assert!(text(&lacking).contains("error: unfinished: "), "{}", text(&lacking));
}

/// Scripts in the place of Slurm's programs: tasks run one after another when they are handed over, and the second one is lost the first time.
#[test]
fn a_job_array_finds_what_one_process_finds_and_a_lost_task_is_begun_again() {
    let dir = sweep();
    let dir = dir.path();
    measured(dir, &["run", "sweep.toml", "--out", "whole.jsonl"]);
    let asked = host(dir, &["run", "sweep.toml", "--launcher", "slurm"]);
    let said = text(&asked);
    assert!(
        said.contains("'sweep.toml' does not say how many tasks: add a table [slurm]"),
        "{said}"
    );
    let table = "\n[slurm]\ntasks = 3\npartition = \"main\"\ncpus = 1\n";
    std::fs::write(dir.join("sweep.toml"), SWEEP.to_string() + table).unwrap();
    let fake = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_slurm");
    let path = format!("{fake}:{}", std::env::var("PATH").unwrap());
    let run = || {
        let mut run = command(dir, &["run", "sweep.toml", "--launcher", "slurm"]);
        run.env("PATH", &path).output().unwrap()
    };
    let first = run();
    let said = text(&first);
    assert!(first.status.success(), "{said}");
    assert!(
        said.contains("job 71: 3 tasks\n") && said.contains("tasks 2 of job 71 were lost: begun again"),
        "{said}"
    );
    assert!(said.contains("job 72: 1 tasks\n"), "{said}");
    assert_eq!(figures(dir, "sweep.jsonl"), figures(dir, "whole.jsonl"));
    let told = std::fs::read_to_string(dir.join("sbatch.told")).unwrap();
    let options = "--parsable --job-name=advae --open-mode=append --array=1-3 --output=sweep.%a-of-3.log --partition=main --cpus-per-task=1 sweep.sbatch";
    assert_eq!(told.lines().next(), Some(options));
}

#[test]
fn what_a_killed_run_left_is_gone_on_with() {
    let dir = sweep();
    let dir = dir.path();
    std::fs::write(dir.join("sweep.toml"), SWEEP.replace("samples = 12", "samples = 60")).unwrap();
    measured(dir, &["run", "sweep.toml", "--out", "whole.jsonl"]);
    // Moments without a pattern. Half of the time it is the process with the plugins that is killed: then the run goes on behind its cell, and
    // says so.
    let (mut moment, mut cut) = (7, 0);
    for number in 0..20 {
        moment = moment * 131 % 353;
        let mut run = command(dir, &["run", "sweep.toml"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + moment));
        if number % 2 == 0 {
            let children = processes::children(run.id());
            children.iter().for_each(|child| processes::kill(*child));
            let status = run.wait().unwrap();
            cut += usize::from(!status.success());
        } else {
            run.kill().unwrap();
            run.wait().unwrap();
            cut += 1;
        }
    }
    assert!(cut > 10, "only {cut} of 20 runs were cut off");
    measured(dir, &["run", "sweep.toml"]);
    assert_eq!(figures(dir, "sweep.jsonl"), figures(dir, "whole.jsonl"));
}

#[test]
fn a_dry_run_lists_what_is_missing_and_writes_nothing() {
    let dir = sweep();
    let dir = dir.path();
    let said = measured(dir, &["run", "sweep.toml", "--dry-run"]);
    assert_eq!(said.matches("12 of 12 samples left, about ").count(), CELLS, "{said}");
    assert!(said.contains(&format!("{CELLS} cells, about ")), "{said}");
    assert!(!dir.join("sweep.jsonl").exists());
    measured(dir, &["run", "sweep.toml"]);
    let said = measured(dir, &["run", "sweep.toml", "--dry-run"]);
    assert_eq!(said.matches("0 of 12 samples left").count(), CELLS, "{said}");
}

#[test]
fn faults_of_the_file_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (file, expected) in [
        (
            "[[matrix]]\nclasifier = \"model_d\"\n",
            "'e.toml' line 2, key 'matrix.clasifier': unknown field",
        ),
        ("samples = 3\n", "'e.toml' line 1, key 'samples': unknown field"),
        ("[defaults]\nsamples = 3\n", "'e.toml' has no matrix: add [[matrix]]"),
        (
            "[[matrix]]\nclassifier = \"model_d\"\nattack = \"fgsm\"\nexclude = [{ attack = \"pgd\" }]\n",
            "matrix 1: exclude names attack 'pgd', which the matrix does not have: expected one of fgsm",
        ),
        (
            "[[matrix]]\nclassifier = \"model_d\"\nsamples = 0\n",
            "--samples is 0: give 1 or more",
        ),
        ("[[matrix]]\nclassifier = \"no_such\"\n", "no_such"),
    ] {
        std::fs::write(dir.join("e.toml"), file).unwrap();
        let output = host(dir, &["run", "e.toml"]);
        let said = text(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
    let output = host(dir, &["run", "nowhere.toml"]);
    assert!(
        text(&output).contains("cannot read 'nowhere.toml'"),
        "{}",
        text(&output)
    );
    for (flag, value, expected) in [
        (
            "--shard",
            "3/2",
            "'3/2' is no shard: expected i/n with i from 1 to n, such as 2/8",
        ),
        (
            "--launcher",
            "cloud",
            "'cloud' is no launcher: expected slurm, or local:N",
        ),
    ] {
        let output = host(dir, &["run", "e.toml", flag, value]);
        assert!(text(&output).contains(expected), "{}", text(&output));
    }
}

#[test]
fn the_schema_is_json() {
    let output = host(Path::new("."), &["schema"]);
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(schema["title"], "Experiment");
}
