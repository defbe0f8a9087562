//! DeepFool as a plugin.

mod deepfool;

pub use deepfool::{DeepFool, DeepFoolSettings};

advae_sdk::export_plugin! { attack: DeepFool }

#[cfg(test)]
mod tests;
