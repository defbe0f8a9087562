//! SPSA as a plugin.

mod spsa;

pub use spsa::{Spsa, SpsaSettings};

advae_sdk::export_plugin! { attack: Spsa }

#[cfg(test)]
mod tests;
