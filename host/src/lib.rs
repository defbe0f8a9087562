//! The advae host: loads plugins, runs the evaluation, scores, trains, audits.
//!
//! The host owns the experiment and believes no plugin: it measures every returned image itself and scores with its
//! own forward passes. `use` goes downwards in this list, never up; `tests/architecture.rs` keeps it so.

pub mod audit;
pub mod commands;
pub mod experiment;
pub mod isolation;
pub mod plugin;
pub mod report;
pub mod results;
pub mod terminal;
pub mod training;
pub mod wire;
