//! Transfer as a plugin.

mod transfer;

pub use transfer::{Transfer, TransferSettings};

advae_sdk::export_plugin! { attack: Transfer }

#[cfg(test)]
mod tests;
