//! Memory as a chain of CRIU's images: each round holds what was written since the one before, and the dump what was written since the
//! last. What is known between two rounds is what the last one has sent.

use std::time::{Duration, Instant};

use tranship_proto::pages::PAGE_BYTES;
use tranship_proto::v1::{Progress, Round};

use crate::convergence::Facts;
use crate::rounds::per_second;
use crate::timings::micros;

/// Bytes a second at which a restore reads a chain back: of stop and copy's 240 MB/s a third is taken for the restore. It was not
/// measured on a kernel with soft-dirty.
const RESTORED_BYTES_PER_S: u64 = 720_000_000;

/// A round that sends less than this says nothing about throughput: most of its time is that of programs that start.
const TELLING_BYTES: u64 = 8 << 20;

/// Throughput as long as no round has shown it: stop and copy's.
const ASSUMED_BYTES_PER_S: u64 = 240_000_000;

/// So often the container's memory may be in the rounds together, which the destination keeps until the restore.
const CHAIN: u64 = 2;

/// The rounds of one migration.
#[derive(Debug)]
pub struct Chain {
    memory_bytes: u64,
    rounds: Vec<Round>,
    sent_bytes: u64,
    /// When the round before was begun.
    begun: Option<Instant>,
    bytes_per_s: u64,
    dirty_bytes_per_s: u64,
}

impl Chain {
    /// Nothing has been sent of a container that has so much memory.
    #[must_use]
    pub fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            rounds: Vec::new(),
            sent_bytes: 0,
            begun: None,
            bytes_per_s: ASSUMED_BYTES_PER_S,
            dirty_bytes_per_s: 0,
        }
    }

    /// What the restore takes that reads the whole chain, however little is left to send.
    #[must_use]
    pub fn restoring(memory_bytes: u64) -> Duration {
        Duration::from_secs_f64(memory_bytes as f64 / RESTORED_BYTES_PER_S as f64)
    }

    /// The number of the next round.
    #[must_use]
    pub fn next(&self) -> u32 {
        u32::try_from(self.rounds.len()).unwrap_or(u32::MAX)
    }

    /// A round that began then, took so long to be written by CRIU, and is stored at the destination now.
    pub fn stored(&mut self, began: Instant, written: Duration, bytes: u64) -> Round {
        let took = began.elapsed();
        let round = Round {
            number: self.next(),
            pages: bytes / PAGE_BYTES,
            zero_pages: 0,
            bytes,
            scan_us: 0,
            read_us: micros(written),
            duration_us: micros(took),
            frozen: false,
        };
        self.sent_bytes = self.sent_bytes.saturating_add(bytes);
        if bytes >= TELLING_BYTES {
            self.bytes_per_s = per_second(bytes, took);
        }
        if let Some(before) = self.begun.replace(began) {
            self.dirty_bytes_per_s = per_second(bytes, began.saturating_duration_since(before));
        }
        self.rounds.push(round);
        round
    }

    /// What is known now. What would be sent if the container were frozen is taken to be what the last round has sent.
    #[must_use]
    pub fn facts(&self, elapsed: Duration, fixed: Duration) -> Facts {
        Facts {
            elapsed,
            remaining_bytes: self.last_bytes(),
            dirty_bytes_per_s: self.dirty_bytes_per_s,
            bytes_per_s: self.bytes_per_s,
            fixed,
        }
    }

    /// Whether another round like the last would fit at the destination.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let room = self.memory_bytes.saturating_mul(CHAIN);
        self.sent_bytes.saturating_add(self.last_bytes()) <= room
    }

    /// Where things stand, for whoever watches.
    #[must_use]
    pub fn progress(&self, facts: &Facts) -> Progress {
        Progress {
            round: self.next(),
            dirty_bytes_per_s: self.dirty_bytes_per_s,
            sent_bytes: self.sent_bytes,
            throughput_bytes_per_s: self.bytes_per_s,
            remaining_bytes: facts.remaining_bytes,
            predicted_blackout_us: micros(facts.predicted()),
            eta_ms: u64::try_from(facts.memory().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// The rounds, when there are no more.
    #[must_use]
    pub fn into_rounds(self) -> Vec<Round> {
        self.rounds
    }

    fn last_bytes(&self) -> u64 {
        self.rounds.last().map_or(0, |round| round.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn what_the_last_round_has_sent_is_what_remains() {
        let mut chain = Chain::new(100 * MIB);
        let begin = Instant::now().checked_sub(Duration::from_secs(3)).unwrap();
        assert_eq!(chain.stored(begin, Duration::from_secs(1), 100 * MIB).number, 0);
        let later = begin + Duration::from_secs(2);
        let round = chain.stored(later, Duration::ZERO, 10 * MIB);
        assert_eq!((round.number, round.pages), (1, 2560));
        let facts = chain.facts(Duration::from_secs(3), Duration::ZERO);
        assert_eq!(facts.remaining_bytes, 10 * MIB);
        assert_eq!(facts.dirty_bytes_per_s, 5 * MIB);
        assert!(facts.bytes_per_s <= 10 * MIB && facts.bytes_per_s > MIB);
    }

    #[test]
    fn a_chain_that_does_not_shrink_has_an_end() {
        let mut chain = Chain::new(100 * MIB);
        let mut rounds = 0;
        while chain.has_room() {
            chain.stored(Instant::now(), Duration::ZERO, 60 * MIB);
            rounds += 1;
        }
        assert_eq!(rounds, 3);
    }
}
