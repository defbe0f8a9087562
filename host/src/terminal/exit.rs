//! Exit codes, which are the host's alone: a plugin that calls `exit` does not choose one.

use std::io::Write;
use std::sync::OnceLock;

/// A cell failed, an image was refused, or nothing could be run.
pub const EXIT_FAILED: i32 = 2;
/// The run was interrupted.
pub const EXIT_CANCELLED: i32 = 130;

/// The plugin whose code lies at an address, if it is one's.
pub type Owner = fn(usize) -> Option<String>;

/// What is looked at where the process ends without the host's consent.
struct Watch {
    process: u32,
    owner: Owner,
}

static WATCH: OnceLock<Watch> = OnceLock::new();

/// What a process that runs for another says last, with its exit code.
static LAST_WORD: OnceLock<fn(i32)> = OnceLock::new();

/// From here on [`end`] says its code by `say`, and whoever calls `exit` instead is told of by [`last_word`](super::waiting::last_word) and
/// not by a line.
pub fn isolated(say: fn(i32)) {
    let _ = LAST_WORD.set(say);
}

/// Frames that are searched for the plugin that called `exit`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FRAMES: usize = 256;

/// Ends the process. What libraries registered with `atexit` does not run: it could change the code or never return.
pub fn end(code: i32) -> ! {
    // A reader who has gone away is no reason to stay.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    if let Some(say) = LAST_WORD.get() {
        say(code);
    }
    // SAFETY: takes a number.
    unsafe { libc::_exit(code) }
}

/// From here on, whoever calls `exit` instead of [`end`] gets a line that says so, and exit code 2.
///
/// What cannot be seen from inside the process stays so: `_exit`, `abort`, signals, and handlers that a plugin registers with
/// `atexit` itself, which run before this one when the plugin exits.
pub fn watch(owner: Owner) {
    let watch = Watch {
        process: std::process::id(),
        owner,
    };
    if WATCH.set(watch).is_ok() {
        // SAFETY: the handler is a function of the host, which is never unloaded.
        let refused = unsafe { libc::atexit(left) } != 0;
        if refused {
            tracing::warn!("no handler for exits could be registered: a plugin that exits will choose the exit code");
        }
    }
}

extern "C" fn left() {
    let Some(watch) = WATCH.get() else { return };
    // A child that a plugin forked may end as it likes.
    if watch.process != std::process::id() {
        return;
    }
    let who = stack().into_iter().find_map(watch.owner);
    let who = who.map_or("a library".into(), |file| format!("plugin '{file}'"));
    let what = format!("{who} ended the process by calling exit, where it should return an error");
    if LAST_WORD.get().is_some() {
        super::waiting::last_word(&what);
    } else {
        let line = format!("error: {what}: the run is not complete; results written so far are kept\n");
        // Not by `eprintln`: another thread may hold that lock for good.
        // SAFETY: the pointer and the length are those of a string.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len()) };
    }
    // SAFETY: takes a number.
    unsafe { libc::_exit(EXIT_FAILED) }
}

/// Addresses of the calls that led here, the last one first.
fn stack() -> Vec<usize> {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let mut frames = [std::ptr::null_mut(); FRAMES];
        // SAFETY: the array has room for as many addresses.
        let count = unsafe { libc::backtrace(frames.as_mut_ptr(), FRAMES as libc::c_int) };
        frames[..count.max(0) as usize]
            .iter()
            .map(|frame| frame.addr())
            .collect()
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    vec![]
}
