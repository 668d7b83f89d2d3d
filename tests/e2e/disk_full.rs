//! A disk that is full from one step of a migration on. Until the commit the container goes on at the source; behind it, it runs at the
//! destination, and what could not be written then is written when there is room.
//!
//! The hosts have a small disk of their own, with the daemon's state, layers, writable layers and volumes on it. The Redis has its
//! changes in memory alone where the disk of its host gets full: on a full disk it would answer no more, with or without a migration.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::faults::{self, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::oracles::is_frozen;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, PoolKind, daemon, pool};
use tranship_tests::tranship::wait_for;

/// What is tried again until there is room has been tried by then.
const FULL: Duration = Duration::from_secs(8);
/// A container that stood still runs again this long after its daemon has died.
const GIVEN_BACK: Duration = Duration::from_secs(5);
const AGAIN: Duration = Duration::from_millis(20);

/// A step from which on the disk of its host is full, and who runs the container in the end.
type Step = (&'static str, &'static str);

const DESTINATION: [Step; 9] = [
    ("destination:reserve", "a"),
    ("destination:journal-reserved", "a"),
    ("destination:accept-stream", "a"),
    ("destination:prepare-restore", "a"),
    ("destination:hold-network", "a"),
    ("destination:restore-held", "a"),
    ("destination:journal-ready", "b"),
    ("destination:journal-resuming", "b"),
    ("destination:adopt", "b"),
];

const SOURCE: [Step; 8] = [
    ("source:journal-intent", "a"),
    ("source:journal-freezing", "a"),
    ("source:freeze", "a"),
    ("source:dump", "a"),
    ("source:receive-ready", "b"),
    ("source:journal-committed", "b"),
    ("source:send-go", "b"),
    ("source:remove-copy", "b"),
];

#[test]
fn a_disk_that_gets_full_loses_nothing() -> Result<()> {
    let mut field = begin(&MEMORY_ONLY)?;
    for step in [
        DESTINATION[1],
        DESTINATION[4],
        SOURCE[0],
        SOURCE[1],
        SOURCE[5],
        DESTINATION[6],
    ] {
        fills(&mut field, step);
    }
    fills_in_a_rollback(&mut field, "kill-before");
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_disk_that_gets_full_at_any_step_loses_nothing() -> Result<()> {
    let mut field = begin(&MEMORY_ONLY)?;
    for step in SOURCE.into_iter().chain(DESTINATION) {
        fills(&mut field, step);
    }
    for deed in ["error", "kill-before"] {
        fills_in_a_rollback(&mut field, deed);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_destination_whose_disk_is_full_takes_no_volume_and_the_source_goes_on_writing_its_own() -> Result<()> {
    let mut field = begin(&[])?;
    // The first takes the image along.
    for step in [DESTINATION[2], DESTINATION[4]] {
        fills(&mut field, step);
    }
    field.end()
}

/// Of a Redis that writes nothing to its disk.
const MEMORY_ONLY: [&str; 2] = ["--appendonly", "no"];

fn begin(words: &[&str]) -> Result<Field> {
    let options = Options {
        pool: PoolKind::Small,
        ..Options::default()
    };
    Field::begin_with(&options, words)
}

fn fills(field: &mut Field, (point, entitled): Step) {
    let strike = |scenario: &Scenario| {
        let (a, host) = (scenario.host("a")?, scenario.host(host_of(point))?);
        faults::plan(host, &format!("{point} hold"))?;
        let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
        faults::wait_held(host, point)?;
        pool::fill(host)?;
        faults::let_go(host, point)?;
        when_over(a, &id)?;
        pool::empty(host)?;
        // What had no room to be written is written by a daemon that was not restarted.
        if entitled == "a" {
            wait_for("the container to be an ordinary one again", FULL, || {
                Ok(a.container("redis")?["state"] == "running")
            })?;
        }
        when_over(a, &id)
    };
    let judge = |course: &Course<Value>| {
        eprintln!("{}: {}", course.struck["outcome"], course.struck["error"]);
        ensure!(course.owner == entitled, "{} runs it", course.owner);
        let why = course.struck["error"].to_string();
        ensure!(
            entitled == "b" || why.contains("No space left") || why.contains("is full"),
            "nobody is told why: {}",
            course.struck
        );
        Ok(())
    };
    field.attempt(&format!("the disk is full from {point} on"), strike, judge);
}

/// The source's disk is full, and then the dump fails or the daemon dies. Its guard needs no room; the next daemon is started when there
/// is some.
fn fills_in_a_rollback(field: &mut Field, deed: &str) {
    let strike = |scenario: &Scenario| {
        let a = scenario.host("a")?;
        let record = a.container("redis")?;
        let container = record["id"].as_str().context("a container has an id")?;
        faults::plan(a, &format!("source:cut-network hold\nsource:dump {deed}"))?;
        let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
        faults::wait_held(a, "source:cut-network")?;
        pool::fill(a)?;
        faults::let_go(a, "source:cut-network")?;
        if deed != "error" {
            wait_for("the daemon to die", FULL, || Ok(daemon::pid(a).is_none()))?;
            wait_for("its guard to let the container go on", GIVEN_BACK, || {
                Ok(!is_frozen(a, container)?)
            })?;
            pool::empty(a)?;
            faults::start(a)?;
            return when_over(a, &id);
        }
        let record = when_over(a, &id)?;
        pool::empty(a)?;
        Ok(record)
    };
    let judge = |course: &Course<Value>| {
        ensure!(course.owner == "a", "{} runs it", course.owner);
        let outcome = &course.struck["outcome"];
        ensure!(outcome == "rolled_back", "{}", course.struck);
        Ok(())
    };
    field.attempt(
        &format!("the disk is full, then source:dump {deed}"),
        strike,
        judge,
    );
}

/// A migration's record when it has ended, or when it has had time to try.
fn when_over(host: &Host, migration: &str) -> Result<Value> {
    let since = Instant::now();
    loop {
        let record = host.tranship_json(&["migrate", "status", migration])?;
        if record["outcome"] != "running" || since.elapsed() > FULL {
            return Ok(record);
        }
        sleep(AGAIN);
    }
}
