//! Models written in Python as classifiers and purifiers with gradients.
//!
//! A model runs in a process of its own, by the user's own interpreter (`worker`): where it crashes or never ends, a cell is lost
//! and not the run. Images, outputs and gradients are handed over in a file in memory.

#![allow(missing_docs)]

mod model;
mod worker;

pub use model::{PythonClassifier, PythonPurifier, PythonSettings};

#[cfg(test)]
mod tests;
