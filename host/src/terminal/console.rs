//! Writing to a person or a pipe.

use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};
use tracing::Level;
use tracing_subscriber::fmt;

/// Prints to the standard output. A reader who has gone away is no error.
///
/// # Errors
/// Where the output cannot be written.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
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

/// An error and its causes on one line.
pub fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    text.split('\n')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
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
}
