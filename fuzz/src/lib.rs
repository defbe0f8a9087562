//! The readers, for the targets of cargo-fuzz.
mod targets;
pub use targets::TARGETS;

/// The reader of that name. libFuzzer's own hook ends the process at every panic, those that a reader catches from a library included; one that
/// leaves the reader ends it all the same.
pub fn target(name: &str) -> targets::Target {
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| std::panic::set_hook(Box::new(|_| ())));
    let known = TARGETS.iter().find(|(known, _)| *known == name);
    known.expect("a target of that name").1
}
