//! A host's wall clock jumps while a container leaves it or comes to it. Nothing is decided by a wall clock but whether a certificate is
//! good, so nothing comes of it, also where a daemon dies and starts again with another time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::field::{Course, Field};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;
use tranship_tests::{clock, faults};

/// Certificates are good from an hour before they were made.
const JUMP: i64 = 50 * 60;
/// A certificate that was made now is not good yet.
const DAYS: i64 = 2 * 24 * 60 * 60;
/// A migration is over by then, also one in doubt.
const OVER: Duration = Duration::from_secs(20);

/// Where the clock of which host jumps.
type Step = (&'static str, &'static str);

const STEPS: [Step; 15] = [
    ("source:describe", "a"),
    ("destination:reserve", "b"),
    ("source:track-memory", "a"),
    ("source:receive-seeded", "b"),
    ("source:journal-freezing", "a"),
    ("source:dump", "a"),
    ("source:dump", "b"),
    ("source:receive-ready", "a"),
    ("source:receive-ready", "b"),
    ("source:journal-committed", "b"),
    ("source:send-go", "a"),
    ("destination:journal-resuming", "b"),
    ("destination:adopt", "b"),
    ("source:remove-copy", "a"),
    ("source:journal-done", "a"),
];

#[test]
fn clocks_that_jump_change_nothing() -> Result<()> {
    let mut field = begin()?;
    for (step, seconds) in [(STEPS[5], -JUMP), (STEPS[8], JUMP), (STEPS[11], -JUMP)] {
        jumps(&mut field, step, seconds);
    }
    jumps_and_dies(&mut field, "source:journal-committed kill-after", "b");
    not_good_yet(&mut field, "a");
    end(field)
}

#[test]
#[ignore = "takes long: make faults"]
fn clocks_that_jump_at_any_step_change_nothing() -> Result<()> {
    let mut field = begin()?;
    for step in STEPS {
        for seconds in [-JUMP, JUMP] {
            jumps(&mut field, step, seconds);
        }
    }
    for (fault, entitled) in [
        ("source:journal-freezing kill-after", "a"),
        ("source:dump kill-before", "a"),
        ("source:journal-committed kill-before", "a"),
        ("source:journal-committed kill-after", "b"),
        ("source:receive-running kill-before", "b"),
        ("destination:journal-reserved kill-after", "a"),
        ("destination:journal-resuming kill-after", "b"),
        ("destination:journal-running kill-before", "b"),
    ] {
        jumps_and_dies(&mut field, fault, entitled);
    }
    for host in ["a", "b"] {
        not_good_yet(&mut field, host);
    }
    end(field)
}

fn begin() -> Result<Field> {
    let field = Field::begin()?;
    for host in ["a", "b"] {
        clock::give(field.scenario.host(host)?)?;
    }
    Ok(field)
}

fn end(field: Field) -> Result<()> {
    for host in ["a", "b"] {
        clock::take_away(field.scenario.host(host)?)?;
    }
    field.end()
}

/// The clock of one host jumps, and again when the container is there.
fn jumps(field: &mut Field, (point, jumping): Step, seconds: i64) {
    let strike = |scenario: &Scenario| {
        let (a, jumping) = (scenario.host("a")?, scenario.host(jumping)?);
        let held = scenario.host(faults::host_of(point))?;
        faults::plan(held, &format!("{point} hold"))?;
        let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
        faults::wait_held(held, point)?;
        clock::set(jumping, seconds)?;
        faults::let_go(held, point)?;
        let record = when_over(a, &id)?;
        clock::set(jumping, 0)?;
        Ok(record)
    };
    let judge = |course: &Course<Value>| {
        ensure!(course.struck["outcome"] == "done", "{}", course.struck);
        ensure!(course.owner == "b", "{} runs it", course.owner);
        let time = |name: &str| course.struck[name].as_i64().context("a record has its times");
        let took = time("finished_ms")? - time("started_ms")?;
        let seen = took.abs() > JUMP * 1000 / 2;
        ensure!(seen == (jumping == "a"), "the clock of a went on by {took} ms");
        Ok(())
    };
    let told = format!("at {point} the clock of {jumping} jumps by {seconds} s");
    field.attempt(&told, strike, judge);
}

/// One migration there and back while the clock is fast, and another one when it is right again, in which a daemon dies: what began
/// last is not what has the latest time.
fn jumps_and_dies(field: &mut Field, fault: &str, entitled: &str) {
    let strike = |scenario: &Scenario| {
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        let dies = scenario.host(faults::host_of(fault))?;
        for host in [a, b] {
            clock::set(host, JUMP)?;
        }
        a.migrate("redis", "b")?;
        b.migrate("redis", "a")?;
        for host in [a, b] {
            clock::set(host, 0)?;
        }
        faults::plan(dies, fault)?;
        let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
        wait_for("the daemon to die", OVER, || Ok(daemon::pid(dies).is_none()))?;
        faults::start(dies)?;
        when_over(a, &id)
    };
    let judge = |course: &Course<Value>| {
        ensure!(course.owner == entitled, "{} runs it", course.owner);
        Ok(())
    };
    let told = format!("the clocks were fast, then {fault}");
    field.attempt(&told, strike, judge);
}

/// To one host the other's certificate is not good yet.
fn not_good_yet(field: &mut Field, host: &str) {
    let strike = |scenario: &Scenario| {
        let (a, slow) = (scenario.host("a")?, scenario.host(host)?);
        clock::set(slow, -DAYS)?;
        // What is connected stays so.
        daemon::kill(slow)?;
        faults::start(slow)?;
        let command = a.try_tranship(&["migrate", "redis", "b"])?;
        clock::set(slow, 0)?;
        daemon::kill(slow)?;
        faults::start(slow)?;
        Ok(command)
    };
    let judge = |course: &Course<tranship_tests::command::Finished>| {
        ensure!(course.owner == "a", "{} runs it", course.owner);
        ensure!(!course.struck.status.success(), "it moved all the same");
        Ok(())
    };
    let told = format!("the clock of {host} is two days slow");
    field.attempt(&told, strike, judge);
}

/// A migration's record when it has ended.
fn when_over(a: &Host, migration: &str) -> Result<Value> {
    let mut record = Value::Null;
    wait_for("the migration to be over", OVER, || {
        record = a.tranship_json(&["migrate", "status", migration])?;
        Ok(record["outcome"] != "running")
    })
    .with_context(|| record.to_string())?;
    Ok(record)
}
