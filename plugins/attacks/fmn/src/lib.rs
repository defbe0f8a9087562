//! FMN as a plugin.

mod fmn;

pub use fmn::{Fmn, FmnSettings};

advae_sdk::export_plugin! { attack: Fmn }

#[cfg(test)]
mod tests;
