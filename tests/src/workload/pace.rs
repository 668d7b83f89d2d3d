//! So much work per second and no more, evenly.

use std::time::{Duration, Instant};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(5);
/// Work that was missed for longer than this is not made up for: a move is no debt.
const MOST_BEHIND: Duration = Duration::from_millis(50);

/// Hands out work at a rate.
#[derive(Debug)]
pub struct Pace {
    per_second: f64,
    paid_until: Instant,
}

impl Pace {
    /// So many pieces per second.
    #[must_use]
    pub fn new(per_second: f64) -> Self {
        Self {
            per_second,
            paid_until: Instant::now(),
        }
    }

    /// Rests until there is work, and says how many pieces.
    pub fn wait(&mut self) -> usize {
        loop {
            let now = Instant::now();
            let earliest = now.checked_sub(MOST_BEHIND).unwrap_or(now);
            self.paid_until = self.paid_until.max(earliest);
            let due = now.saturating_duration_since(self.paid_until);
            let pieces = (due.as_secs_f64() * self.per_second).floor();
            if due >= TICK && pieces >= 1.0 {
                self.paid_until += Duration::from_secs_f64(pieces / self.per_second);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "not negative, and at most the work of 50 ms"
                )]
                return pieces as usize;
            }
            std::thread::sleep(TICK.saturating_sub(due).max(Duration::from_millis(1)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_comes_at_its_rate() {
        let (mut pace, begun) = (Pace::new(10_000.0), Instant::now());
        let mut pieces = 0;
        while begun.elapsed() < Duration::from_millis(200) {
            pieces += pace.wait();
        }
        let most = begun.elapsed().as_secs_f64() * 10_000.0;
        assert!(pieces >= 100 && pieces as f64 <= most, "{pieces} of {most}");
    }
}
