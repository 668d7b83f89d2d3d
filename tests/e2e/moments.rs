//! Somebody cancels, a daemon dies, a cable is pulled, at any moment of the rounds and not only when a phase begins: one host
//! runs the container in the end, its memory is right, and nothing is left of the move.
//!
//! The memory is written twice as fast as it is sent, so there are rounds, and then slowed rounds, for as long as it takes.
//! Which blow comes at which moment follows from a seed that each run prints. `TRANSHIP_DRAWS=100` makes so many draws instead
//! of one of each kind, `TRANSHIP_SEED=N` repeats a run's:
//!
//! ```sh
//! TRANSHIP_DRAWS=100 cargo test --release --workspace --test moments -- --nocapture
//! ```

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tranship_tests::images;
use tranship_tests::oracles::Inventory;
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::scenario::Scenario;
use tranship_tests::stamps::Stamps;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;
use tranship_tests::workload::random::{Random, draws, seed};

/// MiB, and those that are stamped each second.
const MEMORY: [&str; 2] = ["128", "200"];
/// So much is sent per second: all of it in 1.3 s.
const BANDWIDTH: &str = "96m";

/// From the first page on: three rounds at full speed, and some while it is slowed down.
const LATEST_MS: usize = 5500;

/// For whatever a loaded machine may take long for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A person who cancels is not kept waiting longer, even on a loaded machine.
const PROMPT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    Cancel,
    KillSource,
    KillDestination,
    Unplug,
}

const BLOWS: [Blow; 4] = [
    Blow::Cancel,
    Blow::KillSource,
    Blow::KillDestination,
    Blow::Unplug,
];

#[test]
fn a_blow_at_any_moment_of_the_rounds_loses_nothing() -> Result<()> {
    let (seed, draws) = (seed(), draws(BLOWS.len() as u64));
    let mut random = Random::new(seed);
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, client) = (scenario.host("a")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], MEMORY)?;
    stamps.expect_right(a)?;
    let mut blows = Vec::new();
    for number in 0..draws {
        if blows.is_empty() {
            blows = BLOWS.to_vec();
        }
        let blow = blows.swap_remove(random.below(blows.len()));
        let after = Duration::from_millis(random.below(LATEST_MS) as u64);
        let told = || format!("draw {number} of seed {seed}: {blow:?} after {after:?}");
        stamps.crowd.begin().with_context(told)?;
        let owner = draw(&scenario, blow, after).with_context(told)?;
        let stall = stamps.check(owner).with_context(told)?;
        eprintln!("{}: on {}, longest wait {stall:?}", told(), owner.name());
        if owner.name() == "b" {
            owner.migrate("stamps", "a").with_context(told)?;
        }
    }
    drop(stamps);
    scenario.end()
}

/// One migration, struck so long after its first page. Answers who has the container once what was hit is mended.
fn draw(scenario: &Scenario, blow: Blow, after: Duration) -> Result<&Host> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    let before = Inventory::take(bed)?;
    let id = a.tranship(&["migrate", "--detach", "--max-bandwidth", BANDWIDTH, "stamps", "b"])?;
    wait_for("the first page to travel", PATIENCE, || {
        let record = a.tranship_json(&["migrate", "status", &id])?;
        Ok(record["progress"]["sent_bytes"].as_u64() > Some(0) || record["outcome"] != "running")
    })?;
    sleep(after);
    let struck = Instant::now();
    match blow {
        // One that is past its commit says so, and goes on.
        Blow::Cancel => drop(a.try_tranship(&["migrate", "cancel", &id])?),
        Blow::KillSource => daemon::kill(a)?,
        Blow::KillDestination => daemon::kill(b)?,
        Blow::Unplug => bed.set_link("b", false)?,
    }
    let mut outcome = String::new();
    let mut ends = || {
        let record = a.tranship_json(&["migrate", "status", &id])?;
        outcome = record["outcome"].as_str().unwrap_or_default().to_owned();
        Ok(outcome != "running")
    };
    match blow {
        Blow::KillSource => daemon::start(a)?,
        _ => wait_for("the source to have done with it", PATIENCE, &mut ends)?,
    }
    let took = struck.elapsed();
    match blow {
        Blow::Cancel | Blow::KillSource => {}
        Blow::KillDestination => daemon::start(b)?,
        Blow::Unplug => bed.set_link("b", true)?,
    }
    let owner = the_one_that_runs("stamps", a, b)?;
    ends()?;
    eprintln!("{blow:?}: {outcome} after {took:?}");
    if outcome == "cancelled" {
        ensure!(took < PROMPT, "it took {took:?} to cancel");
    }
    if owner.name() == "a" {
        ensure!(
            ["cancelled", "failed", "rolled_back"].contains(&outcome.as_str()),
            "it is {outcome}"
        );
        // Layers and the image that have arrived are kept for the next attempt, as a download would be.
        let kept = |line: &str| {
            line.contains("/overlay/layers/")
                || (line.starts_with("gone") && line.contains("/overlay/staging/"))
        };
        before.expect_unchanged_but(bed, kept)?;
    }
    Ok(owner)
}
