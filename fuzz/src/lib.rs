//! The readers, for the targets of cargo-fuzz.
mod targets;
pub use targets::TARGETS;

/// The reader of that name.
pub fn target(name: &str) -> targets::Target {
    let known = TARGETS.iter().find(|(known, _)| *known == name);
    known.expect("a target of that name").1
}
