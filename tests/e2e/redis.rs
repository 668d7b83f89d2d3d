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

/// Values that make a GiB, when each is so often its number.
const LARGE_VALUES: u64 = 16_384;
const LARGE_REPETITIONS: &str = "11000";
/// The child is at these for 25 s.
const LARGE_SAVE_US_PER_VALUE: &str = "1500";

/// What is sent per second of a GiB, so that a fork finds its first round under way.
const LARGE_BANDWIDTH: &str = "300m";
/// How much of that round is over when Redis forks; less and more than half.
const FORK_AT_BYTES: [u64; 2] = [200_000_000, 800_000_000];

/// For what a loaded machine takes long for.
const PATIENCE: Duration = Duration::from_secs(180);

/// Makes so many values, no two alike, of so many repetitions.
const FILL: &str = "for n = 1, ARGV[1] do redis.call('SET', 'key:' .. n, string.rep(n .. ' ', ARGV[2])) end";
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
    cli(a, &["EVAL", FILL, "0", &count, "600"])?;
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
    expect_saved(last, VALUES)?;
    scenario.end()
}

/// Redis forks when a part of its GiB has been sent: from there on it is twice as large, and its child is one more process to
/// follow. `make test-full` runs it.
#[test]
#[ignore = "takes minutes: make test-full"]
fn redis_with_a_gib_forks_in_the_middle_of_a_move_and_both_arrive() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let address = a.address_of("redis", REDIS_PORT)?;
    let cli = |host: &Host, words: &[&str]| host.exec("redis", &[&["redis-cli", "-e"], words].concat());
    // Of what a GiB costs, only its memory is of interest here; and nobody else is to save.
    for setting in [["appendonly", "no"], ["save", ""]] {
        cli(a, &["CONFIG", "SET", setting[0], setting[1]])?;
    }
    let count = LARGE_VALUES.to_string();
    cli(a, &["EVAL", FILL, "0", &count, LARGE_REPETITIONS])?;
    cli(
        a,
        &["CONFIG", "SET", "rdb-key-save-delay", LARGE_SAVE_US_PER_VALUE],
    )?;
    let before = cli(a, &["EVAL", DIGEST, "0", &count])?;
    let mut hosts = [a, b];
    for fork_at in FORK_AT_BYTES {
        let [from, to] = hosts;
        let counter = Counter::start(client, address, "visits")?;
        let options = [
            "migrate",
            "--detach",
            "--max-bandwidth",
            LARGE_BANDWIDTH,
            "redis",
            to.name(),
        ];
        let id = from.tranship(&options)?;
        let status = || from.tranship_json(&["migrate", "status", &id]);
        wait_for("a part of the memory to be sent", PATIENCE, || {
            let sent = status()?["progress"]["sent_bytes"].as_u64();
            Ok(sent.is_some_and(|sent| sent >= fork_at))
        })?;
        let answer = images::ask_redis(client, address, "BGSAVE")?;
        ensure!(answer == "Background saving started", "Redis says {answer:?}");
        let forked = status()?;
        ensure!(
            forked["outcome"] == "running"
                && ["seed", "rounds"].iter().any(|phase| forked["phase"] == **phase),
            "it forked too late: {forked}"
        );
        wait_for("the end of the migration", PATIENCE, || {
            Ok(status()?["outcome"] != "running")
        })?;
        let moved = status()?;
        ensure!(moved["outcome"] == "done", "it ended as {moved:#}");
        eprintln!(
            "forked at {} MB: blackout {} ms, {} MB sent, saving: {}",
            fork_at / 1_000_000,
            moved["blackout_us"].as_u64().unwrap_or_default() / 1000,
            moved["bytes_sent"].as_u64().unwrap_or_default() / 1_000_000,
            is_saving(to)?
        );
        wait_for("the child to save the rest", PATIENCE, || Ok(!is_saving(to)?))?;
        counter.stop()?.checked()?;
        let after = cli(to, &["EVAL", DIGEST, "0", &count])?;
        ensure!(after == before, "values have changed: {before} {after}");
        expect_saved(to, LARGE_VALUES)?;
        hosts.reverse();
    }
    scenario.end()
}

/// What Redis's child has written, read again: redis-check-rdb knows a sum of all of it. The client's counter is in it.
fn expect_saved(host: &Host, values: u64) -> Result<()> {
    let check = host.exec("redis", &["redis-check-rdb", "/var/lib/redis/dump.rdb"])?;
    let keys = format!("{} keys read", values + 1);
    ensure!(check.contains("RDB looks OK") && check.contains(&keys), "{check}");
    Ok(())
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
