//! CW as a plugin.

mod batch;
mod cw;
mod search;
mod settings;
mod tanh_space;

pub use cw::Cw;
pub use settings::{CwSettings, Preset};

advae_sdk::export_plugin! { attack: Cw }

#[cfg(test)]
mod tests;
