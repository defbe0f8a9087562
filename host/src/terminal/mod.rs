//! The terminal: output, logs, progress, Ctrl-C, exit codes and the version.

pub mod cancel;
pub mod console;
pub mod exit;
pub mod progress;
pub mod version;
pub mod waiting;
