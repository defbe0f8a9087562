//! The exit code is the host's alone: a plugin that calls `exit`, or that registers what is to happen then, does not choose it.
#![allow(clippy::unwrap_used)]

#[path = "common/fixtures.rs"]
mod fixtures;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const LINE: &str = "plugin 'libplain_probe.so' ended the process by calling exit, where it should return an error";

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .env("ADVAE_PLUGIN_PATH", fixtures::dir())
        .env_remove("RUST_BACKTRACE");
    command
}

fn eval(mode: &str) -> Command {
    let classifier = format!("plain_probe:mode={mode}");
    let cell = [
        "--classifier",
        &classifier,
        "--threat-model",
        "plain_white_box",
        "--attack",
        "plain_noise",
    ];
    command(&[&["eval", "--samples", "10", "--threads", "2"], &cell[..]].concat())
}

/// The outcome, unless the process is still there after a minute.
fn outcome(mut command: Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("the host hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{:?}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Fails with this line.
fn refused(command: Command, line: &str) {
    let output = outcome(command);
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(String::from_utf8_lossy(&output.stderr), line);
}

#[test]
fn a_plugin_that_exits_is_one_line_and_exit_code_2() {
    let alone = format!("error: {LINE}\n");
    refused(eval("exit_in_constructor"), &alone);
    let cell = "plain_probe:mode=exit_in_forward, plain_white_box, plain_noise";
    refused(eval("exit_in_forward"), &format!("error: {cell}: {LINE}\n"));
    let mut loading = eval("sound");
    loading.env("PLAIN_PROBE_EXIT", "1");
    refused(loading, &alone);
}

#[test]
fn in_the_process_of_the_host_it_ends_the_run() {
    for mode in ["exit_in_constructor", "exit_in_forward"] {
        let mut command = eval(mode);
        command.arg("--in-process");
        let line = format!("error: {LINE}: the run is not complete; results written so far are kept\n");
        refused(command, &line);
    }
}

#[test]
fn a_plugin_that_exits_while_the_doctor_looks_at_it_is_one_line_and_exit_code_2() {
    let line = format!("error: {LINE}\n");
    for mode in ["exit_in_constructor", "exit_in_forward"] {
        refused(command(&["doctor", &format!("plain_probe:mode={mode}")]), &line);
    }
}

#[test]
fn what_a_plugin_registers_for_the_exit_neither_changes_the_code_nor_holds_it_up() {
    for mode in ["exit_code_7_at_exit", "hang_at_exit"] {
        let output = outcome(eval(mode));
        assert_eq!(output.status.code(), Some(0), "{mode}: {}", said(&output));
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("plain_probe"),
            "{}",
            said(&output)
        );
    }
}

#[test]
fn help_version_and_usage_end_as_they_did() {
    let help = outcome(command(&["--help"]));
    assert!(help.status.success() && help.stderr.is_empty(), "{}", said(&help));
    let usage = outcome(command(&["evaluate"]));
    assert_eq!(usage.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&usage.stderr).contains("unrecognized subcommand"),
        "{}",
        said(&usage)
    );
    let version = outcome(command(&["--version"]));
    let text = String::from_utf8(version.stdout).unwrap();
    let commit = text
        .trim_end()
        .strip_prefix("advae-host 0.1.0 (commit ")
        .and_then(|rest| rest.strip_suffix(')'));
    assert!(commit.is_some_and(|commit| !commit.is_empty()), "{text}");
}
