//! What a process with plugins and the one that started it have in common.

use crate::terminal::waiting::Board;
use anyhow::{Context, Result, anyhow};
use std::os::fd::RawFd;
use std::str::FromStr;

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

/// The ends of what a process shares with the one that started it, as the hidden flag has them: `PIPE,BOARD`.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub(super) pipe: RawFd,
    pub(super) board: RawFd,
}

impl FromStr for Ends {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let ends = text.split_once(',').and_then(|(pipe, board)| {
            let read = |text: &str| text.parse().ok().filter(|fd: &RawFd| *fd > 2);
            Some(Self {
                pipe: read(pipe)?,
                board: read(board)?,
            })
        });
        ends.context("--child is for the host itself: leave it out")
    }
}

impl std::fmt::Display for Ends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{},{}", self.pipe, self.board)
    }
}

/// A board in memory that processes share, for as long as this one lives.
///
/// # Errors
/// Where the descriptor is not that of such memory.
pub(super) fn map(fd: RawFd) -> Result<&'static Board> {
    let (size, access) = (size_of::<Board>(), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: fresh memory of the board's size; a file that is too short is found out below.
    let memory = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let whole = libc::fstat(fd, &raw mut stat) == 0 && stat.st_size as usize == size;
        match whole {
            true => libc::mmap(std::ptr::null_mut(), size, access, libc::MAP_SHARED, fd, 0),
            false => libc::MAP_FAILED,
        }
    };
    if memory == libc::MAP_FAILED {
        return Err(anyhow!("--child is for the host itself: leave it out"));
    }
    // SAFETY: page-aligned, of the right size, never unmapped, and all its bytes are atomics for which any value is sound.
    Ok(unsafe { &*memory.cast::<Board>() })
}
