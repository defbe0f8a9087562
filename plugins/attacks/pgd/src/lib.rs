//! PGD as a plugin.

mod batch;
mod pgd;

pub use pgd::{Loss, Pgd, PgdSettings};

advae_sdk::export_plugin! { attack: Pgd }

#[cfg(test)]
mod tests;
