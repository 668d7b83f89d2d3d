//! A host that goes away in the middle: one host runs the container in the end, and no request is lost.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::counter::Counter;
use tranship_tests::halfway::{is_in, signal_daemon};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::daemon;
use tranship_tests::tranship::wait_for;

/// From the command to the question that the destination is asked.
const ASKED: Duration = Duration::from_millis(500);
/// For a source to give up on a destination that does not answer.
const NO_ANSWER: Duration = Duration::from_secs(25);
/// What a client waits for at most while nothing happens to its server, on a loaded machine.
const UNNOTICED_US: u64 = 1_000_000;

/// What happens in the middle of a migration from a to b.
#[derive(Clone, Copy, Debug)]
enum Blow {
    /// The destination's daemon is killed.
    Kill,
    /// The destination's cable is pulled.
    Unplug,
    /// The source's daemon is killed.
    KillSource,
}

/// Every phase that a source reports.
const PHASES: [&str; 9] = [
    "reserve", "seed", "rounds", "freeze", "drain", "hold", "commit", "resume", "clean",
];

#[test]
fn a_source_whose_daemon_dies_in_any_phase_loses_nothing() -> Result<()> {
    in_each_phase(Blow::KillSource, &PHASES)
}

#[test]
fn a_destination_whose_daemon_dies_in_any_phase_loses_nothing() -> Result<()> {
    in_each_phase(Blow::Kill, &PHASES)
}

/// Each takes its time until the source has noticed: so one while the container runs, and one while it stands still.
#[test]
fn a_destination_that_is_cut_off_loses_nothing() -> Result<()> {
    in_each_phase(Blow::Unplug, &["rounds", "drain"])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_destination_that_is_cut_off_in_any_phase_loses_nothing() -> Result<()> {
    // Once the commit may have happened the source asks for half a minute before it calls the outcome unknown: once will do.
    // The commit itself is one write to the source's disk, over before a cable can be pulled: that is the resume then. And in
    // clean the destination has the container already and needs nobody.
    in_each_phase(
        Blow::Unplug,
        &["reserve", "seed", "rounds", "freeze", "drain", "hold", "resume"],
    )
}

/// The destination's daemon is stopped before it answers the preflight's question.
#[test]
fn whoever_goes_away_in_the_preflight_leaves_the_container_alone() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for blow in [Blow::Kill, Blow::Unplug, Blow::KillSource] {
        let told = || format!("{blow:?} in the preflight");
        let before = Inventory::take(scenario.bed()?)?;
        let begun = Instant::now();
        let outcome = strike_the_preflight(&scenario, blow).with_context(told)?;
        let owner = the_one_that_runs("redis", a, b).with_context(told)?;
        eprintln!("{}: {outcome} after {:.1?}", told(), begun.elapsed());
        ensure!(
            ["refused", "failed"].contains(&outcome.as_str()),
            "{}: it is {outcome}",
            told()
        );
        ensure!(owner.name() == "a", "{}: it is on {}", told(), owner.name());
        before.expect_unchanged(scenario.bed()?).with_context(told)?;
    }
    let waited_us = counter.stop()?.checked()?.longest_stall_us();
    ensure!(waited_us < UNNOTICED_US, "the client waited for {waited_us} us");
    scenario.end()
}

/// Answers how the migration ended.
fn strike_the_preflight(scenario: &Scenario, blow: Blow) -> Result<String> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    signal_daemon(b, "STOP")?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    sleep(ASKED);
    ensure!(is_in(a, &id, "preflight")?, "it is not in its preflight");
    match blow {
        Blow::Kill => daemon::kill(b)?,
        Blow::Unplug => bed.set_link("b", false)?,
        Blow::KillSource => {
            daemon::kill(a)?;
            daemon::start(a)?;
        }
    }
    let mut outcome = String::new();
    wait_for("the source to have done with it", NO_ANSWER, || {
        let record = a.tranship_json(&["migrate", "status", &id])?;
        outcome = record["outcome"].as_str().unwrap_or_default().to_owned();
        Ok(outcome != "running")
    })?;
    match blow {
        Blow::Kill => daemon::start(b)?,
        Blow::Unplug => {
            signal_daemon(b, "CONT")?;
            bed.set_link("b", true)?;
        }
        Blow::KillSource => signal_daemon(b, "CONT")?,
    }
    Ok(outcome)
}

fn in_each_phase(blow: Blow, phases: &[&str]) -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for phase in phases {
        let told = || format!("{blow:?} in phase {phase}");
        strike(&scenario, phase, blow).with_context(told)?;
        let owner = the_one_that_runs("redis", a, b).with_context(told)?;
        eprintln!("{}: the container runs on {}", told(), owner.name());
        if owner.name() == "b" {
            b.migrate("redis", "a").with_context(told)?;
        }
    }
    counter.stop()?.checked()?;
    scenario.end()
}

/// Starts a migration, strikes when the phase begins, waits until the source has given up, lost sight or died, and mends
/// what was hit.
fn strike(scenario: &Scenario, phase: &str, blow: Blow) -> Result<()> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    let mut watch = daemon::cli(a, &["--format", "json", "migrate", "watch", &id])?;
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("the output is a pipe")?);
    let mut struck = false;
    for line in lines.lines() {
        let record: Value = serde_json::from_str(&line?)?;
        if record["phase"] == phase && !struck {
            struck = true;
            match blow {
                Blow::Kill => daemon::kill(b)?,
                Blow::Unplug => bed.set_link("b", false)?,
                Blow::KillSource => daemon::kill(a)?,
            }
        }
    }
    watch.wait()?;
    match blow {
        Blow::Kill => {
            // A phase that was over before it was seen: then the blow comes after the end, which must do no harm either.
            daemon::kill(b)?;
            daemon::start(b)
        }
        Blow::Unplug => bed.set_link("b", true),
        Blow::KillSource => {
            daemon::kill(a)?;
            daemon::start(a)
        }
    }
}
