//! Which build of the host this is.

use std::sync::OnceLock;

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `git describe --always` said of the checkout that the host was built from, with `-dirty` where the sources of the host
/// differed from it; `unknown` where it was not built from its own checkout.
pub const COMMIT: &str = env!("ADVAE_COMMIT");

/// Both, as `--version` shows them.
pub const LINE: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("ADVAE_COMMIT"), ")");

/// The flag, with one value, that this program gives itself and nobody types.
pub const HIDDEN_FLAG: &str = "--child";

/// The command line as it can be typed again, without the folder that the program lies in.
pub fn command() -> String {
    let mut words = std::env::args().skip(1).peekable();
    if words.next_if(|word| word == HIDDEN_FLAG).is_some() {
        words.next();
    }
    std::iter::once("advae-host".to_string())
        .chain(words.map(|word| quoted(&word)))
        .collect::<Vec<_>>()
        .join(" ")
}

static LOCK: OnceLock<String> = OnceLock::new();

/// Notes the hash of the lock that this process keeps to.
pub fn hold_to(hash: String) {
    let _ = LOCK.set(hash);
}

/// Hash of the lock that this process keeps to, if it keeps to one.
pub fn held_to() -> Option<String> {
    LOCK.get().cloned()
}

/// Processor and cores.
pub fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores")
}

/// A word as a shell reads it as one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:@,+%^".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_would_cut_them() {
        assert_eq!(quoted("pgd:steps=100,targets=a"), "pgd:steps=100,targets=a");
        assert_eq!(quoted("AdvAE, white box"), "'AdvAE, white box'");
        assert_eq!(quoted("targets=[1]"), "'targets=[1]'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
