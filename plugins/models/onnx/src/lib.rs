//! Networks of ONNX files as classifiers and purifiers with gradients.
//!
//! A file is read, what does not depend on the images is computed once, and the rest runs fused, as a
//! [`Net`](advae_sdk::nn::Net), where every operator is a node of one, else operator by operator. Floating-point constants of layers
//! are parameters under their names in the file, so that a network of a file can be trained on.

#![allow(missing_docs)]

#[doc(hidden)]
pub mod conformance;
mod graph;
mod layers;
mod lower;
mod model;
mod ops;
mod proto;
mod room;
mod tensor;

pub use model::{Layout, OnnxClassifier, OnnxPurifier, OnnxSettings};

#[cfg(test)]
mod tests;
