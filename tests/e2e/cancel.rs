//! A migration that is cancelled: it ends within a second, and the container goes on where it is.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};

/// A person who cancels is not kept waiting longer.
const PROMPT: Duration = Duration::from_secs(1);

/// So slow that the first round takes seconds: a Redis without data has about 2 MB that travel.
const SLOW: &str = "500k";

/// A cancellation is asked for when one of these begins.
const PHASES: [&str; 6] = ["reserve", "seed", "rounds", "freeze", "drain", "hold"];

#[test]
fn a_cancelled_migration_ends_at_once_and_the_container_never_notices() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for phase in PHASES {
        let told = || format!("cancelled in {phase}");
        let before = Inventory::take(scenario.bed()?)?;
        // Only the first round can be made to last; what is over before it is seen may have been too late.
        let slow = if phase == "seed" { SLOW } else { "0" };
        let outcome = cancel_in(a, phase, slow).with_context(told)?;
        eprintln!("{}: {outcome}", told());
        ensure!(
            phase != "seed" || outcome == "cancelled",
            "{}: it was {outcome}",
            told()
        );
        if outcome == "done" {
            b.migrate("redis", "a").with_context(told)?;
            continue;
        }
        ensure!(outcome == "cancelled", "{}: it was {outcome}", told());
        ensure!(a.container("redis")?["state"] == "running", "{}", told());
        // Layers that have arrived are kept for the next attempt, as a download would be.
        let kept = |line: &str| {
            line.contains("/overlay/layers/")
                || (line.starts_with("gone") && line.contains("/overlay/staging/"))
        };
        before
            .expect_unchanged_but(scenario.bed()?, kept)
            .with_context(told)?;
    }
    counter.stop()?.checked()?;
    scenario.end()
}

/// Starts a migration from `a`, cancels it when the phase begins, and answers how it ended.
fn cancel_in(a: &Host, phase: &str, bandwidth: &str) -> Result<String> {
    let mut arguments = vec!["migrate", "--detach"];
    if bandwidth != "0" {
        arguments.extend(["--max-bandwidth", bandwidth]);
    }
    arguments.extend(["redis", "b"]);
    let id = a.tranship(&arguments)?;
    let mut watch = daemon::cli(a, &["--format", "json", "migrate", "watch", &id])?;
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("the output is a pipe")?);
    let mut asked = None;
    for line in lines.lines() {
        let record: Value = serde_json::from_str(&line?)?;
        if record["phase"] == phase && asked.is_none() {
            // One that is past its commit says so, and goes on.
            let accepted = a.try_tranship(&["migrate", "cancel", &id])?.status.success();
            asked = Some((accepted, Instant::now()));
        }
    }
    watch.wait()?;
    let record = a.tranship_json(&["migrate", "status", &id])?;
    let outcome = record["outcome"].as_str().unwrap_or_default().to_owned();
    if let Some((true, at)) = asked
        && outcome == "cancelled"
    {
        ensure!(at.elapsed() < PROMPT, "it took {:?}", at.elapsed());
    }
    Ok(outcome)
}
