//! Training: from a recipe to weights.

mod averaging;
mod checkpoint;
mod craft;
mod half;
mod loss;
pub mod memory;
mod objective;
mod recipe;
mod schedule;
mod trainer;

pub use checkpoint::{Checkpoint, Folder, Position, Sums};
pub use recipe::{CraftOn, Keep, Objective, Recipe, Stage, Statistics};
pub use schedule::{Rules, Schedule};
pub use trainer::{EpochLog, Observer, Outcome, Trainer};
