//! APGD as a plugin.

mod apgd;
mod walk;

pub use apgd::{Apgd, ApgdSettings, Loss};

advae_sdk::export_plugin! { attack: Apgd }

#[cfg(test)]
mod tests;
