//! Square as a plugin.

mod square;
mod window;

pub use square::{Square, SquareSettings};

advae_sdk::export_plugin! { attack: Square }

#[cfg(test)]
mod tests;
