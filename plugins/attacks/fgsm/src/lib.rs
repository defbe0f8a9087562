//! FGSM as a plugin.

mod fgsm;

pub use fgsm::{Fgsm, FgsmSettings};

advae_sdk::export_plugin! { attack: Fgsm }

#[cfg(test)]
mod tests;
