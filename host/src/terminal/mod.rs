//! The terminal: output, logs, progress, Ctrl-C, exit codes, the version, and configuration files.

pub mod cancel;
pub mod config;
pub mod console;
pub mod exit;
pub mod pace;
pub mod progress;
pub mod version;
pub mod waiting;
