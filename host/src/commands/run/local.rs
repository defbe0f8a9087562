//! An experiment in several processes on one machine.

use super::parts::{Parts, TRIES, shard_file};
use crate::experiment::Shard;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use crate::terminal::exit::EXIT_FAILED;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A part of an experiment and the process that measures it.
struct Part {
    index: usize,
    child: Child,
    tries: usize,
}

/// Measures an experiment in `count` processes of so many threads and these further flags, and joins their files into `out`, with what is there already.
///
/// # Errors
/// Where a process cannot be started, a part is lost too often, or files cannot be joined.
pub fn measure(file: &Path, out: &Path, count: usize, threads: usize, flags: &[String], cancel: &Cancel) -> Result<()> {
    let log = |index| shard_file(out, Shard { index, count }).with_extension("log");
    let start = |index: usize, tries: usize| -> Result<Part> {
        let log = log(index);
        let to = File::create(&log).with_context(|| format!("cannot write '{}'", log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .arg("run")
            .arg(file)
            .arg("--out")
            .arg(out)
            .args(["--shard", &format!("{index}/{count}")])
            .args(["--threads", &threads.to_string()])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(to)
            .spawn()
            .context("cannot start a process")?;
        Ok(Part { index, child, tries })
    };
    let mut running = (1..=count).map(|index| start(index, 1)).collect::<Result<Vec<_>>>()?;
    let mut lost = vec![];
    while !running.is_empty() {
        std::thread::sleep(LOOK);
        let mut still = vec![];
        for mut part in running {
            let Some(status) = part.child.try_wait()? else {
                still.push(part);
                continue;
            };
            let (index, said) = (part.index, log(part.index));
            // A part that failed has said why, in its rows or its log, and would fail again. A stop reaches every process of a terminal.
            let ended = status.success() || status.code() == Some(EXIT_FAILED) || cancel.is_cancelled();
            match (ended, part.tries < TRIES) {
                (true, _) => {}
                (false, true) => {
                    console::say(&format!("part {index} of {count} ended with {status}: begun again"));
                    still.push(start(index, part.tries + 1)?);
                }
                (false, false) => lost.push(format!("part {index} ended with {status}, see '{}'", said.display())),
            }
        }
        running = still;
    }
    let parts = Parts::new(out, count);
    if let Err(error) = parts.join() {
        let log = log(1);
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        bail!("{error:#} ('{}': {})", log.display(), said.trim())
    }
    if !lost.is_empty() && !cancel.is_cancelled() {
        bail!("{}", lost.join("; "))
    }
    Ok(())
}
