//! The commands, one file or folder each: flags to settings, and what is printed.

pub mod audit;
mod complain;
pub mod data;
pub mod doctor;
pub mod eval;
pub mod lock;
pub mod merge;
pub mod new;
pub mod plugins;
pub mod purify;
pub mod report;
pub mod reproduce;
pub mod run;
pub mod score;
pub mod shell;
pub mod train;
