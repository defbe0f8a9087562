//! MI-FGSM as a plugin.

mod mi_fgsm;

pub use mi_fgsm::{MiFgsm, MiFgsmSettings};

advae_sdk::export_plugin! { attack: MiFgsm }

#[cfg(test)]
mod tests;
