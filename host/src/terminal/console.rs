//! Writing to a person or a pipe. Text of plugins, files and arguments may hold escape codes: they are shown, never obeyed.

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::Level;
use tracing_subscriber::fmt;

/// Prints to the standard output. A reader who has gone away is no error. On a terminal control characters are escaped.
///
/// # Errors
/// Where the output cannot be written.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let written = match out.is_terminal() {
        true => out.write_all(printable_lines(text).as_bytes()),
        false => out.write_all(text.as_bytes()),
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write to the output"),
        _ => Ok(()),
    }
}

/// Columns that a table may take: `$COLUMNS`, else the terminal's width; absent where the output is no terminal.
pub fn width() -> Option<usize> {
    let asked = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let terminal = || {
        console::Term::stdout()
            .size_checked()
            .map(|(_, columns)| usize::from(columns))
    };
    asked.or_else(terminal)
}

/// Prints a line to the error stream, above the progress bar where there is one, with control characters escaped.
pub fn say(text: &str) {
    if HUSHED.load(Ordering::Relaxed) {
        return;
    }
    let text = printable_lines(text);
    // Nobody is left to be told where the error stream is closed.
    let write = || drop(writeln!(std::io::stderr().lock(), "{text}"));
    let bar = bar().clone();
    match bar {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

static HUSHED: AtomicBool = AtomicBool::new(false);

/// Whether [`say`] says nothing, where everything has been said before.
pub fn hush(hushed: bool) {
    HUSHED.store(hushed, Ordering::Relaxed);
}

static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn bar() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names the bar that lines are printed above; absent: none.
pub(super) fn set_bar(shown: Option<ProgressBar>) {
    *bar() = shown;
}

/// The text on one line, safe to be shown: control characters and those that turn the direction of writing are escaped.
pub fn printable(text: &str) -> String {
    escaped(text, &[])
}

/// The same for a text of several lines, which keeps its line ends and tabs.
pub fn printable_lines(text: &str) -> String {
    escaped(text, &['\n', '\t'])
}

fn escaped(text: &str, kept: &[char]) -> String {
    // Marks, overrides and isolates of bidirectional text, and separators of lines and paragraphs.
    let invisible =
        |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match !kept.contains(&c) && (c.is_control() || invisible(c)) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// An error and its causes on one printable line, and below it what it lists, indented.
pub fn with_list(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let (list, rest): (Vec<&str>, Vec<&str>) = text.split('\n').partition(|line| line.starts_with("  "));
    let line = one_line(&anyhow::Error::msg(rest.join("\n")));
    let list = list.into_iter().map(|line| format!("\n{}", printable(line)));
    line + &list.collect::<String>()
}

/// An error and its causes on one printable line.
pub fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let parts = text.split('\n').map(str::trim).filter(|part| !part.is_empty());
    printable(&parts.collect::<Vec<_>>().join(" "))
}

/// Sends logs to the error stream: `-v` says what is done, `-vv` how.
pub fn log(verbosity: u8) {
    let level = match verbosity {
        0 => return,
        1 => Level::INFO,
        _ => Level::DEBUG,
    };
    fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        .without_time()
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let error = anyhow::anyhow!("cause\n  over two lines").context("plugin 'm'");
        assert_eq!(one_line(&error), "plugin 'm': cause over two lines");
    }

    #[test]
    fn escape_codes_are_shown_and_not_obeyed() {
        let error = anyhow::anyhow!("\u{1b}[2J\u{9b}1mgone\r").context("plugin 'm\u{7f}'");
        assert_eq!(one_line(&error), "plugin 'm\\u{7f}': \\u{1b}[2J\\u{9b}1mgone");
        assert_eq!(printable("a\tb\nc"), "a\\tb\\nc");
        assert_eq!(printable_lines("a\tb\nc\u{8}"), "a\tb\nc\\u{8}");
        assert_eq!(printable("abc\u{202e}fed"), "abc\\u{202e}fed");
        assert_eq!(printable("Größe 猫 |é̂|"), "Größe 猫 |é̂|");
    }
}
