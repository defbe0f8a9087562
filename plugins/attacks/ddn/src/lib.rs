//! DDN as a plugin.

mod ddn;

pub use ddn::{Ddn, DdnSettings};

advae_sdk::export_plugin! { attack: Ddn }

#[cfg(test)]
mod tests;
