//! A whole command in a process of its own.

use super::limits::Limits;
use super::process::{Event, Output, Process};
use crate::terminal::cancel::Cancel;
use crate::terminal::exit::EXIT_CANCELLED;
use anyhow::{Result, bail};
use std::ffi::OsString;
use std::sync::atomic::{AtomicU32, Ordering};

/// The process that Ctrl-C is handed on to, and how often it was.
static RUNS: AtomicU32 = AtomicU32::new(0);
static INTERRUPTED: AtomicU32 = AtomicU32::new(0);

/// Runs this command, as it was given, in a process of its own, and returns its exit code: that which it says last.
///
/// # Errors
/// Where the process is gone without that: one line that says how, and in which call of which plugin.
pub fn supervise(limits: Limits) -> Result<i32> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut process = Process::start(&arguments, Output::Same, limits, None)?;
    RUNS.store(process.id(), Ordering::SeqCst);
    ctrlc::set_handler(|| {
        INTERRUPTED.fetch_add(1, Ordering::SeqCst);
        // SAFETY: takes numbers; the process is waited for only after the last use.
        unsafe { libc::kill(RUNS.load(Ordering::SeqCst) as i32, libc::SIGINT) };
    })?;
    let never = Cancel::default();
    loop {
        match process.next(&never) {
            Event::Ended(code) => return Ok(code),
            Event::Line(line) => tracing::debug!("said by the process with the plugins: {line}"),
            Event::Died(_) if INTERRUPTED.load(Ordering::SeqCst) > 0 => return Ok(EXIT_CANCELLED),
            Event::Died(why) => bail!(why),
        }
    }
}
