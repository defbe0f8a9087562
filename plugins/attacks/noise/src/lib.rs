//! Noise as a plugin.

mod noise;

pub use noise::{Kind, Noise, NoiseSettings};

advae_sdk::export_plugin! { attack: Noise }

#[cfg(test)]
mod tests;
