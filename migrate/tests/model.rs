//! Two or three hosts that hand containers over to each other, with the machines that run in production, and everything that
//! can go wrong at any moment: crashes of daemons, letters that are lost, late, out of order or there twice, broken connections,
//! journals that cannot be written, cancellation. A checker looks at every world that can come of it.
//!
//! A bounded part of it runs with the other tests, the larger one with `make model`.

#[path = "model/actions.rs"]
mod actions;
#[path = "model/carry.rs"]
mod carry;
#[path = "model/decide.rs"]
mod decide;
#[path = "model/explore.rs"]
mod explore;
#[path = "model/world.rs"]
mod world;

use std::io::Write;
use std::time::Instant;

use explore::{Flaw, Handoffs};
use stateright::{Checker, HasDiscoveries, Model};
use world::{Faults, Move};

const NONE: Faults = Faults {
    crashes: 0,
    relays: 0,
    losses: 0,
    duplicates: 0,
    cuts: 0,
    writes: 0,
    failures: 0,
    cancels: 0,
    reboots: 0,
    blinds: 0,
    resolutions: 0,
};

const fn go(container: usize, from: usize, to: usize) -> Move {
    Move { container, from, to }
}

/// One migration.
const ONCE: &[Move] = &[go(0, 0, 1)];
/// Two to the same host: the second after the first has failed, or beside what is left of it.
const AGAIN: &[Move] = &[go(0, 0, 1), go(0, 0, 1)];
/// The second to another host.
const ELSEWHERE: &[Move] = &[go(0, 0, 1), go(0, 0, 2)];
/// And back, as soon as it runs there.
const BACK: &[Move] = &[go(0, 0, 1), go(0, 1, 0)];
/// Two containers that meet.
const CROSSED: &[Move] = &[go(0, 0, 1), go(1, 1, 0)];
/// On to a third host, as soon as it runs at the second.
const CHAIN: &[Move] = &[go(0, 0, 1), go(0, 1, 2)];
/// Back, while a reservation of the first migration may still be on its way.
const LATE: &[Move] = &[go(0, 0, 1), go(0, 0, 1), go(0, 1, 0)];

/// Looks at every world that can come of it; says how many there are.
fn explore(name: &str, model: Handoffs) -> usize {
    let began = Instant::now();
    let checker = model.checker().threads(2).finish_when(HasDiscoveries::Any);
    let checker = checker.spawn_bfs().join();
    if let Some((property, path)) = checker.discoveries().into_iter().next() {
        panic!(
            "{name}: not true that {property}:\n{}",
            checker.model().tell(&path)
        );
    }
    let (worlds, took) = (checker.unique_state_count(), began.elapsed().as_secs_f64());
    say(&format!("model: {name}: {worlds} worlds in {took:.1} s"));
    worlds
}

fn explore_all(scenarios: &[(&str, &[Move], Faults)]) {
    let began = Instant::now();
    let worlds: usize = scenarios
        .iter()
        .map(|(name, moves, faults)| explore(name, Handoffs::new(moves, *faults)))
        .sum();
    let took = began.elapsed().as_secs_f64();
    say(&format!(
        "model: {worlds} worlds in {took:.1} s, every one of them right"
    ));
}

/// Also where the output of tests is kept back.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[test]
fn whatever_fails_one_host_runs_the_container_and_nothing_acknowledged_is_lost() {
    let cut = Faults { cuts: 1, ..NONE };
    let crash = Faults { crashes: 1, ..NONE };
    explore_all(&[
        ("once, nothing fails but time", ONCE, NONE),
        (
            "once, two daemons and a relay die, a write fails",
            ONCE,
            Faults {
                crashes: 2,
                relays: 1,
                writes: 1,
                ..NONE
            },
        ),
        (
            "once, one of each",
            ONCE,
            Faults {
                crashes: 1,
                losses: 1,
                duplicates: 1,
                cuts: 1,
                failures: 1,
                cancels: 1,
                ..NONE
            },
        ),
        (
            "once, nothing can be restored, a daemon dies",
            ONCE,
            Faults {
                crashes: 1,
                failures: 4,
                ..NONE
            },
        ),
        (
            "once, a host is switched off and a person decides",
            ONCE,
            Faults {
                crashes: 1,
                reboots: 1,
                resolutions: 1,
                ..NONE
            },
        ),
        (
            "once, both hosts are switched off, a daemon dies",
            ONCE,
            Faults {
                crashes: 1,
                reboots: 2,
                ..NONE
            },
        ),
        ("a second migration beside the first", AGAIN, cut),
        ("a second migration to another host", ELSEWHERE, NONE),
        ("there and back, a daemon dies", BACK, crash),
        ("on to a third host, a link is cut", CHAIN, cut),
        ("two containers that meet", CROSSED, NONE),
    ]);
}

/// What was sent before the container ran again is not what it has now.
#[test]
fn what_cannot_be_written_before_the_power_is_cut_has_nothing_older_run() {
    explore_all(&[(
        "once, two writes fail, a link is cut, a host is switched off",
        ONCE,
        Faults {
            writes: 2,
            cuts: 1,
            reboots: 1,
            ..NONE
        },
    )]);
}

#[test]
#[ignore = "takes minutes: make model"]
fn the_same_with_more_that_cannot_be_written() {
    explore_all(&[(
        "once, three writes fail, a daemon dies, a link is cut, both hosts are switched off",
        ONCE,
        Faults {
            crashes: 1,
            writes: 3,
            cuts: 1,
            reboots: 2,
            ..NONE
        },
    )]);
}

#[test]
fn the_same_where_an_arbiter_decides() {
    let scenarios: [(&str, &[Move], Faults); 5] = [
        (
            "an arbiter, two daemons die, an answer of its is lost",
            ONCE,
            Faults {
                crashes: 2,
                blinds: 1,
                ..NONE
            },
        ),
        (
            "an arbiter, one of each",
            ONCE,
            Faults {
                crashes: 1,
                cuts: 1,
                failures: 1,
                writes: 1,
                blinds: 2,
                ..NONE
            },
        ),
        (
            "an arbiter, a host is switched off, a daemon dies",
            ONCE,
            Faults {
                crashes: 1,
                reboots: 1,
                blinds: 1,
                ..NONE
            },
        ),
        (
            "an arbiter, both hosts are switched off",
            ONCE,
            Faults {
                reboots: 2,
                blinds: 1,
                ..NONE
            },
        ),
        (
            "an arbiter, there and back, a daemon dies",
            BACK,
            Faults { crashes: 1, ..NONE },
        ),
    ];
    for (name, moves, faults) in scenarios {
        explore(name, Handoffs::new(moves, faults).under_arbiter());
    }
}

#[test]
#[ignore = "takes minutes: make model"]
fn the_same_with_more_faults_at_once() {
    let both = Faults {
        crashes: 1,
        writes: 1,
        ..NONE
    };
    explore_all(&[
        (
            "once, two daemons and a relay die, two writes fail",
            ONCE,
            Faults {
                crashes: 2,
                relays: 1,
                writes: 2,
                ..NONE
            },
        ),
        (
            "once, one of each, two daemons die",
            ONCE,
            Faults {
                crashes: 2,
                relays: 0,
                losses: 1,
                duplicates: 1,
                cuts: 1,
                writes: 1,
                failures: 1,
                cancels: 1,
                ..NONE
            },
        ),
        ("a second migration beside the first", AGAIN, both),
        (
            "a second migration beside the first, cut and cancelled",
            AGAIN,
            Faults {
                cuts: 1,
                cancels: 1,
                failures: 1,
                ..NONE
            },
        ),
        (
            "a second migration to another host",
            ELSEWHERE,
            Faults { crashes: 1, ..NONE },
        ),
        (
            "a second migration to another host, a write fails",
            ELSEWHERE,
            Faults { writes: 1, ..NONE },
        ),
        ("there and back", BACK, both),
        (
            "there and back, two daemons die",
            BACK,
            Faults { crashes: 2, ..NONE },
        ),
        ("on to a third host", CHAIN, both),
        (
            "on to a third host, two daemons die",
            CHAIN,
            Faults { crashes: 2, ..NONE },
        ),
        ("two containers that meet", CROSSED, Faults { crashes: 1, ..NONE }),
        ("a reservation that comes late", LATE, NONE),
    ]);
}

/// The model finds what is wrong when `flaw` is built in: says what, and how long the way to it was.
fn finds(flaw: Flaw, moves: &[Move], faults: Faults, wrong: &'static str) {
    finds_in(Handoffs::new(moves, faults), flaw, wrong);
}

fn finds_in(model: Handoffs, flaw: Flaw, wrong: &'static str) {
    let model = model.with(flaw);
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AllOf([wrong].into()));
    let checker = checker.spawn_dfs().join();
    let found = checker.discoveries();
    let names: Vec<_> = found.keys().copied().collect();
    assert!(
        found.contains_key(wrong),
        "{flaw:?}: found {names:?}, not {wrong:?}"
    );
    let path = found[wrong].clone();
    say(&format!(
        "model: {flaw:?}: {} steps to \"not {wrong}\"",
        path.into_actions().len()
    ));
}

#[test]
fn the_model_finds_what_is_wrong_when_the_source_breaks_a_rule() {
    let crash = Faults { crashes: 1, ..NONE };
    let write = Faults {
        crashes: 1,
        writes: 1,
        ..NONE
    };
    let relay = Faults {
        crashes: 1,
        relays: 1,
        ..NONE
    };
    let off = Faults {
        writes: 1,
        cuts: 1,
        reboots: 1,
        ..NONE
    };
    finds(Flaw::CommitUnwritten, ONCE, NONE, explore::NO_RUN_WITHOUT_COMMIT);
    finds(Flaw::GivenUpUnwritten, ONCE, off, explore::NO_WRITE_LOST);
    finds(Flaw::ThawedInDoubt, ONCE, crash, explore::NO_THAW_AFTER_COMMIT);
    finds(Flaw::JournalBelieved, ONCE, write, explore::NO_THAW_AFTER_COMMIT);
    finds(Flaw::DoubtIsNo, ONCE, write, explore::ENDS_DECIDED);
    finds(Flaw::CopyRemovedEarly, ONCE, relay, explore::NEWEST_SOMEWHERE);
    finds(Flaw::LaterUnseen, AGAIN, write, explore::NO_THAW_AFTER_COMMIT);
}

#[test]
fn the_model_finds_what_is_wrong_when_the_destination_breaks_a_rule() {
    let relay = Faults {
        crashes: 1,
        relays: 1,
        ..NONE
    };
    finds(Flaw::LostIsYes, ONCE, NONE, explore::NO_RUN_WITHOUT_COMMIT);
    finds(Flaw::LostIsYes, ONCE, NONE, explore::RIGHT_HISTORY);
    finds(Flaw::LostIsNo, ONCE, NONE, explore::ENDS_DECIDED);
    finds(Flaw::MarkUnseen, ONCE, relay, explore::NO_SECOND_RESTORE);
    finds(Flaw::SecondReservation, AGAIN, NONE, explore::ENDS_DECIDED);
    finds(Flaw::RefusedDrops, AGAIN, NONE, explore::ENDS_DECIDED);
    finds(Flaw::NoTombstone, LATE, NONE, explore::EPOCHS_GROW);
}

#[test]
fn the_model_finds_what_is_wrong_when_a_host_that_comes_back_breaks_a_rule() {
    let off = Faults {
        reboots: 1,
        resolutions: 1,
        ..NONE
    };
    let two = Faults { crashes: 2, ..NONE };
    let arbiter = Handoffs::new(ONCE, two).under_arbiter();
    finds_in(arbiter, Flaw::ThawedUnasked, explore::ONE_RUNS);
    finds(Flaw::MarkGone, ONCE, off, explore::NO_WRITE_LOST);
    finds(Flaw::Disobeyed, ONCE, off, explore::ENDS_DECIDED);
    let crash = Faults { crashes: 1, ..off };
    finds(Flaw::AnsweredMeanwhile, ONCE, crash, explore::ONE_RUNS);
}
