//! Progress with time left, by oracle passes: on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bar of a run; hidden where the error stream is no terminal.
#[derive(Clone)]
pub struct Progress(ProgressBar);

impl Progress {
    /// A bar over that many passes of a sample.
    pub fn new(passes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(passes), ProgressDrawTarget::stderr_with_hz(5));
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed} left {eta}");
        Self(style.into_iter().fold(bar, |bar, style| bar.with_style(style)))
    }

    /// A bar that is never seen.
    pub fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Says what is being done.
    pub fn say(&self, what: impl Into<String>) {
        self.0.set_message(what.into());
    }

    /// Passes that need not be made, such as those of resumed samples.
    pub fn skip(&self, passes: u64) {
        self.0.inc(passes);
        self.0.reset_eta();
    }

    /// A counter for one micro-batch that is expected to need `passes`.
    pub fn ticker(&self, passes: u64) -> Ticker {
        Ticker {
            bar: self.0.clone(),
            expected: passes,
            seen: Arc::default(),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// Counts the passes of one micro-batch, never more than were expected.
#[derive(Clone)]
pub struct Ticker {
    bar: ProgressBar,
    expected: u64,
    seen: Arc<AtomicU64>,
}

impl Ticker {
    /// A counter that nobody looks at.
    pub fn silent() -> Self {
        Progress::hidden().ticker(0)
    }

    /// Counts passes.
    pub fn tick(&self, passes: u64) {
        let before = self.seen.fetch_add(passes, Ordering::Relaxed);
        self.bar.inc(passes.min(self.expected.saturating_sub(before)));
    }

    /// Counts what an attack that stopped early did not need.
    pub fn complete(&self) {
        self.tick(self.expected.saturating_sub(self.seen.load(Ordering::Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_counts_exactly_what_was_expected() {
        let progress = Progress::new(20);
        let (short, long) = (progress.ticker(10), progress.ticker(10));
        short.tick(3);
        short.complete();
        long.tick(8);
        long.tick(8);
        long.complete();
        assert_eq!(progress.0.position(), 20);
    }
}
