//! Troubles that pass: bytes that are broken on the wire, a link that is away for a while, a destination that starts again or was switched
//! off. What comes to nothing before the container stands still is tried again, and the container moves; from then on to the commit it
//! goes on at its source; behind the commit it runs at the destination.

use std::process::{Child, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::faults::{self, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::power::switch_off;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// Until somebody says something, also where only the questions are left whether the other one is still there.
const SAID: Duration = Duration::from_secs(10);
/// For a source to notice that its destination does not answer.
const NOTICED: Duration = Duration::from_secs(25);

const DONE: i32 = 0;
const REFUSED: i32 = 4;
const ROLLED_BACK: i32 = 5;

/// What happens, and passes.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Bytes are broken on their way, at least some of one packet.
    Broken,
    /// The destination's cable is pulled until the source has noticed.
    Cut,
    /// The destination's daemon dies and is started again.
    Killed,
    /// The destination is switched off, and on again.
    SwitchedOff,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The first try fails, another one succeeds.
    TriedAgain,
    /// The container goes on where it was.
    RolledBack,
    /// It runs at the destination.
    Moved,
}
use End::{Moved, RolledBack, TriedAgain};

/// A step of each phase, and what comes of a trouble there.
const STEPS: [(&str, End); 10] = [
    ("source:open-stream", TriedAgain),
    ("source:track-memory", TriedAgain),
    ("source:standby", TriedAgain),
    ("source:freeze", RolledBack),
    ("source:dump", RolledBack),
    ("destination:restore-held", RolledBack),
    ("source:journal-committed", Moved),
    ("source:send-go", Moved),
    ("destination:release", Moved),
    ("source:remove-copy", Moved),
];

/// Of the seed and of the rounds.
const BEFORE_THE_FREEZE: [(&str, End); 2] = [STEPS[1], STEPS[2]];

#[test]
fn what_passes_loses_nothing_and_is_tried_again_before_the_container_stands_still() -> Result<()> {
    let mut field = Field::begin()?;
    broken_in_the_preflight(&mut field);
    for step in [STEPS[1], STEPS[4], STEPS[7]] {
        passes(&mut field, Trouble::Broken, step);
    }
    passes(&mut field, Trouble::Killed, STEPS[2]);
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn bytes_that_are_broken_on_the_wire_in_any_phase_lose_nothing() -> Result<()> {
    let mut field = Field::begin()?;
    for step in STEPS {
        passes(&mut field, Trouble::Broken, step);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_destination_that_is_away_before_the_freeze_gets_the_container_when_it_is_back() -> Result<()> {
    let mut field = Field::begin()?;
    for trouble in [Trouble::Cut, Trouble::Killed, Trouble::SwitchedOff] {
        for step in BEFORE_THE_FREEZE {
            passes(&mut field, trouble, step);
        }
    }
    field.end()
}

fn passes(field: &mut Field, trouble: Trouble, (point, end): (&str, End)) {
    let strike = |scenario: &Scenario| {
        let (a, held) = (scenario.host("a")?, scenario.host(host_of(point))?);
        let before = tries(a)?.len();
        faults::plan(held, &format!("{point} hold"))?;
        let moving = begin_to_move(a)?;
        faults::wait_held(held, point)?;
        happen(scenario, trouble, || faults::let_go(held, point))?;
        let output = moving.wait_with_output()?;
        Ok((output, tries(a)?.split_off(before)))
    };
    let judge = |course: &Course<(Output, Vec<Value>)>| {
        let (output, tries) = &course.struck;
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        let outcomes: Vec<_> = tries
            .iter()
            .filter_map(|record| record["outcome"].as_str())
            .collect();
        let (code, owner) = match end {
            RolledBack => (ROLLED_BACK, "a"),
            TriedAgain | Moved => (DONE, "b"),
        };
        ensure!(
            output.status.code() == Some(code),
            "{}, after {outcomes:?}",
            output.status
        );
        ensure!(course.owner == owner, "{} runs it", course.owner);
        if end == TriedAgain {
            ensure!(
                outcomes.first() == Some(&"failed") && outcomes.last() == Some(&"done"),
                "its tries were {outcomes:?}"
            );
            ensure!(said.contains("trying again in 1 s (1 of 3)"), "nobody is told");
        } else {
            ensure!(tries.len() == 1, "it was tried again: {outcomes:?}");
        }
        Ok(())
    };
    field.attempt(&format!("{trouble:?} at {point}"), strike, judge);
}

/// Somebody who asks for what cannot be had now is told so, and not kept waiting.
fn broken_in_the_preflight(field: &mut Field) {
    let strike = |scenario: &Scenario| {
        let (a, bed) = (scenario.host("a")?, scenario.bed()?);
        bed.set_breaking("b", true)?;
        let answer = a.try_tranship(&["migrate", "redis", "b"])?;
        let broken = bed.broken_packets("b")?;
        bed.set_breaking("b", false)?;
        ensure!(broken > 0, "nothing was broken");
        Ok(answer)
    };
    field.attempt("Broken in the preflight", strike, |course| {
        let said = course.struck.errors();
        let code = course.struck.status.code();
        ensure!(code == Some(REFUSED), "{code:?}: {said}");
        ensure!(said.contains("b cannot be reached"), "it says: {said}");
        ensure!(course.owner == "a", "{} runs it", course.owner);
        Ok(())
    });
}

fn begin_to_move(a: &Host) -> Result<Child> {
    let mut moving = daemon::cli(a, &["migrate", "redis", "b"])?;
    let moving = moving.stdout(Stdio::piped()).stderr(Stdio::piped());
    moving.spawn().context("cannot start tranship")
}

/// Its migrations away from here, oldest first.
fn tries(host: &Host) -> Result<Vec<Value>> {
    let list = host.tranship(&["--format", "json", "migrate", "ls"])?;
    let all: Vec<Value> = list.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let away = all.into_iter().filter(|record| record["role"] == "source");
    Ok(away.collect())
}

/// To the end of it; the daemon that is held meanwhile goes on as soon as it has begun.
fn happen(scenario: &Scenario, trouble: Trouble, go_on: impl FnOnce() -> Result<()>) -> Result<()> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    match trouble {
        Trouble::Broken => {
            bed.set_breaking("b", true)?;
            go_on()?;
            wait_for(
                "something to be broken",
                SAID,
                || Ok(bed.broken_packets("b")? > 0),
            )?;
            bed.set_breaking("b", false)
        }
        Trouble::Cut => {
            bed.set_link("b", false)?;
            go_on()?;
            wait_for("the source to notice", NOTICED, || {
                Ok(tries(a)?.last().is_some_and(|last| last["outcome"] != "running"))
            })?;
            bed.set_link("b", true)
        }
        Trouble::Killed => {
            daemon::kill(b)?;
            faults::start(b)?;
            go_on()
        }
        Trouble::SwitchedOff => {
            switch_off(b)?;
            faults::boot_anew(b)?;
            faults::start(b)?;
            go_on()
        }
    }
}
