//! FMN as a plugin.

mod fmn;
mod start;

pub use fmn::{Fmn, FmnSettings};
pub use start::Start;

advae_sdk::export_plugin! { attack: Fmn }

#[cfg(test)]
mod tests;
