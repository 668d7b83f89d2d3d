//! Daemons that die and stay dead: their guard lets go what stood still, unless it was handed over, and whoever does not move
//! notices nothing.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::{Counter, CounterReport};
use tranship_tests::crowd::Crowd;
use tranship_tests::halfway::{migrate_to_ready, signal_daemon};
use tranship_tests::images::{self, COUNT_PORT, REDIS_PORT, WORKLOAD};
use tranship_tests::oracles::is_frozen;
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// A container that stood still runs again this long after its daemon has died.
const GIVEN_BACK: Duration = Duration::from_secs(5);
/// Longer than a guard takes that should do something.
const NOTHING_HAPPENS: Duration = Duration::from_secs(6);
/// What a daemon or a migration may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Containers that do not move.
const MANY: usize = 50;
/// Between two requests to one of them.
const OFTEN: Duration = Duration::from_millis(100);
/// What a client waits for at most while nothing happens to its server, on a loaded machine.
const UNNOTICED_US: u64 = 1_000_000;

#[test]
fn a_container_that_stands_still_when_its_daemon_dies_runs_again_without_it() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let address = a.address_of("redis", REDIS_PORT)?;
    let container = container_id(a)?;
    let counter = Counter::start(client, address, "visits")?;
    let migration = migrate_to_ready(a, b, "redis")?;
    ensure!(is_frozen(a, &container)?, "it does not stand still");
    daemon::kill(a)?;
    let died = Instant::now();
    wait_for("the container to run without its daemon", GIVEN_BACK, || {
        Ok(!is_frozen(a, &container)?)
    })?;
    let thawed = died.elapsed();
    ensure!(daemon::pid(a).is_none(), "the daemon is there again");
    sleep(Duration::from_millis(500));
    let report = stopped(counter)?;
    let waited_us = report.longest_stall_us();
    eprintln!("thawed {thawed:?} after the daemon's death; the client waited {waited_us} us");
    daemon::start(a)?;
    let owner = the_one_that_runs("redis", a, b)?;
    ensure!(owner.name() == "a", "it is on {}", owner.name());
    let record = a.tranship_json(&["migrate", "status", &migration])?;
    ensure!(record["outcome"] == "rolled_back", "{record}");
    let counter = Counter::start(client, address, "visits")?;
    a.migrate("redis", "b")?;
    stopped(counter)?;
    scenario.end()
}

#[test]
fn a_container_that_was_handed_over_stays_frozen_without_its_daemon() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    let container = container_id(a)?;
    let migration = migrate_to_ready(a, b, "redis")?;
    // The source hears that it is ready, commits, and nobody hears of that.
    signal_daemon(b, "STOP")?;
    signal_daemon(a, "CONT")?;
    wait_for("the source to commit", PATIENCE, || {
        let record = a.tranship_json(&["migrate", "status", &migration])?;
        Ok(record["phase"] == "resume")
    })?;
    daemon::kill(a)?;
    let died = Instant::now();
    while died.elapsed() < NOTHING_HAPPENS {
        ensure!(
            is_frozen(a, &container)?,
            "it was thawed after {:?}",
            died.elapsed()
        );
        sleep(Duration::from_millis(5));
    }
    signal_daemon(b, "CONT")?;
    daemon::start(a)?;
    let owner = the_one_that_runs("redis", a, b)?;
    ensure!(owner.name() == "b", "it is on {}", owner.name());
    stopped(counter)?;
    scenario.end()
}

#[test]
fn fifty_containers_do_not_notice_that_their_daemon_dies() -> Result<()> {
    let scenario = Scenario::begin(&[WORKLOAD])?;
    let (a, client) = (scenario.host("a")?, scenario.host("client")?);
    let port = COUNT_PORT.to_string();
    let names: Vec<String> = (0..MANY).map(|number| format!("count-{number}")).collect();
    let mut crowds = Vec::new();
    for name in &names {
        images::run_workload(a, name, &["count", "--count-port", &port])?;
        let address = a.address_of(name, COUNT_PORT)?;
        crowds.push(Crowd::start(client, address, 1, OFTEN).with_context(|| name.clone())?);
    }
    let pids = pids(a, &names)?;
    each_of(&crowds, |crowd| crowd.begin())?;
    daemon::kill(a)?;
    sleep(2 * OFTEN);
    daemon::start(a)?;
    let longest_us = each_of(&crowds, |crowd| crowd.finish())?;
    for (longest_us, name) in longest_us.into_iter().zip(&names) {
        ensure!(
            longest_us < UNNOTICED_US,
            "a client of {name} waited for {longest_us} us"
        );
    }
    ensure!(self::pids(a, &names)? == pids, "some were started again");
    scenario.end()
}

/// All at once: each takes its time.
fn each_of<T: Send>(crowds: &[Crowd], ask: impl Fn(&Crowd) -> Result<T> + Sync) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = crowds.iter().map(|crowd| scope.spawn(|| ask(crowd))).collect();
        let answers = asked
            .into_iter()
            .map(|asked| asked.join().ok().context("a client panicked")?);
        answers.collect()
    })
}

fn container_id(host: &Host) -> Result<String> {
    let record = host.container("redis")?;
    Ok(record["id"].as_str().context("a container has an id")?.to_owned())
}

fn pids(host: &Host, names: &[String]) -> Result<Vec<i64>> {
    let pid = |name: &String| {
        let record = host.container(name)?;
        ensure!(record["state"] == "running", "{name} does not run: {record}");
        record["pid"].as_i64().context("a container that runs has a pid")
    };
    names.iter().map(pid).collect()
}

fn stopped(counter: Counter) -> Result<CounterReport> {
    counter.stop()?.checked()
}
