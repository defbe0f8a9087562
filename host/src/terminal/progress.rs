//! Progress with time left, by oracle passes: a bar on a terminal, elsewhere a line from time to time.

use super::console;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines, and before the first.
const BETWEEN_LINES: Duration = Duration::from_secs(30);
/// How long a run is watched before it is estimated.
const BEFORE_ESTIMATE: Duration = Duration::from_secs(5);
/// A run that takes no longer than this is not worth an estimate.
const SHORT: Duration = Duration::from_secs(120);

/// Progress of a run; clones share it.
#[derive(Clone)]
pub struct Progress {
    bar: ProgressBar,
    told: Arc<Told>,
}

/// What was said of a run, and what for.
struct Told {
    begun: Instant,
    /// Whether lines are printed: only where somebody looks and sees no bar.
    lines: bool,
    skipped: AtomicU64,
    ended: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    what: String,
    /// When the last line was printed, since the beginning.
    last: Duration,
    estimated: bool,
}

impl Progress {
    /// Over that many passes of a sample.
    pub fn new(passes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(passes), ProgressDrawTarget::stderr_with_hz(5));
        let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {elapsed} left {eta}");
        let bar = style.into_iter().fold(bar, |bar, style| bar.with_style(style));
        let lines = bar.is_hidden();
        if !lines {
            console::set_bar(Some(bar.clone()));
        }
        Self::of(bar, lines)
    }

    /// Progress that nobody sees.
    pub fn hidden() -> Self {
        Self::of(ProgressBar::hidden(), false)
    }

    fn of(bar: ProgressBar, lines: bool) -> Self {
        let told = Told {
            begun: Instant::now(),
            lines,
            skipped: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            state: Mutex::default(),
        };
        let progress = Self {
            bar,
            told: Arc::new(told),
        };
        progress.beat();
        progress
    }

    /// Lines go on while no pass is counted, as when a threat model prepares: from a thread that ends with the run.
    fn beat(&self) {
        let (bar, told) = (self.bar.clone(), Arc::downgrade(&self.told));
        let watch = move || {
            loop {
                std::thread::sleep(Duration::from_millis(500));
                let Some(told) = told.upgrade() else { return };
                let (begun, bar) = (told.begun, bar.clone());
                if let Some(line) = (Self { bar, told }).line_after(begun.elapsed()) {
                    console::say(&line);
                }
            }
        };
        if self.told.lines {
            std::thread::spawn(watch);
        }
    }

    /// Says what is being done.
    pub fn say(&self, what: impl Into<String>) {
        let what = console::printable(&what.into());
        self.told.state().what = what.clone();
        self.bar.set_message(what);
    }

    /// Passes that need not be made, such as those of resumed samples.
    pub fn skip(&self, passes: u64) {
        self.told.skipped.fetch_add(passes, Ordering::Relaxed);
        self.bar.inc(passes);
        self.bar.reset_eta();
    }

    /// Says once how long all `cells` are likely to take, where that is more than two minutes. To be called after every micro-batch: it
    /// waits until there is something to go by.
    pub fn estimate(&self, cells: usize) {
        if let Some(line) = self.estimate_after(self.told.begun.elapsed(), cells) {
            console::say(&line);
        }
    }

    fn estimate_after(&self, gone: Duration, cells: usize) -> Option<String> {
        let mut state = self.told.state();
        if state.estimated || gone < BEFORE_ESTIMATE {
            return None;
        }
        let all = gone + self.left(gone)?;
        state.estimated = true;
        let cells = if cells == 1 {
            "the cell".into()
        } else {
            format!("all {cells} cells")
        };
        // Searches that end early take less than they were counted for.
        (all > SHORT).then(|| format!("up to {} for {cells}", duration(all)))
    }

    /// Time left, at the speed so far.
    fn left(&self, gone: Duration) -> Option<Duration> {
        let all = self.bar.length()?;
        let position = self.bar.position();
        let made = position.saturating_sub(self.told.skipped.load(Ordering::Relaxed));
        (made > 0).then(|| gone.mul_f64(all.saturating_sub(position) as f64 / made as f64))
    }

    /// The line that is due, if one is.
    fn line_after(&self, gone: Duration) -> Option<String> {
        let mut state = self.told.state();
        let silent = !self.told.lines || self.told.ended.load(Ordering::Relaxed);
        if silent || gone < state.last + BETWEEN_LINES {
            return None;
        }
        state.last = gone;
        let percent = 100 * self.bar.position() / self.bar.length()?.max(1);
        let what = if state.what.is_empty() {
            String::new()
        } else {
            format!("{}: ", state.what)
        };
        let left = self.left(gone);
        let left = left.map_or_else(String::new, |left| format!(", up to {} left", duration(left)));
        Some(format!("{what}{percent} %, {} gone{left}", duration(gone)))
    }

    fn inc(&self, passes: u64) {
        self.bar.inc(passes);
    }

    /// A counter for one micro-batch that is expected to need `passes`.
    pub fn ticker(&self, passes: u64) -> Ticker {
        Ticker {
            progress: self.clone(),
            expected: passes,
            seen: Arc::default(),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.told.ended.store(true, Ordering::Relaxed);
        console::set_bar(None);
        self.bar.finish_and_clear();
    }
}

impl Told {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In seconds, minutes, or hours and minutes.
fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    let minutes = (seconds + 30) / 60;
    match (seconds, minutes) {
        (..100, _) => format!("{seconds} s"),
        (_, ..100) => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

/// Counts the passes of one micro-batch, never more than were expected.
#[derive(Clone)]
pub struct Ticker {
    progress: Progress,
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
        self.progress.inc(passes.min(self.expected.saturating_sub(before)));
    }

    /// Counts what an attack that stopped early did not need.
    pub fn complete(&self) {
        self.tick(self.expected.saturating_sub(self.seen.load(Ordering::Relaxed)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lines(passes: u64) -> Progress {
        let bar = ProgressBar::with_draw_target(Some(passes), ProgressDrawTarget::hidden());
        Progress::of(bar, true)
    }

    #[test]
    fn a_batch_counts_exactly_what_was_expected() {
        let progress = lines(20);
        let (short, long) = (progress.ticker(10), progress.ticker(10));
        short.tick(3);
        short.complete();
        long.tick(8);
        long.tick(8);
        long.complete();
        assert_eq!(progress.bar.position(), 20);
    }

    #[test]
    fn a_line_is_due_every_thirty_seconds_where_there_is_no_terminal() {
        let progress = lines(1000);
        progress.say("pgd on model_x + advae, white_box");
        assert_eq!(progress.line_after(29 * SECOND), None);
        let line = progress.line_after(40 * SECOND).unwrap();
        assert_eq!(
            line, "pgd on model_x + advae, white_box: 0 %, 40 s gone",
            "while nothing is known"
        );
        progress.bar.inc(430);
        let line = progress.line_after(120 * SECOND).unwrap();
        assert_eq!(
            line,
            "pgd on model_x + advae, white_box: 43 %, 2 min gone, up to 3 min left"
        );
        assert_eq!(progress.line_after(149 * SECOND), None);
        assert!(progress.line_after(150 * SECOND).is_some());
        let seen = Progress {
            told: Progress::hidden().told,
            ..progress.clone()
        };
        assert_eq!(seen.line_after(1000 * SECOND), None, "on a terminal there is a bar");
        progress.finish();
        assert_eq!(progress.line_after(1000 * SECOND), None, "the run is over");
    }

    #[test]
    fn resumed_samples_do_not_count_as_speed() {
        let progress = lines(1000);
        progress.skip(500);
        progress.bar.inc(100);
        assert_eq!(progress.left(10 * SECOND), Some(40 * SECOND));
    }

    #[test]
    fn a_long_run_is_estimated_once() {
        let progress = lines(1000);
        assert_eq!(progress.estimate_after(10 * SECOND, 12), None, "nothing is known yet");
        progress.bar.inc(10);
        assert_eq!(progress.estimate_after(SECOND, 12), None, "too early to say");
        let line = progress.estimate_after(6 * SECOND, 12);
        assert_eq!(line.as_deref(), Some("up to 10 min for all 12 cells"));
        assert_eq!(progress.estimate_after(60 * SECOND, 12), None);
        let short = lines(1000);
        short.bar.inc(500);
        assert_eq!(short.estimate_after(6 * SECOND, 1), None);
    }

    #[test]
    fn durations_are_rounded_as_a_person_would() {
        let said = [59, 99, 100, 3600, 5969, 6000, 7261].map(|s| duration(s * SECOND));
        assert_eq!(
            said,
            ["59 s", "99 s", "2 min", "60 min", "99 min", "1 h 40 min", "2 h 1 min"]
        );
    }
}
