//! The advae host: loads plugins, runs the evaluation, scores, trains, audits.
//!
//! The host owns the experiment and believes no plugin: it measures every returned image itself and scores with its
//! own forward passes.

pub mod attack;
pub mod cancel;
pub mod console;
pub mod doctor;
pub mod eval;
pub mod list;
pub mod lists;
pub mod memory;
pub mod model;
pub mod oracle;
pub mod pipeline;
pub mod plugin;
pub mod progress;
pub mod purify;
pub mod report;
pub mod reproduce;
pub mod rescore;
pub mod results;
pub mod score;
pub mod stats;
pub mod tensor;
pub mod threat;
pub mod train;
pub mod workers;
