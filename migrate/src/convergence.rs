//! When to freeze.
//!
//! One rule. The predicted blackout is what a migration costs that has nothing to send, plus the time for what is still
//! to be sent. Freeze when it fits the budget and one more round would not help; go on while rounds shrink it; slow the
//! container down when they no longer do; and when time is up, do what was asked for. There is no number of rounds.
//!
//! Nothing here looks at a clock or asks anybody: facts in, a decision out.

use std::time::Duration;

/// What a blackout costs that has no memory to send, as long as no migration between the two hosts has shown it.
pub const ASSUMED_FIXED: Duration = Duration::from_millis(60);

/// What is copied of a container that stands still, in bytes a second: dumped by CRIU, sent and restored. As long as no
/// migration between the two hosts has shown it; `make bench`'s stop-and-copy figures.
pub const ASSUMED_COPIED_BYTES_PER_S: u64 = 240_000_000;

/// Time for memory within a blackout below which one more round is not worth it: a round costs about as much.
const SMALL: Duration = Duration::from_millis(4);

/// The same where a round is a program that is started and stops the container for a moment.
const SMALL_BY_IMAGES: Duration = Duration::from_millis(100);

/// A round that leaves more than this share of what it began with has not shrunk it.
const SHRUNK_TO: f64 = 0.8;

/// Rounds in a row that may fail to shrink it before the container is slowed down: one alone may be a burst.
const PATIENCE: u32 = 2;

/// What the container is slowed down to, one after the other: in percent of the CPU time that it used before.
const SLOWER: [u8; 3] = [60, 30, 10];

/// What is to be done when time is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnTimeout {
    /// Give up: the container stays where it is.
    #[default]
    Cancel,
    /// Freeze anyway, whatever the blackout.
    Force,
}

/// What a person wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Longest blackout.
    pub max_downtime: Duration,
    /// It was asked for, and is not just the default. Then a blackout that cannot be kept is an error; otherwise it is
    /// kept as short as it can be.
    pub strict: bool,
    /// Longest time before the freeze. A round that is under way is not waited for when it is to be given up then.
    pub timeout: Duration,
    /// What to do then.
    pub on_timeout: OnTimeout,
}

/// What is known between two rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Since the migration began.
    pub elapsed: Duration,
    /// Bytes that would have to be sent if the container were frozen now.
    pub remaining_bytes: u64,
    /// Bytes a second that it writes, at least: what is written twice between two looks counts once.
    pub dirty_bytes_per_s: u64,
    /// Bytes a second that the rounds have reached.
    pub bytes_per_s: u64,
    /// The blackout with nothing to send.
    pub fixed: Duration,
}

impl Facts {
    /// Time to send what remains.
    #[must_use]
    pub fn memory(&self) -> Duration {
        time_for(self.remaining_bytes, self.bytes_per_s)
    }

    /// The blackout if it began now.
    #[must_use]
    pub fn predicted(&self) -> Duration {
        self.fixed.saturating_add(self.memory())
    }
}

/// A container whose memory is copied while it stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopAndCopy {
    /// What is to be copied.
    pub bytes: u64,
    /// Bytes a second that are dumped, sent and restored.
    pub bytes_per_s: u64,
    /// The blackout with nothing to copy.
    pub fixed: Duration,
}

impl StopAndCopy {
    /// The blackout.
    #[must_use]
    pub fn predicted(&self) -> Duration {
        self.fixed.saturating_add(time_for(self.bytes, self.bytes_per_s))
    }
}

fn time_for(bytes: u64, bytes_per_s: u64) -> Duration {
    let us = u128::from(bytes) * 1_000_000 / u128::from(bytes_per_s.max(1));
    Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// One more round.
    Round,
    /// Slow the container down to this percentage of the CPU time it used, and then one more round.
    Slow(u8),
    /// Freeze now.
    Freeze,
    /// Give up, because of this.
    GiveUp(Unreachable),
}

/// Why the wished-for blackout cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    /// Even with nothing to send it would be longer.
    #[error(
        "a blackout of {} ms cannot be kept: between these hosts it is about {} ms with nothing left to send; allow \
         more with --max-downtime", wished.as_millis(), fixed.as_millis()
    )]
    Fixed {
        /// What was wished for.
        wished: Duration,
        /// What it costs anyway.
        fixed: Duration,
    },
    /// All of its memory is copied while it stands still.
    #[error(
        "a blackout of {} ms cannot be kept: the container stands still while its {} MiB of memory are copied, which is \
         about {} ms; allow more with --max-downtime, or use --on-timeout force",
        wished.as_millis(), copied.bytes >> 20, copied.predicted().as_millis()
    )]
    StopAndCopy {
        /// What was wished for.
        wished: Duration,
        /// What is copied.
        copied: StopAndCopy,
    },
    /// The container writes faster than its memory can be sent.
    #[error(
        "after {} s the blackout would still be {} ms instead of {} ms, because the container writes memory too fast: \
         {:.1} MB/s or more, and {:.1} MB/s can be sent; allow more with --max-downtime, wait longer with --timeout, or \
         use --on-timeout force",
        elapsed.as_secs(), facts.predicted().as_millis(), wished.as_millis(),
        facts.dirty_bytes_per_s as f64 / 1e6, facts.bytes_per_s as f64 / 1e6
    )]
    Timeout {
        /// What was wished for.
        wished: Duration,
        /// What was known at last.
        facts: Facts,
        /// How long was tried.
        elapsed: Duration,
    },
    /// Time was up before everything had been sent once.
    #[error(
        "after {} s not everything had been sent once; wait longer with --timeout, or allow more with --max-bandwidth \
         where that is given",
        elapsed.as_secs()
    )]
    Unsent {
        /// How long was tried.
        elapsed: Duration,
    },
}

impl Unreachable {
    /// Whether it is a matter of time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unsent { .. })
    }
}

impl Wishes {
    /// The reason why a migration need not be begun, where there is one.
    #[must_use]
    pub fn hopeless(&self, fixed: Duration) -> Option<Unreachable> {
        let wished = self.max_downtime;
        self.refuse(fixed).then_some(Unreachable::Fixed { wished, fixed })
    }

    /// The same for a container that is not moved in rounds.
    #[must_use]
    pub fn hopeless_copy(&self, copied: StopAndCopy) -> Option<Unreachable> {
        let wished = self.max_downtime;
        self.refuse(copied.predicted())
            .then_some(Unreachable::StopAndCopy { wished, copied })
    }

    /// Whether a blackout that is at least so long is to be had at all.
    fn refuse(&self, least: Duration) -> bool {
        least > self.max_downtime && self.strict && self.on_timeout == OnTimeout::Cancel
    }
}

/// The decisions of one migration.
#[derive(Clone, Debug)]
pub struct Convergence {
    wishes: Wishes,
    /// The least that remained so far.
    least: Option<u64>,
    stuck: u32,
    slowed: usize,
    small: Duration,
}

impl Convergence {
    /// Before the first round.
    #[must_use]
    pub fn new(wishes: Wishes) -> Self {
        Self {
            wishes,
            least: None,
            stuck: 0,
            slowed: 0,
            small: SMALL,
        }
    }

    /// What to do after a round.
    pub fn decide(&mut self, facts: &Facts) -> Decision {
        if let Some(why) = self.wishes.hopeless(facts.fixed) {
            return Decision::GiveUp(why);
        }
        let shrinks = self.note(facts.remaining_bytes);
        let fits = self.fits(facts);
        if fits && (facts.memory() <= self.small || !shrinks) {
            return Decision::Freeze;
        }
        if facts.elapsed >= self.wishes.timeout {
            return match self.wishes.on_timeout {
                OnTimeout::Force => Decision::Freeze,
                OnTimeout::Cancel if fits => Decision::Freeze,
                OnTimeout::Cancel => Decision::GiveUp(self.too_late(facts, facts.elapsed)),
            };
        }
        if self.stuck >= PATIENCE
            && let Some(percent) = SLOWER.get(self.slowed)
        {
            self.slowed += 1;
            self.stuck = 0;
            return Decision::Slow(*percent);
        }
        Decision::Round
    }

    /// The same for rounds of images. The container is not slowed down: it would stand still longer in each of them. When rounds no
    /// longer shrink what remains, or there is no room for more, another one is of no use.
    pub fn decide_by_images(&mut self, facts: &Facts, has_room: bool) -> Decision {
        self.small = SMALL_BY_IMAGES;
        self.slowed = SLOWER.len();
        let decision = self.decide(facts);
        let of_use = has_room && self.stuck < PATIENCE;
        if of_use || decision != Decision::Round {
            return decision;
        }
        let may_exceed = !self.wishes.strict || self.wishes.on_timeout == OnTimeout::Force;
        if may_exceed || self.fits(facts) {
            Decision::Freeze
        } else {
            Decision::GiveUp(self.too_late(facts, facts.elapsed))
        }
    }

    /// What is to be said when time is up before the next look; nothing if the blackout would fit now.
    #[must_use]
    pub fn when_time_is_up(&self, facts: &Facts) -> Option<Unreachable> {
        (!self.fits(facts)).then(|| self.too_late(facts, self.wishes.timeout))
    }

    /// What nobody asked for strictly is not waited for in vain: memory then gets what little makes no difference.
    fn fits(&self, facts: &Facts) -> bool {
        let wished = self.wishes.max_downtime;
        facts.predicted() <= wished || facts.fixed > wished && facts.memory() <= self.small
    }

    fn too_late(&self, facts: &Facts, elapsed: Duration) -> Unreachable {
        Unreachable::Timeout {
            wished: self.wishes.max_downtime,
            facts: *facts,
            elapsed,
        }
    }

    /// Whether the last round has shrunk what remains.
    fn note(&mut self, remaining: u64) -> bool {
        let shrunk = self
            .least
            .is_none_or(|least| (remaining as f64) <= least as f64 * SHRUNK_TO);
        self.least = Some(self.least.map_or(remaining, |least| least.min(remaining)));
        self.stuck = if shrunk { 0 } else { self.stuck + 1 };
        shrunk
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn wishes() -> Wishes {
        Wishes {
            max_downtime: Duration::from_millis(100),
            strict: false,
            timeout: Duration::from_secs(60),
            on_timeout: OnTimeout::Cancel,
        }
    }

    fn facts(remaining_bytes: u64) -> Facts {
        Facts {
            elapsed: Duration::from_secs(1),
            remaining_bytes,
            dirty_bytes_per_s: remaining_bytes,
            bytes_per_s: 1_000_000_000,
            fixed: ASSUMED_FIXED,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "far from the limits")]
    fn whole(number: f64) -> u64 {
        number as u64
    }

    /// A container of `size` bytes that dirties `rate` bytes a second at random, moved at `bytes_per_s`: the decisions
    /// up to the end, and the rounds it took. `slow` is what slowing it down does to its rate.
    fn play(wishes: Wishes, size: u64, rate: f64, bytes_per_s: f64, slow: bool) -> (Decision, u32, Facts) {
        let mut convergence = Convergence::new(wishes);
        let (mut to_send, mut elapsed, mut rate) = (size as f64, 0.0, rate);
        for rounds in 1..100_000 {
            let took = (to_send / bytes_per_s).max(0.002);
            elapsed += took;
            to_send = size as f64 * (1.0 - (-rate * took / size as f64).exp());
            let facts = Facts {
                elapsed: Duration::from_secs_f64(elapsed),
                remaining_bytes: whole(to_send),
                dirty_bytes_per_s: whole(to_send / took),
                bytes_per_s: whole(bytes_per_s),
                fixed: ASSUMED_FIXED,
            };
            match convergence.decide(&facts) {
                Decision::Round => {}
                Decision::Slow(percent) if slow => rate *= f64::from(percent) / 100.0,
                Decision::Slow(_) => {}
                end => return (end, rounds, facts),
            }
        }
        panic!("no end");
    }

    #[test]
    fn an_idle_container_is_frozen_after_its_first_round() {
        assert_eq!(play(wishes(), 1024 * MIB, 0.0, 1e9, true).1, 1);
    }

    #[test]
    fn a_busy_one_is_frozen_when_rounds_have_shrunk_what_remains() {
        let (end, rounds, facts) = play(wishes(), 1024 * MIB, 200e6, 1e9, false);
        assert_eq!(end, Decision::Freeze);
        assert!(
            facts.memory() <= SMALL && rounds <= 6,
            "{rounds} rounds, {facts:?}"
        );
    }

    #[test]
    fn one_that_writes_faster_than_the_link_is_slowed_down() {
        let (end, ..) = play(wishes(), 1024 * MIB, 2e9, 1e9, true);
        assert_eq!(end, Decision::Freeze);
    }

    #[test]
    fn one_that_cannot_be_slowed_down_is_given_up_in_time_with_the_reason() {
        let (end, _, facts) = play(wishes(), 1024 * MIB, 5e9, 1e9, false);
        let Decision::GiveUp(why @ Unreachable::Timeout { .. }) = end else {
            panic!("{end:?}");
        };
        assert!(facts.elapsed >= wishes().timeout && facts.elapsed < wishes().timeout * 2);
        let said = why.to_string();
        let reasons = [
            "writes memory too fast",
            "1000.0 MB/s can be sent",
            "instead of 100 ms",
        ];
        assert!(reasons.iter().all(|reason| said.contains(reason)), "{said}");
    }

    #[test]
    fn what_fits_now_is_not_given_up_when_time_is_up_in_the_next_round() {
        let convergence = Convergence::new(wishes());
        assert_eq!(convergence.when_time_is_up(&facts(30 * MIB)), None);
        let why = convergence.when_time_is_up(&facts(50 * MIB));
        assert!(why.is_some_and(|why| why.is_timeout()), "{why:?}");
    }

    #[test]
    fn rounds_of_images_end_when_they_do_not_shrink_or_have_no_room() {
        let decisions = |wishes: Wishes, has_room, rounds| {
            let mut convergence = Convergence::new(wishes);
            let decide = |_| convergence.decide_by_images(&facts(500 * MIB), has_room);
            (0..rounds).map(decide).collect::<Vec<_>>()
        };
        let stuck = [Decision::Round, Decision::Round, Decision::Freeze];
        assert_eq!(decisions(wishes(), true, 3), stuck);
        assert_eq!(decisions(wishes(), false, 1), [Decision::Freeze]);
        let strict = Wishes {
            strict: true,
            ..wishes()
        };
        let last = decisions(strict, true, 3).pop();
        assert!(
            matches!(last, Some(Decision::GiveUp(Unreachable::Timeout { .. }))),
            "{last:?}"
        );
    }

    #[test]
    fn force_freezes_when_time_is_up() {
        let wishes = Wishes {
            on_timeout: OnTimeout::Force,
            ..wishes()
        };
        assert_eq!(play(wishes, 1024 * MIB, 5e9, 1e9, false).0, Decision::Freeze);
    }

    #[test]
    fn what_hosts_cannot_do_is_said_at_once_if_it_was_asked_for_and_done_as_well_as_it_can_be_if_not() {
        let slow_hosts = Facts {
            fixed: Duration::from_millis(150),
            ..facts(MIB)
        };
        assert_eq!(Convergence::new(wishes()).decide(&slow_hosts), Decision::Freeze);
        let strict = Wishes {
            strict: true,
            ..wishes()
        };
        let decision = Convergence::new(strict).decide(&slow_hosts);
        assert!(
            matches!(decision, Decision::GiveUp(Unreachable::Fixed { .. })),
            "{decision:?}"
        );
    }

    #[test]
    fn a_copy_that_takes_too_long_is_refused_with_what_it_would_take() {
        let strict = Wishes {
            strict: true,
            ..wishes()
        };
        let copied = StopAndCopy {
            bytes: 1024 * MIB,
            bytes_per_s: ASSUMED_COPIED_BYTES_PER_S,
            fixed: ASSUMED_FIXED,
        };
        let why = strict.hopeless_copy(copied).expect("a GiB does not fit 100 ms");
        assert!(!why.is_timeout());
        let said = why.to_string();
        let parts = [
            "100 ms cannot be kept",
            "1024 MiB",
            "4533 ms",
            "--max-downtime",
            "force",
        ];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }

    proptest! {
        #[test]
        fn a_copy_is_refused_only_where_a_limit_was_given_and_it_would_break_it(
            bytes: u64, bytes_per_s: u64, fixed_ms in 0u64..10_000, limit_ms in 1u64..100_000, strict: bool, force: bool,
        ) {
            let on_timeout = if force { OnTimeout::Force } else { OnTimeout::Cancel };
            let max_downtime = Duration::from_millis(limit_ms);
            let wishes = Wishes { max_downtime, strict, on_timeout, ..wishes() };
            let copied = StopAndCopy { bytes, bytes_per_s, fixed: Duration::from_millis(fixed_ms) };
            prop_assert!(copied.predicted() >= copied.fixed);
            let refused = wishes.hopeless_copy(copied).is_some();
            prop_assert_eq!(refused, strict && !force && copied.predicted() > max_downtime);
            // Nothing to copy is what a live move has left at best: the two answers agree there.
            let nothing = StopAndCopy { bytes: 0, ..copied };
            let live = wishes.hopeless(copied.fixed).is_some();
            prop_assert_eq!(wishes.hopeless_copy(nothing).is_some(), live);
            prop_assert!(refused || !live, "more to copy cannot take less time");
        }

        #[test]
        fn it_never_freezes_above_the_budget_before_time_is_up(
            size in 1u64..1 << 36, rate in 0.0..1e10f64, bytes_per_s in 1e6..1e10f64, slow: bool,
        ) {
            let wishes = wishes();
            let (end, _, facts) = play(wishes, size, rate, bytes_per_s, slow);
            match end {
                Decision::Freeze => prop_assert!(facts.predicted() <= wishes.max_downtime),
                Decision::GiveUp(_) => prop_assert!(facts.elapsed >= wishes.timeout),
                other => prop_assert!(false, "{other:?} is no end"),
            }
        }

        #[test]
        fn every_series_of_facts_ends(remaining in proptest::collection::vec(0u64..1 << 40, 1..50)) {
            let mut convergence = Convergence::new(wishes());
            let mut slowed = 0;
            for bytes in remaining {
                if let Decision::Slow(_) = convergence.decide(&facts(bytes)) {
                    slowed += 1;
                }
            }
            prop_assert!(slowed <= SLOWER.len());
            let late = Facts { elapsed: Duration::from_secs(61), ..facts(1 << 40) };
            let decision = convergence.decide(&late);
            let late = matches!(decision, Decision::GiveUp(Unreachable::Timeout { .. }));
            prop_assert!(late, "{decision:?}");
        }
    }
}
