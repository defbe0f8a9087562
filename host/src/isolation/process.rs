//! A process with plugins, as the one that started it sees it.

use super::limits::Limits;
use super::shared::{CONFINED, Ends, ended_with, new_board};
use crate::terminal::cancel::Cancel;
use crate::terminal::version::HIDDEN_FLAG;
use crate::terminal::waiting::{self, Board};
use anyhow::{Context, Result, anyhow};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, PipeReader, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often the process is looked at while it says nothing.
const LOOK: Duration = Duration::from_millis(50);
/// How long a process may go on that was asked to stop.
const GRACE: Duration = Duration::from_secs(10);
/// How long what a dead process has said may take to arrive.
const DRAIN: Duration = Duration::from_millis(300);
/// Lines that wait to be read.
const QUEUE: usize = 4096;
/// Where the process may print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Where this one prints.
    Same,
    /// On the error stream alone: what this one prints is read by programs.
    Errors,
}

/// What is heard of a process.
#[derive(Debug)]
pub enum Event {
    /// A line.
    Line(String),
    /// It has ended by itself, with this exit code.
    Ended(i32),
    /// It is gone, and this is why.
    Died(String),
}

/// A process with plugins. It is killed where this is dropped, and all that it has started with it.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    limits: Limits,
    /// When it is killed, once it was asked to stop.
    deadline: Option<Instant>,
    /// Why it was killed.
    killed: Option<String>,
    dead: bool,
}

impl Process {
    /// Starts this program again with these arguments. Its standard input is a pipe for [`send`](Self::send). There may be one at a time. In a
    /// sandbox it may write to `writable` alone.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn start(arguments: &[OsString], output: Output, limits: Limits, writable: Option<&Path>) -> Result<Self> {
        let start = || -> Result<(Child, PipeReader)> {
            let (number, board) = shared_board()?;
            board.clear();
            let (reader, writer) = pipe()?;
            let ends = Ends {
                pipe: writer.as_raw_fd(),
                board: number,
            };
            // The file that this process runs, though another may lie at its path by now.
            let mut command = Command::new("/proc/self/exe");
            command
                .arg(HIDDEN_FLAG)
                .arg(ends.to_string())
                .args(arguments)
                .stdin(Stdio::piped());
            if limits.sandbox {
                command.env(CONFINED, writable.unwrap_or(Path::new("")));
            }
            if output == Output::Errors {
                command.stdout(std::io::stderr());
            }
            let parent = std::process::id();
            // SAFETY: the closure makes system calls and nothing else.
            unsafe { command.pre_exec(move || settle(ends, limits, parent)) };
            Ok((command.spawn()?, reader))
        };
        let (child, reader) = start().context("cannot start a process for the plugins (--in-process does without)")?;
        let (sender, lines) = sync_channel(QUEUE);
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines() {
                let Ok(line) = line else { return };
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            limits,
            deadline: None,
            killed: None,
            dead: false,
        })
    }

    /// Says whole lines to it. Where it no longer listens, [`next`](Self::next) tells why.
    pub fn send(&mut self, lines: &str) {
        if let Some(input) = &mut self.child.stdin {
            let _ = input.write_all(lines.as_bytes());
        }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What is heard next. A process that was asked to stop by `cancel`, that is silent for too long or that leaves without a word is killed.
    pub fn next(&mut self, cancel: &Cancel) -> Event {
        loop {
            self.stop_on(cancel);
            match self.lines.recv_timeout(LOOK) {
                Ok(line) => return event(line),
                // Of a process that ends: it is looked at again and again until it has.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(Duration::from_millis(1)),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.kill_if_silent();
            if self.is_dead() {
                self.kill();
                self.dead = true;
                // What it said before is heard first.
                if let Ok(line) = self.lines.recv_timeout(DRAIN) {
                    return event(line);
                }
                let why = match self.child.wait() {
                    Ok(status) => self.killed.take().unwrap_or_else(|| why(status, self.limits)),
                    Err(error) => format!("lost: {error}"),
                };
                return Event::Died(why);
            }
        }
    }

    fn stop_on(&mut self, cancel: &Cancel) {
        match self.deadline {
            None if cancel.is_cancelled() => {
                // SAFETY: the process has not been waited for: its number is its own.
                unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
                self.deadline = Some(Instant::now() + GRACE);
            }
            Some(deadline) if self.killed.is_none() && Instant::now() > deadline => {
                self.killed = Some(format!("stopped: it did not end within {} s", GRACE.as_secs()));
                self.kill();
            }
            _ => {}
        }
    }

    fn kill_if_silent(&mut self) {
        let (Some(timeout), None, Ok((_, board))) = (self.limits.timeout, &self.killed, shared_board()) else {
            return;
        };
        if let Some((time, place)) = board.quiet().filter(|(time, _)| *time > timeout) {
            let (time, timeout) = (time.as_secs_f64(), timeout.as_secs_f64());
            self.killed = Some(format!(
                "killed after {time:.0} s without progress in {place} (--cell-timeout allows {timeout} s)"
            ));
            self.kill();
        }
    }

    /// Whether it has ended. It is not waited for: its number stays its own, and that of its group.
    fn is_dead(&self) -> bool {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the struct is written, or stays all zeros.
        let failed = unsafe { libc::waitid(libc::P_PID, self.child.id(), info.as_mut_ptr(), options) } != 0;
        // SAFETY: as above.
        failed || unsafe { info.assume_init().si_pid() } != 0
    }

    /// Kills it and all of its group.
    fn kill(&self) {
        if !self.dead {
            // SAFETY: it has not been waited for: the group's number is its own.
            unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

fn event(line: String) -> Event {
    match ended_with(&line) {
        Some(code) => Event::Ended(code),
        None => Event::Line(line),
    }
}

/// Between fork and exec: system calls alone.
fn settle(ends: Ends, limits: Limits, parent: u32) -> std::io::Result<()> {
    let checked = |answer: i32| match answer {
        0.. => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let limit = |resource, bytes: u64| {
        let both = libc::rlimit {
            rlim_cur: bytes,
            rlim_max: bytes,
        };
        // SAFETY: the struct is read.
        checked(unsafe { libc::setrlimit(resource, &raw const both) })
    };
    // SAFETY: all of these take numbers.
    unsafe {
        checked(libc::fcntl(ends.pipe, libc::F_SETFD, 0))?;
        checked(libc::setpgid(0, 0))?;
        #[cfg(target_os = "linux")]
        {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // Where the parent has died already, nothing will be sent.
            if libc::getppid() as u32 != parent {
                libc::_exit(1);
            }
        }
    }
    limit(libc::RLIMIT_CORE, 0)?;
    match limits.memory {
        // What a process writes to, not what it maps: threads and allocators reserve far more than they use.
        Some(bytes) => limit(libc::RLIMIT_DATA, bytes.0),
        None => Ok(()),
    }
}

/// The board that this process shares with those it starts: made once, and read by Ctrl-C too.
fn shared_board() -> Result<(i32, &'static Board)> {
    static SHARED: OnceLock<std::result::Result<(i32, &'static Board), String>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let (id, board) = new_board().map_err(|error| format!("{error:#}"))?;
        waiting::share(board);
        Ok((id, board))
    });
    shared.clone().map_err(|error| anyhow!(error))
}

/// Why a process is gone that did not say so.
fn why(status: ExitStatus, limits: Limits) -> String {
    let board = shared_board().ok().map(|(_, board)| board);
    if let Some(word) = board.and_then(Board::word) {
        return word;
    }
    let during = board
        .and_then(Board::in_progress)
        .map(|calls| format!(" during {calls}"));
    let Some(signal) = status.signal() else {
        let (code, during) = (status.code().unwrap_or_default(), during.unwrap_or_default());
        return format!("the process was ended with exit code {code}{during}, where an error should be returned");
    };
    let fallen = board.and_then(Board::fallen).filter(|fallen| fallen.signal == signal);
    let faulted = fallen.is_some();
    let (place, overflow) = fallen.map_or((None, false), |fallen| (fallen.place, fallen.overflow));
    let place = place.map(|place| format!(" in {place}")).or(during);
    let reason = match (signal, overflow, limits.memory) {
        (libc::SIGSEGV, true, _) => ": its stack overflowed".into(),
        (libc::SIGABRT, _, Some(bytes)) => format!(", perhaps for lack of memory (--cell-memory allows {bytes})"),
        (libc::SIGKILL, ..) => ", perhaps for lack of memory".into(),
        _ if faulted && place.is_none() => {
            " outside of every call: a plugin has damaged the memory of the process".into()
        }
        _ => String::new(),
    };
    format!("killed by {}{}{reason}", name(signal), place.unwrap_or_default())
}

fn name(signal: i32) -> String {
    let known = match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGILL => "SIGILL",
        libc::SIGFPE => "SIGFPE",
        libc::SIGABRT => "SIGABRT",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGSYS => "SIGSYS",
        libc::SIGKILL => "SIGKILL",
        libc::SIGTERM => "SIGTERM",
        libc::SIGINT => "SIGINT",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGXCPU => "SIGXCPU",
        _ => return format!("signal {signal}"),
    };
    known.into()
}
