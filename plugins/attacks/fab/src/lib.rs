//! FAB as a plugin.

mod fab;
mod plane;

pub use fab::{Fab, FabSettings};

advae_sdk::export_plugin! { attack: Fab }

#[cfg(test)]
mod tests;
