//! Plugins run in a process of their own. It may crash, hang, exit or eat its memory: whoever started it says so in one line and goes on.
//!
//! The process is this program once more, with a hidden flag that names what both share: a pipe for what it has to say, and a board of the
//! calls it is in, which outlives it. Nothing that counts is left to it: it opens no results, and it has succeeded where it says so last.

mod inside;
mod limits;
mod process;
mod sandbox;
mod shared;
mod supervise;

pub use inside::{Channel, adopt, channel};
pub use limits::{IsolationArgs, Limits, SandboxArgs};
pub use process::{Event, Output, Process};
pub use shared::Ends;
pub use supervise::supervise;
