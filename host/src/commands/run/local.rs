//! An experiment in several processes on one machine.

use super::{Shard, shard_file};
use crate::commands::merge;
use crate::terminal::cancel::Cancel;
use crate::terminal::console;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How often a part that fails is begun, in all.
const TRIES: usize = 2;
/// How often the processes are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A part of an experiment and the process that measures it.
struct Part {
    shard: Shard,
    child: Child,
    tries: usize,
    log: PathBuf,
}

/// Measures an experiment in `count` processes of so many threads, and joins their files into `out`, with what is there already.
///
/// # Errors
/// Where a process cannot be started, a part fails twice, or files cannot be joined.
pub fn measure(file: &Path, out: &Path, count: usize, threads: usize, cancel: &Cancel) -> Result<()> {
    let start = |shard: Shard, tries: usize| -> Result<Part> {
        let log = shard_file(out, shard).with_extension("log");
        let to = File::create(&log).with_context(|| format!("cannot write '{}'", log.display()))?;
        let child = Command::new(std::env::current_exe()?)
            .arg("run")
            .arg(file)
            .arg("--out")
            .arg(out)
            .args(["--shard", &format!("{}/{}", shard.index, shard.count)])
            .args(["--threads", &threads.to_string()])
            .stdout(Stdio::null())
            .stderr(to)
            .spawn()
            .context("cannot start a process")?;
        Ok(Part {
            shard,
            child,
            tries,
            log,
        })
    };
    let shards: Vec<Shard> = (1..=count).map(|index| Shard { index, count }).collect();
    let mut running = shards
        .iter()
        .map(|shard| start(*shard, 1))
        .collect::<Result<Vec<_>>>()?;
    let mut failed = vec![];
    while !running.is_empty() {
        std::thread::sleep(LOOK);
        let mut still = vec![];
        for mut part in running {
            let Some(status) = part.child.try_wait()? else {
                still.push(part);
                continue;
            };
            let Part { shard, tries, log, .. } = part;
            // A stop reaches every process of the terminal's group.
            if status.success() || cancel.is_cancelled() {
                continue;
            }
            if tries < TRIES {
                console::say(&format!(
                    "part {} of {count} ended with {status}: it is begun again",
                    shard.index
                ));
                still.push(start(shard, tries + 1)?);
                continue;
            }
            failed.push(format!(
                "part {} ended with {status}, see '{}'",
                shard.index,
                log.display()
            ));
        }
        running = still;
    }
    join(&shards, out)?;
    if !failed.is_empty() && !cancel.is_cancelled() {
        bail!("{}", failed.join("; "))
    }
    Ok(())
}

/// Joins the parts' files, and what `out` holds already. The parts stay: they are what a stopped run goes on from.
fn join(shards: &[Shard], out: &Path) -> Result<()> {
    let parts = shards.iter().map(|shard| shard_file(out, *shard));
    let files: Vec<PathBuf> = [out.to_path_buf()]
        .into_iter()
        .chain(parts)
        .filter(|file| file.is_file())
        .collect();
    let joined = merge::joined(&files)?;
    let new = out.with_extension("joining");
    // One of an earlier run that was killed while it joined.
    let _ = std::fs::remove_file(&new);
    merge::write(&joined, &new)?;
    std::fs::rename(&new, out).with_context(|| format!("cannot write '{}'", out.display()))
}
