//! The results of an experiment: records, the file they are kept in, and how they come back.

mod file;
mod line;
mod merge;
mod read;
mod record;

pub use file::{Results, claim, lines_of};
pub use line::Line;
pub use merge::merge;
pub use read::{Collector, Records, read};
pub use record::{
    Cell, CellConfig, CellHeader, Check, DrawShares, Granted, Look, ModelConfig, Named, Picture, PluginConfig,
    Precision, Row, Rule, Run, Search, Stage, Substitute,
};

#[cfg(test)]
pub(crate) mod tests;
