//! What a process with plugins and the one that started it have in common.

use crate::terminal::waiting::Board;
use anyhow::{Context, Result, ensure};
use std::os::fd::RawFd;
use std::str::FromStr;

/// What is said where the hidden flag is not the host's.
const FLAG: &str = "--child is for the host itself: leave it out";

/// Set for a process that is to be confined, to the folder that it may write to, or to nothing.
pub(super) const CONFINED: &str = "ADVAE_CONFINED";

/// How a last word begins.
const ENDED: &str = "!ended ";

/// The last word of a process that ends as it should.
pub(super) fn ended(code: i32) -> String {
    format!("{ENDED}{code}")
}

/// The exit code in a last word, if it is one.
pub(super) fn ended_with(line: &str) -> Option<i32> {
    line.strip_prefix(ENDED)?.parse().ok()
}

/// What a process shares with the one that started it, as the hidden flag has it: the number of a pipe and that of a board.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub(super) pipe: RawFd,
    pub(super) board: i32,
}

impl FromStr for Ends {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let ends = text.split_once(',').and_then(|(pipe, board)| {
            Some(Self {
                pipe: pipe.parse().ok().filter(|pipe| *pipe > 2)?,
                board: board.parse().ok()?,
            })
        });
        ends.context(FLAG)
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.pipe, self.board)
    }
}

/// A board in memory that processes share by its number. It is no file, which a limit or a full disk might refuse, and it is gone with the
/// last process that has it.
///
/// # Errors
/// Where the system has no such memory.
pub(super) fn new_board() -> Result<(i32, &'static Board)> {
    // SAFETY: takes numbers.
    let number = unsafe { libc::shmget(libc::IPC_PRIVATE, size_of::<Board>(), 0o600) };
    if number < 0 {
        return Err(std::io::Error::last_os_error()).context("no memory to share");
    }
    let board = attach(number);
    // On Linux it can be attached to as long as anybody has it.
    // SAFETY: no struct is read or written.
    unsafe { libc::shmctl(number, libc::IPC_RMID, std::ptr::null_mut()) };
    Ok((number, board?))
}

/// The board of a number, for as long as this process lives.
///
/// # Errors
/// Where the number is not that of such memory.
pub(super) fn attach(number: i32) -> Result<&'static Board> {
    // SAFETY: the struct is written where the answer is 0, and is all zeros otherwise.
    let whole = unsafe {
        let mut state: libc::shmid_ds = std::mem::zeroed();
        libc::shmctl(number, libc::IPC_STAT, &raw mut state) == 0 && state.shm_segsz == size_of::<Board>()
    };
    ensure!(whole, "{FLAG}");
    // SAFETY: the system chooses the place.
    let memory = unsafe { libc::shmat(number, std::ptr::null(), 0) };
    // The answer of a failure is -1.
    ensure!(memory.addr() != usize::MAX, "{FLAG}");
    // SAFETY: page-aligned, of the right size, never detached, and all its bytes are atomics for which any value is sound.
    Ok(unsafe { &*memory.cast::<Board>() })
}
