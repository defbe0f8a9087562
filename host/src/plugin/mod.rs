//! Plugins: found by name, checked as files, loaded once, never unloaded.

mod elf;
pub mod fenv;
pub mod files;
mod find;
pub mod lists;
mod load;
mod manifest;
mod number;
pub mod sealed;
mod spec;

pub use elf::{Inspected, hex, inspect};
pub use find::{Found, find, path_dirs, scan, scan_dirs, search_dirs};
pub use load::{Plugin, owner};
pub use number::number;
pub use spec::{PluginSpec, quoted_path};
