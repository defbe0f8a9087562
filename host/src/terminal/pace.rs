//! Lines of progress where there is no terminal for a bar.

use std::time::{Duration, Instant};

/// Time between two lines.
const BETWEEN_LINES: Duration = Duration::from_secs(30);

/// Says when the next line of progress is due.
#[derive(Clone, Copy, Debug)]
pub struct Pace(Instant);

impl Pace {
    /// The first line is due 30 s after `now`.
    pub fn new(now: Instant) -> Self {
        Self(now)
    }

    /// Whether 30 s have passed since the last line; if so, the next 30 s begin.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = now.saturating_duration_since(self.0) >= BETWEEN_LINES;
        if due {
            self.0 = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_due_every_thirty_seconds_at_most() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let seconds = [0, 29, 30, 31, 59, 60, 200, 229, 230];
        let due = seconds.map(|s| pace.due(start + Duration::from_secs(s)));
        assert_eq!(due, [false, false, true, false, false, true, true, false, true]);
    }
}
