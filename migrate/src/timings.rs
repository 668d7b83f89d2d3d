//! Monotonic spans of one role. Every stretch of a migration has a name, so that the blackout can be accounted for.

use std::future::Future;
use std::time::{Duration, Instant};

use tranship_proto::v1::{MigrationRole, Phase, Span};

/// The spans of one role, from the moment it began.
#[derive(Debug)]
pub struct Timings {
    role: MigrationRole,
    began: Instant,
    phase: Phase,
    spans: Vec<Span>,
}

impl Timings {
    /// Begins now.
    #[must_use]
    pub fn begin(role: MigrationRole) -> Self {
        Self {
            role,
            began: Instant::now(),
            phase: Phase::Unspecified,
            spans: Vec::new(),
        }
    }

    /// Later spans belong to this phase.
    pub fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// The phase the role is in.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Measures a future as the span `name`, whatever it returns.
    pub async fn measure<T>(&mut self, name: &str, work: impl Future<Output = T>) -> T {
        let start = Instant::now();
        let result = work.await;
        self.record(name, start, start.elapsed());
        result
    }

    /// Adds a span that was measured elsewhere on this host.
    pub fn record(&mut self, name: &str, start: Instant, duration: Duration) {
        self.spans.push(Span {
            name: name.to_owned(),
            role: self.role.into(),
            start_us: micros(start.saturating_duration_since(self.began)),
            duration_us: micros(duration),
            phase: self.phase.into(),
        });
    }

    /// Microseconds since the role began.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        micros(self.began.elapsed())
    }

    /// The spans so far, in the order in which they ended.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// Whole microseconds; half a million years fit.
#[must_use]
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The blackout, in microseconds: from the freeze to the source's Go, the way to the destination, and from there to
/// the first instruction. The two clocks are not comparable, so the way there is taken as half of what the answer
/// took beyond the time the destination had it.
#[must_use]
pub fn blackout_us(
    freeze_to_go: Duration,
    go_to_ack: Duration,
    go_to_running_us: u64,
    go_to_answer_us: u64,
) -> u64 {
    let on_the_way = micros(go_to_ack).saturating_sub(go_to_answer_us) / 2;
    micros(freeze_to_go)
        .saturating_add(on_the_way)
        .saturating_add(go_to_running_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_there_counts_half_of_the_round_trip() {
        let blackout = blackout_us(
            Duration::from_millis(100),
            Duration::from_millis(24),
            10_000,
            20_000,
        );
        assert_eq!(blackout, 100_000 + 2_000 + 10_000);
    }

    #[test]
    fn a_destination_whose_clock_runs_fast_does_not_make_it_negative() {
        assert_eq!(
            blackout_us(Duration::from_millis(1), Duration::from_millis(1), 5_000, 5_000),
            1_000 + 5_000
        );
    }
}
