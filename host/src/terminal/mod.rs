//! The terminal: output, logs, progress, Ctrl-C and exit codes.

pub mod cancel;
pub mod console;
pub mod exit;
pub mod progress;
pub mod waiting;
