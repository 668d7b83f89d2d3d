//! A Redis with a connected client moves between hosts.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::tranship::wait_for;

/// Moves there and back.
const ROUND_TRIPS: usize = 5;

/// Between two moves, so that each finds a workload under way.
const COUNT: Duration = Duration::from_millis(300);

/// Values that a saving Redis has, each of the same size.
const VALUES: u64 = 20_000;
/// Each value costs Redis's child this long to save: it is at it for 6 s.
const SAVE_US_PER_VALUE: &str = "250";

/// Makes so many values, no two alike.
const FILL: &str = "for n = 1, ARGV[1] do redis.call('SET', 'key:' .. n, string.rep(n .. ' ', 600)) end";
/// One sum of all of them.
const DIGEST: &str = "local sum = '' for n = 1, ARGV[1] do sum = redis.sha1hex(sum .. redis.call('GET', 'key:' .. n)) end \
                      return sum";

/// Redis forks, and its child writes down what was there at that moment, while its parent goes on changing it: the two
/// share the pages that neither has written to since.
#[test]
fn redis_moves_while_its_child_saves() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let cli = |host: &Host, words: &[&str]| host.exec("redis", &[&["redis-cli", "-e"], words].concat());
    let count = VALUES.to_string();
    cli(a, &["EVAL", FILL, "0", &count])?;
    cli(a, &["CONFIG", "SET", "rdb-key-save-delay", SAVE_US_PER_VALUE])?;
    let before = cli(a, &["EVAL", DIGEST, "0", &count])?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    let mut hosts = [a, b];
    for number in 1..=2 {
        let [from, to] = hosts;
        cli(from, &["BGSAVE"])?;
        sleep(COUNT);
        let moved = from
            .migrate("redis", to.name())
            .with_context(|| format!("move {number}"))?;
        let saving = is_saving(to)?;
        eprintln!(
            "move {number}: blackout {} ms, saving: {saving}",
            moved.blackout_us / 1000
        );
        ensure!(saving, "the child had saved before the move ended");
        wait_for("the child to save the rest", Duration::from_secs(30), || {
            Ok(!is_saving(to)?)
        })?;
        hosts.reverse();
    }
    counter.stop()?.checked()?;
    let last = hosts[0];
    let after = cli(last, &["EVAL", DIGEST, "0", &count])?;
    ensure!(after == before, "values have changed: {before} {after}");
    // What the child has written, read again: redis-check-rdb knows a sum of all of it.
    let check = last.exec("redis", &["redis-check-rdb", "/var/lib/redis/dump.rdb"])?;
    ensure!(
        check.contains("RDB looks OK") && check.contains(&format!("{} keys read", VALUES + 1)),
        "{check}"
    );
    scenario.end()
}

/// Whether a child of Redis's is saving; none may have failed.
fn is_saving(host: &Host) -> Result<bool> {
    let info = host.exec("redis", &["redis-cli", "INFO", "persistence"])?;
    let has = |line: &str| info.lines().any(|found| found.trim() == line);
    ensure!(
        has("rdb_last_bgsave_status:ok"),
        "a child has failed to save: {info}"
    );
    Ok(has("rdb_bgsave_in_progress:1"))
}

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
