//! The host as a process of its own.
#![allow(dead_code)]

use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that looks for plugins in these folders. 80 columns leave the measured times out of its tables.
pub fn command(plugins: &[&Path], args: &[&str]) -> Command {
    let folders: Vec<String> = plugins.iter().map(|dir| dir.display().to_string()).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_advae-host"));
    command
        .args(args)
        .env("ADVAE_PLUGIN_PATH", folders.join(":"))
        .env("COLUMNS", "80")
        .env_remove("ADVAE_DATA_DIR")
        .env_remove("RUST_BACKTRACE");
    command
}

/// The outcome of a process that was begun by [`piped`], unless it is still there after [`PATIENCE`].
pub fn outcome(mut child: Child) -> Output {
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the host hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// Begins a process whose output is kept.
pub fn piped(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until it is so.
pub fn until(what: &str, so: impl Fn() -> bool) {
    let start = Instant::now();
    while !so() {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Ctrl-C.
pub fn interrupt(child: &Child) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Everything that it said, for a message.
pub fn said(output: &Output) -> String {
    format!("{:?}\n{}{}", output.status, stdout(output), stderr(output))
}

/// The report in JSON.
pub fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(output)))
}

/// Exit code 2, and an error that says all that.
pub fn refused(output: &Output, says: &[&str]) {
    assert_eq!(output.status.code(), Some(2), "{}", said(output));
    for text in says {
        assert!(stderr(output).contains(text), "no '{text}' in: {}", said(output));
    }
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
