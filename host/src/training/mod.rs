//! Training: from a recipe to weights.

mod augmentation;
mod averaging;
mod craft;
mod exact;
mod folder;
mod fraction;
mod half;
mod key;
mod loss;
pub mod memory;
mod objective;
mod position;
mod recipe;
mod schedule;
mod trainer;

pub use augmentation::Augmentation;
pub use folder::{Checkpoint, Folder, LOG, RECIPE, WEIGHTS};
pub use position::{Position, Sums, Total};
pub use recipe::{CraftOn, Keep, Objective, Recipe, Stage, Statistics};
pub use schedule::{Best, Rules, Schedule};
pub use trainer::{EpochLog, Observer, Outcome, Trainer};
