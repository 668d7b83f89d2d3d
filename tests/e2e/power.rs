//! A host is switched off at a step of a migration and comes back. A container whose processes were there alone has ended then, as it
//! would have without a migration, with all that it had acknowledged on its volume; otherwise it runs, and never on both.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::faults;
use tranship_tests::halfway::{counted_on, state};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::power::switch_off;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::tranship::wait_for;

/// Decided within this time of the host's return.
const AT_LAST: Duration = Duration::from_secs(10);
/// The client gives a Redis up that is silent for so long.
const HANGS_UP: Duration = Duration::from_secs(6);
const KEY: &str = "visits";

/// What is to become of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It runs on this host, and its client goes on.
    RunsOn(&'static str),
    /// It has ended, and this host has what it had on its volume.
    EndedOn(&'static str),
}
use Fate::{EndedOn, RunsOn};

/// Where the migration is held, which host is switched off, and what comes of it.
type Step = (&'static str, &'static str, Fate);

const STEPS: [Step; 21] = [
    ("source:describe", "a", EndedOn("a")),
    ("source:track-memory", "a", EndedOn("a")),
    ("source:prepare-dump", "a", EndedOn("a")),
    ("source:freeze", "a", EndedOn("a")),
    ("source:dump", "a", EndedOn("a")),
    ("destination:restore-held", "a", EndedOn("a")),
    ("source:receive-ready", "a", RunsOn("b")),
    ("source:journal-committed", "a", RunsOn("b")),
    ("source:send-go", "a", RunsOn("b")),
    ("source:receive-running", "a", RunsOn("b")),
    ("source:remove-copy", "a", RunsOn("b")),
    ("destination:reserve", "b", RunsOn("a")),
    ("destination:accept-stream", "b", RunsOn("a")),
    ("destination:prepare-restore", "b", RunsOn("a")),
    ("source:freeze", "b", RunsOn("a")),
    ("destination:hold-network", "b", RunsOn("a")),
    ("destination:restore-held", "b", RunsOn("a")),
    ("destination:send-ready", "b", RunsOn("a")),
    ("source:send-go", "b", RunsOn("a")),
    ("destination:journal-resuming", "b", RunsOn("a")),
    ("source:receive-running", "b", EndedOn("b")),
];

#[test]
fn a_host_that_is_switched_off_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_each(&[STEPS[4], STEPS[8], STEPS[16], STEPS[20]])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_host_that_is_switched_off_at_any_step_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_each(&STEPS)
}

fn try_each(steps: &[Step]) -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    faults::arm(&[a, b])?;
    for (passed, step) in steps.iter().enumerate() {
        let (point, off, fate) = step;
        let told = format!("at {point} {off} is switched off: {fate:?}");
        // What one has left is in the way of the next.
        if let Err(error) = attempt(&scenario, *step) {
            eprintln!("FAILED: {told}: {error:#}\n{passed} passed, 1 failed");
            return Err(error.context(told));
        }
        eprintln!("passed: {told}");
    }
    eprintln!("{} passed, 0 failed", steps.len());
    faults::disarm(&[a, b])?;
    scenario.end()
}

fn attempt(scenario: &Scenario, (point, off, fate): Step) -> Result<()> {
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let (held, off) = (scenario.host(faults::host_of(point))?, scenario.host(off)?);
    run_redis(a, client)?;
    let address = a.address_of("redis", REDIS_PORT)?;
    let counter = Counter::start_with(client, address, KEY, HANGS_UP)?;
    faults::plan(held, &format!("{point} hold"))?;
    a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(held, point)?;
    switch_off(off)?;
    for host in [a, b] {
        faults::forget_plans(host)?;
    }
    faults::boot_anew(off)?;
    faults::start(off)?;
    let (RunsOn(name) | EndedOn(name)) = fate;
    let (owner, other) = (
        scenario.host(name)?,
        scenario.host(if name == "a" { "b" } else { "a" })?,
    );
    let wanted = match fate {
        RunsOn(_) => "running",
        EndedOn(_) => "exited",
    };
    let mut states = Vec::new();
    wait_for("both hosts to know whose the container is", AT_LAST, || {
        states = vec![state(owner, "redis")?, state(other, "redis")?];
        Ok(states[0] == wanted && ["none", "moved"].contains(&states[1].as_str()))
    })
    .with_context(|| format!("{wanted} on {name} was expected: {states:?}"))?;
    match fate {
        RunsOn(_) => counted_on(name, [a, b], counter)?,
        EndedOn(_) => has_all_of_it(owner, client, counter)?,
    }
    owner.tranship(&["rm", "--force", "redis"])?;
    for host in [a, b] {
        if host.tranship(&["volume", "ls"])?.contains("data") {
            host.tranship(&["volume", "rm", "data"])?;
        }
    }
    Ok(())
}

fn run_redis(host: &Host, client: &Host) -> Result<()> {
    images::run_redis_with(host, "redis", "data", client, &["--appendfsync", "always"])
}

/// A Redis on the same volume knows of every increment that was answered, and of one more at most.
fn has_all_of_it(owner: &Host, client: &Host, counter: Counter) -> Result<()> {
    let counted = counter.stop()?;
    ensure!(!counted.error.is_empty(), "its client has not noticed");
    ensure!(counted.wrong.is_empty(), "it was answered {:?}", counted.wrong);
    owner.tranship(&["rm", "redis"])?;
    run_redis(owner, client)?;
    let address = owner.address_of("redis", REDIS_PORT)?;
    let kept = images::ask_redis(client, address, &format!("GET {KEY}"))?;
    let kept: i64 = kept
        .trim()
        .parse()
        .with_context(|| format!("{KEY} is {kept:?}"))?;
    ensure!(
        (counted.last..=counted.last + 1).contains(&kept),
        "{} were acknowledged, {kept} are there",
        counted.last
    );
    Ok(())
}
