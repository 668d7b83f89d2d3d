//! The power of a host is cut at a step of a migration, or at any moment of it: its processes, its memory and what was not brought to its
//! disk are gone. Then it comes back. A container whose processes were there alone has ended, as it would have without a migration, with all
//! that it had acknowledged on its volume; otherwise it runs, and never on both.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tranship_tests::counter::Counter;
use tranship_tests::faults;
use tranship_tests::halfway::{counted_on, state};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::journals;
use tranship_tests::power;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, PoolKind};
use tranship_tests::tranship::wait_for;

/// Decided within this time of the host's return.
const AT_LAST: Duration = Duration::from_secs(10);
/// The client gives a Redis up that is silent for so long.
const HANGS_UP: Duration = Duration::from_secs(4);
const KEY: &str = "visits";

/// More attempts to write one step than there are in a test.
const UNWRITABLE: usize = 100;
/// For some words between a container and its client.
const A_WHILE: Duration = Duration::from_millis(500);

/// Cuts of the test that tries many, and of the part of it that is tried always.
const CUTS: u64 = 200;
const SOME_CUTS: u64 = 6;
/// The latest moment for one, after the migration has begun: it takes about half a second.
const LATEST_MS: u64 = 650;
/// Between two of them, in a row that comes to every part of a migration.
const STRIDE_MS: u64 = 237;

/// What has become of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It runs on this host, and its client goes on.
    RunsOn(&'static str),
    /// It has ended, and this host has what it had on its volume.
    EndedOn(&'static str),
}
use Fate::{EndedOn, RunsOn};

/// Where the migration is held, whose power is cut, and what comes of it.
type Step = (&'static str, &'static [&'static str], Fate);

const A: &[&str] = &["a"];
const B: &[&str] = &["b"];
const BOTH: &[&str] = &["a", "b"];

const STEPS: [Step; 31] = [
    ("source:describe", A, EndedOn("a")),
    ("source:track-memory", A, EndedOn("a")),
    ("source:prepare-dump", A, EndedOn("a")),
    ("source:freeze", A, EndedOn("a")),
    ("source:dump", A, EndedOn("a")),
    ("destination:restore-held", A, EndedOn("a")),
    ("source:receive-ready", A, RunsOn("b")),
    ("source:journal-committed", A, RunsOn("b")),
    ("source:send-go", A, RunsOn("b")),
    ("source:receive-running", A, RunsOn("b")),
    ("source:remove-copy", A, RunsOn("b")),
    ("destination:reserve", B, RunsOn("a")),
    ("destination:accept-stream", B, RunsOn("a")),
    ("destination:prepare-restore", B, RunsOn("a")),
    ("source:freeze", B, RunsOn("a")),
    ("destination:hold-network", B, RunsOn("a")),
    ("destination:restore-held", B, RunsOn("a")),
    ("destination:send-ready", B, RunsOn("a")),
    ("source:send-go", B, RunsOn("a")),
    ("destination:journal-resuming", B, RunsOn("a")),
    // It may have run by then, and nobody lets it run a second time.
    ("destination:release", B, EndedOn("b")),
    ("destination:adopt", B, EndedOn("b")),
    ("destination:journal-running", B, EndedOn("b")),
    ("source:receive-running", B, EndedOn("b")),
    ("source:dump", BOTH, EndedOn("a")),
    ("source:receive-ready", BOTH, EndedOn("a")),
    ("source:journal-committed", BOTH, EndedOn("a")),
    ("source:send-go", BOTH, EndedOn("a")),
    ("destination:release", BOTH, EndedOn("b")),
    ("destination:journal-running", BOTH, EndedOn("b")),
    ("source:remove-copy", BOTH, EndedOn("b")),
];

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_each(&[STEPS[4], STEPS[8], STEPS[16], STEPS[20], STEPS[27]])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_power_cut_at_any_step_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_each(&STEPS)
}

#[test]
fn a_power_cut_at_some_moment_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_moments(SOME_CUTS)
}

#[test]
#[ignore = "takes long: make faults"]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() -> Result<()> {
    try_moments(CUTS)
}

/// The destination is ready when the source gives up, and the power is cut before that can be written. Nothing has run again by then, so
/// what the destination holds is all there is.
#[test]
fn a_power_cut_before_it_is_written_that_the_container_goes_on_loses_nothing() -> Result<()> {
    let strike = |scenario: &Scenario| {
        let a = scenario.host("a")?;
        let unwritable = "source:journal-giving_up error\n".repeat(UNWRITABLE);
        faults::plan(a, &format!("source:receive-ready error\n{unwritable}"))?;
        a.tranship(&["migrate", "--detach", "redis", "b"])?;
        wait_for("it to be given up", faults::REACHED, || {
            Ok(faults::planned(a)? < UNWRITABLE - 1)
        })?;
        // For a client of one that ran again to be answered.
        sleep(A_WHILE);
        ensure!(
            state(a, "redis")? == "in_doubt",
            "it is {} at a",
            state(a, "redis")?
        );
        Ok(())
    };
    let told = "the power of a is cut when it cannot write that it gives up".to_owned();
    try_all([(told, A, strike, Some(RunsOn("b")))].into_iter())
}

fn try_each(steps: &[Step]) -> Result<()> {
    let attempts = steps.iter().map(|(point, off, fate)| {
        let told = format!("at {point} the power of {} is cut", off.join(" and "));
        let strike = move |scenario: &Scenario| {
            let (a, held) = (scenario.host("a")?, scenario.host(faults::host_of(point))?);
            faults::plan(held, &format!("{point} hold"))?;
            a.tranship(&["migrate", "--detach", "redis", "b"])?;
            faults::wait_held(held, point)
        };
        (told, *off, strike, Some(*fate))
    });
    try_all(attempts)
}

/// The host, and in each fifth attempt both; one moment after the other.
fn try_moments(cuts: u64) -> Result<()> {
    let attempts = (0..cuts).map(|cut| {
        let off = match cut % 5 {
            4 => BOTH,
            1 | 3 => B,
            _ => A,
        };
        let after = Duration::from_millis(cut * STRIDE_MS % LATEST_MS);
        let told = format!(
            "{after:?} after it has begun the power of {} is cut",
            off.join(" and ")
        );
        let strike = move |scenario: &Scenario| {
            let a = scenario.host("a")?;
            a.tranship(&["migrate", "--detach", "redis", "b"])?;
            sleep(after);
            Ok(())
        };
        (told, off, strike, None)
    });
    try_all(attempts)
}

type Attempt<Strike> = (String, &'static [&'static str], Strike, Option<Fate>);

fn try_all<Strike: FnOnce(&Scenario) -> Result<()>>(
    attempts: impl Iterator<Item = Attempt<Strike>>,
) -> Result<()> {
    let options = Options {
        pool: PoolKind::Cut,
        ..Options::default()
    };
    let scenario = Scenario::begin_with(&options, &["redis"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    faults::arm(&[a, b])?;
    let mut passed = 0;
    for (told, off, strike, fate) in attempts {
        let begun = Instant::now();
        // What one has left is in the way of the next.
        match attempt(&scenario, off, strike, fate) {
            Err(error) => {
                eprintln!("FAILED: {told}: {error:#}\n{passed} passed, 1 failed");
                return Err(error.context(told));
            }
            Ok(fate) => eprintln!("passed in {:.1?}: {told}: {fate:?}", begun.elapsed()),
        }
        passed += 1;
    }
    eprintln!("{passed} passed, 0 failed");
    faults::disarm(&[a, b])?;
    scenario.end()
}

fn attempt(
    scenario: &Scenario,
    off: &[&str],
    strike: impl FnOnce(&Scenario) -> Result<()>,
    expected: Option<Fate>,
) -> Result<Fate> {
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let off: Vec<&Host> = off
        .iter()
        .map(|name| scenario.host(name))
        .collect::<Result<_>>()?;
    run_redis(a, client)?;
    let record = a.container("redis")?;
    let container = record["id"].as_str().context("a container has an id")?;
    let counter = Counter::start_with(client, a.address_of("redis", REDIS_PORT)?, KEY, HANGS_UP)?;
    strike(scenario)?;
    power::cut(scenario.bed()?, &off)?;
    for host in &off {
        faults::forget_plans(host)?;
        faults::boot_anew(host)?;
        faults::start(host)?;
    }
    // Not before: whoever is held has got no further when the other one is back and asks.
    for host in [a, b] {
        faults::forget_plans(host)?;
    }
    let fate = decided(a, b)?;
    ensure!(expected.is_none_or(|expected| expected == fate), "{fate:?}");
    let (RunsOn(name) | EndedOn(name)) = fate;
    let owner = scenario.host(name)?;
    let was_off = off.iter().any(|host| host.name() == name);
    ensure!(was_off || matches!(fate, RunsOn(_)), "{fate:?}");
    journals::agree(container, &[a, b], owner)?;
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
    Ok(fate)
}

/// What both hosts agree about.
fn decided(a: &Host, b: &Host) -> Result<Fate> {
    let mut states = [String::new(), String::new()];
    wait_for("both hosts to know whose the container is", AT_LAST, || {
        // First, since it says that what is seen behind it stays. A preflight may have been waiting for the host's return.
        let over = has_ended(a)? && has_ended(b)?;
        states = [state(a, "redis")?, state(b, "redis")?];
        let owners = states.iter().filter(|state| is_own(state)).count();
        let others = states.iter().filter(|state| is_gone(state)).count();
        Ok(over && owners == 1 && others == 1)
    })
    .with_context(|| format!("at a it is {}, at b {}", states[0], states[1]))?;
    Ok(match [states[0].as_str(), states[1].as_str()] {
        ["running", _] => RunsOn("a"),
        [_, "running"] => RunsOn("b"),
        ["exited", _] => EndedOn("a"),
        [_, "exited"] => EndedOn("b"),
        other => bail!("{other:?}"),
    })
}

/// Whether no migration goes on.
fn has_ended(host: &Host) -> Result<bool> {
    let list = host.tranship(&["--format", "json", "migrate", "ls"])?;
    let all: Vec<Value> = list.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(all
        .iter()
        .all(|one| one["outcome"] != "running" && one["outcome"] != "unknown"))
}

fn is_own(state: &str) -> bool {
    ["running", "exited"].contains(&state)
}

fn is_gone(state: &str) -> bool {
    ["none", "moved"].contains(&state)
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
    run_redis(owner, client).with_context(|| {
        let said = owner.tranship(&["logs", "redis"]).unwrap_or_default();
        format!("a Redis on the same volume says:\n{said}")
    })?;
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
