//! What a process with plugins does before it loads any: it shares its board, and says how it dies.

use super::sandbox::confine;
use super::shared::{CONFINED, Ends, attach, ended};
use crate::terminal::{exit, waiting};
use anyhow::{Result, ensure};
use std::ffi::c_void;
use std::fs::File;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Signals that a fault leads to, and a process ends by.
const FAULTS: [i32; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGSYS,
];
/// Bytes around the stack pointer where a fault means that the stack has ended: what one frame may skip.
const FRAME: usize = 1 << 20;

/// What this process has to say to the one that started it, line by line.
#[derive(Debug)]
pub struct Channel {
    pipe: Mutex<File>,
    process: u32,
}

static CHANNEL: OnceLock<Channel> = OnceLock::new();

/// The way to the process that started this one to run plugins; absent: this is no such process.
pub fn channel() -> Option<&'static Channel> {
    CHANNEL.get()
}

impl Channel {
    /// Says whole lines at once.
    pub fn send(&self, lines: &str) {
        // A plugin may have forked: what its copy of this process computes is nobody's.
        if self.process != std::process::id() {
            // SAFETY: takes a number.
            unsafe { libc::_exit(exit::EXIT_FAILED) }
        }
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.write_all(lines.as_bytes()).is_err() {
            // Nobody listens any more.
            // SAFETY: takes a number.
            unsafe { libc::_exit(exit::EXIT_FAILED) }
        }
    }
}

/// Makes this process one that runs plugins for another. To be called before any other thread runs.
///
/// # Errors
/// Where the ends are not what the flag says.
pub fn adopt(ends: Ends) -> Result<()> {
    // SAFETY: a number that is no descriptor is refused.
    let kept = unsafe { libc::fcntl(ends.pipe, libc::F_SETFD, libc::FD_CLOEXEC) };
    waiting::share(attach(ends.board)?);
    ensure!(kept == 0, "--child is for the host itself: leave it out");
    // SAFETY: the descriptor is open, and nothing else in this process has it.
    let pipe = unsafe { File::from_raw_fd(ends.pipe) };
    let channel = Channel {
        pipe: Mutex::new(pipe),
        process: std::process::id(),
    };
    let _ = CHANNEL.set(channel);
    exit::isolated(|code| {
        if let Some(channel) = channel_of_this_process() {
            channel.send(&format!("{}\n", ended(code)));
        }
    });
    // Where memory ends, this process goes and not the one that keeps the results.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if let Some(folder) = std::env::var_os(CONFINED) {
        let folder = Some(PathBuf::from(folder)).filter(|folder| !folder.as_os_str().is_empty());
        confine(&folder.into_iter().collect::<Vec<_>>())?;
    }
    for signal in FAULTS {
        // SAFETY: the action is whole, and its handler does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = (on_fault as extern "C" fn(i32, *mut libc::siginfo_t, *mut c_void)) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND | libc::SA_NODEFER;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
    Ok(())
}

/// A plugin's copy of this process ends without a word.
fn channel_of_this_process() -> Option<&'static Channel> {
    channel().filter(|channel| channel.process == std::process::id())
}

/// Notes where the thread was, and dies of the signal.
extern "C" fn on_fault(signal: i32, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel hands both to a handler with SA_SIGINFO.
    let overflow = signal == libc::SIGSEGV && unsafe { near_stack(info, context) };
    waiting::fall(signal, overflow);
    // The handler was taken away when it was called: this ends the process.
    // SAFETY: takes a number.
    unsafe { libc::raise(signal) };
}

/// Whether the address of a fault lies just below or above the stack pointer.
unsafe fn near_stack(info: *mut libc::siginfo_t, context: *mut c_void) -> bool {
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    {
        // SAFETY: a fault has an address, and the context is that of this machine.
        let (address, stack) = unsafe {
            let context = context.cast::<libc::ucontext_t>();
            (
                (*info).si_addr() as usize,
                (*context).uc_mcontext.gregs[libc::REG_RSP as usize] as usize,
            )
        };
        address.abs_diff(stack) < FRAME
    }
    #[cfg(all(target_os = "linux", target_arch = "aarch64"))]
    {
        // SAFETY: as above.
        let (address, stack) = unsafe {
            let context = context.cast::<libc::ucontext_t>();
            ((*info).si_addr() as usize, (*context).uc_mcontext.sp as usize)
        };
        address.abs_diff(stack) < FRAME
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        let _ = (info, context);
        false
    }
}
