//! A Redis with a connected client moves between hosts.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;

/// Moves there and back.
const ROUND_TRIPS: usize = 5;

/// Between two moves, so that each finds a workload under way.
const COUNT: Duration = Duration::from_millis(300);

#[test]
fn redis_moves_there_and_back() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let before = a.container("redis")?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;

    for trip in 0..ROUND_TRIPS {
        for (from, to) in [(a, b), (b, a)] {
            sleep(COUNT);
            let moved = from.migrate("redis", to.name());
            let moved =
                moved.with_context(|| format!("trip {trip}, from {} to {}", from.name(), to.name()))?;
            ensure!(moved.outcome == "done", "a migration ended as {}", moved.outcome);
            let here = to.container("redis")?;
            ensure!(
                here["state"] == "running",
                "on {} it is {}",
                to.name(),
                here["state"]
            );
            ensure!(
                here["ip"] == before["ip"] && here["mac"] == before["mac"],
                "its address changed: {here:#}"
            );
        }
    }
    sleep(COUNT);
    let report = counter.stop()?.checked()?;
    eprintln!(
        "{} increments, longest stall {} us",
        report.answers,
        report.longest_stall_us()
    );

    let after = a.container("redis")?;
    ensure!(after["id"] == before["id"], "another container came back");
    let epochs = (before["epoch"].as_u64(), after["epoch"].as_u64());
    let handoffs = epochs.0.zip(epochs.1).map(|(before, after)| after - before);
    ensure!(
        handoffs == Some(2 * ROUND_TRIPS as u64),
        "{epochs:?} are not {} handoffs",
        2 * ROUND_TRIPS
    );
    scenario.end()
}
