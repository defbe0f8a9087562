//! PGD as a plugin.

mod pgd;

pub use pgd::{Loss, Pgd, PgdSettings, Preset};

advae_sdk::export_plugin! { attack: Pgd }

#[cfg(test)]
mod tests;
