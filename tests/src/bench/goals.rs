//! What is wanted of the figures, and whether they are that.
//!
//! A goal looks at what was measured and finds nothing when its scenario was not run, or not with whom it is compared.

use super::course::Outcome;
use super::figures::{Figures, ratio, slope};
use super::load::Load;
use super::subject::Move;

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// What is measured.
    pub what: &'static str,
    /// What it must reach, in words.
    pub must: &'static str,
    /// What is aimed at, in words.
    pub aim: &'static str,
    /// What it has reached.
    pub judge: fn(&[Outcome]) -> Option<Reached>,
}

/// A figure and a verdict.
#[derive(Clone, Debug, PartialEq)]
pub struct Reached {
    /// In words.
    pub figure: String,
    /// Whether it is what it must be.
    pub is_met: bool,
}

/// All of them, in the order of the scenarios.
pub const GOALS: &[Goal] = &[
    Goal {
        what: "redis-1g: the client's stall",
        must: "<= 120 ms",
        aim: "50 ms",
        judge: |all| stall_within(all, "redis-1g", 120_000),
    },
    Goal {
        what: "redis-1g: runc+rsync's stall against Tranship's",
        must: ">= 60 times",
        aim: "",
        judge: |all| times_less(all, "redis-1g", 60.0),
    },
    Goal {
        what: "growth of the stall from 64 MiB to 4 GiB, by least squares",
        must: "<= 10 ms per GiB",
        aim: "1 ms per GiB",
        judge: |all| growth(all, |one| one.noticed.stall_us),
    },
    Goal {
        what: "growth of the blackout, likewise",
        must: "<= 10 ms per GiB",
        aim: "1 ms per GiB",
        judge: |all| growth(all, |one| one.moved.blackout_us),
    },
    Goal {
        what: "redis-2g: the whole move against one plain TLS copy",
        must: "<= 1.5 times",
        aim: "1.1 times",
        judge: against_tls,
    },
    Goal {
        what: "dirty-10, dirty-50, dirty-200: the worst of their median stalls",
        must: "<= 150 ms",
        aim: "60 ms",
        judge: dirty_stall,
    },
    Goal {
        what: "dirty-10, dirty-50, dirty-200: bytes sent against the geometric ideal, the worst median",
        must: "<= 1.25 times",
        aim: "1.05 times",
        judge: dirty_bytes,
    },
    Goal {
        what: "processes-128: runc+rsync's stall against Tranship's",
        must: ">= 3 times",
        aim: "6 times",
        judge: |all| times_less(all, "processes-128", 3.0),
    },
    Goal {
        what: "threads-256: runc+rsync's stall against Tranship's",
        must: ">= 3 times",
        aim: "6 times",
        judge: |all| times_less(all, "threads-256", 3.0),
    },
    Goal {
        what: "connections-1000: the longest wait beyond the blackout (no reset and no lost answer, or there is no figure)",
        must: "<= 50 ms",
        aim: "5 ms",
        judge: beyond_blackout,
    },
    Goal {
        what: "busy-1g: slow-down of redis-benchmark before the freeze",
        must: "<= 10 %",
        aim: "3 %",
        judge: slow_down,
    },
    Goal {
        what: "the largest peak of a daemon's memory in any move",
        must: "<= 64 MiB",
        aim: "",
        judge: peak_memory,
    },
];

const TRANSHIP: &str = "tranship";

fn of<'a>(all: &'a [Outcome], scenario: &str) -> Option<&'a Outcome> {
    all.iter().find(|outcome| outcome.scenario == scenario)
}

fn median(outcome: &Outcome, subject: &str, read: impl Fn(&Move) -> Option<u64>) -> Option<u64> {
    Figures::of(outcome.moves_by(subject).filter_map(read)).map(|figures| figures.median)
}

fn stall(outcome: &Outcome, subject: &str) -> Option<u64> {
    median(outcome, subject, |one| one.noticed.stall_us)
}

/// A duration as the table has it.
fn in_ms(us: u64, most_us: u64) -> Reached {
    Reached {
        figure: format!("{}.{} ms", us / 1000, us % 1000 / 100),
        is_met: us <= most_us,
    }
}

fn stall_within(all: &[Outcome], scenario: &str, most_us: u64) -> Option<Reached> {
    stall(of(all, scenario)?, TRANSHIP).map(|us| in_ms(us, most_us))
}

fn times_less(all: &[Outcome], scenario: &str, least: f64) -> Option<Reached> {
    let outcome = of(all, scenario)?;
    let times = ratio(stall(outcome, "runc+rsync")?, stall(outcome, TRANSHIP)?);
    Some(Reached {
        figure: format!("{times:.1} times"),
        is_met: times >= least,
    })
}

#[expect(clippy::cast_precision_loss, reason = "measurements are far below 2^52")]
fn growth(all: &[Outcome], read: fn(&Move) -> Option<u64>) -> Option<Reached> {
    let mut points = Vec::new();
    for outcome in all {
        if let Load::Redis { mib } = outcome.load {
            let measured = outcome.moves_by(TRANSHIP).filter_map(read);
            points.extend(measured.map(|us| (mib as f64 / 1024.0, us as f64 / 1000.0)));
        }
    }
    let per_gib = slope(&points)?;
    Some(Reached {
        figure: format!("{per_gib:.1} ms per GiB"),
        is_met: per_gib <= 10.0,
    })
}

fn against_tls(all: &[Outcome]) -> Option<Reached> {
    let outcome = of(all, "redis-2g")?;
    let total = |subject| median(outcome, subject, |one| Some(one.moved.total_us));
    let times = ratio(total(TRANSHIP)?, total("plain TLS")?);
    Some(Reached {
        figure: format!("{times:.2} times"),
        is_met: times <= 1.5,
    })
}

fn dirty(all: &[Outcome]) -> impl Iterator<Item = &Outcome> {
    all.iter()
        .filter(|outcome| matches!(outcome.load, Load::Dirtier { .. }))
}

fn dirty_stall(all: &[Outcome]) -> Option<Reached> {
    let worst = dirty(all).filter_map(|outcome| stall(outcome, TRANSHIP)).max()?;
    Some(in_ms(worst, 150_000))
}

fn dirty_bytes(all: &[Outcome]) -> Option<Reached> {
    let permille = |outcome: &Outcome| median(outcome, TRANSHIP, |one| permille_of_ideal(outcome.load, one));
    let worst = dirty(all).filter_map(permille).max()?;
    Some(Reached {
        figure: format!("{}.{:02} times", worst / 1000, worst % 1000 / 10),
        is_met: worst <= 1250,
    })
}

/// What was sent in thousandths of the ideal: all of the memory once, then what was changed meanwhile, then what was
/// changed while that was sent... With `rate` of the changes and `speed` of the sending that is `memory / (1 - rate / speed)`.
/// The speed is that of this move, up to the freeze; none for a move that sent nothing before it.
#[expect(clippy::cast_precision_loss, reason = "measurements are far below 2^52")]
pub fn permille_of_ideal(load: Load, one: &Move) -> Option<u64> {
    let Load::Dirtier { mib, mib_per_s } = load else {
        return None;
    };
    let moved = &one.moved;
    if moved.before_freeze_us * 2 < moved.total_us {
        return None;
    }
    let speed = moved.bytes as f64 / (moved.before_freeze_us as f64 / 1e6);
    let share = mib_per_s as f64 * 1_048_576.0 / speed;
    if share >= 1.0 {
        return None;
    }
    let ideal = mib as f64 * 1_048_576.0 / (1.0 - share);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and small"
    )]
    Some((moved.bytes as f64 / ideal * 1000.0) as u64)
}

fn beyond_blackout(all: &[Outcome]) -> Option<Reached> {
    let outcome = of(all, "connections-1000")?;
    let beyond = |one: &Move| Some(one.noticed.stall_us?.saturating_sub(one.moved.blackout_us?));
    median(outcome, TRANSHIP, beyond).map(|us| in_ms(us, 50_000))
}

fn slow_down(all: &[Outcome]) -> Option<Reached> {
    let lost = |one: &Move| {
        let (before, meanwhile) = (one.noticed.rate_before?, one.noticed.rate_meanwhile?);
        (before.saturating_sub(meanwhile) * 1000).checked_div(before)
    };
    let permille = median(of(all, "busy-1g")?, TRANSHIP, lost)?;
    Some(Reached {
        figure: format!("{}.{} %", permille / 10, permille % 10),
        is_met: permille <= 100,
    })
}

fn peak_memory(all: &[Outcome]) -> Option<Reached> {
    let moves = all.iter().flat_map(|outcome| outcome.moves_by(TRANSHIP));
    let peak = moves.flat_map(|one| &one.moved.daemons_peak_bytes).max()?;
    Some(Reached {
        figure: format!("{} MiB", peak >> 20),
        is_met: *peak <= 64 << 20,
    })
}
