//! Around the commit: everything at the destination dies when it has written that the container is about to run, and the hosts lose
//! sight of each other when one has committed and the other has not heard of it.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::halfway::{is_in, migrate_to_ready, signal, signal_daemon};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// Exit code of a migration whose outcome is not known.
const UNKNOWN: i32 = 6;
/// What is in doubt is decided within this time of the hosts seeing each other again.
const AT_LAST: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_secs(5);
/// Both daemons have decided within this time.
const DECIDED: Duration = Duration::from_secs(20);
/// From the phase to the record of it, and some more.
const WRITTEN: Duration = Duration::from_millis(500);

/// The relays of a host: what runc takes for CRIU.
const RELAYS: &str = "for process in /proc/[0-9]*; do case $(readlink $process/exe) in \
    */tranship-criu) echo ${process#/proc/} ;; esac; done";

#[test]
fn a_destination_that_dies_when_it_is_about_to_let_the_container_run_runs_it_after_a_restart() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    let id = migrate_to_ready(a, b, "redis")?;
    // The source cannot commit while it is stopped, so there is time to stop the relay, which CRIU's next step needs.
    let relays = relays(b)?;
    ensure!(relays.len() == 1, "{} relays are at work on b", relays.len());
    signal(b, "STOP", &relays[0])?;
    signal_daemon(a, "CONT")?;
    wait_for("the destination to begin to resume", SHORT, || {
        is_in(b, &id, "resume")
    })?;
    sleep(WRITTEN);
    daemon::kill(b)?;
    signal(b, "KILL", &relays[0])?;
    daemon::start(b)?;
    wait_for(
        "the daemon to find that it died after the record",
        DECIDED,
        || {
            let log = std::fs::read_to_string(b.layout.log("b"))?;
            Ok(log.contains("Ready, Resuming]"))
        },
    )?;
    wait_for("the container to run at the destination", DECIDED, || {
        let found = b.try_tranship(&["inspect", "redis"])?;
        Ok(found.status.success() && b.container("redis")?["state"] == "running")
    })?;
    wait_for("the source to know it", DECIDED, || {
        Ok(a.container("redis")?["state"] == "moved")
    })?;
    sleep(Duration::from_secs(1));
    counter.stop()?.checked()?;
    scenario.end()
}

#[test]
fn what_is_in_doubt_is_decided_within_ten_seconds_of_the_hosts_seeing_each_other() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    let id = migrate_to_ready(a, b, "redis")?;
    // The source has been told already that all is ready, so it commits; nobody hears of that.
    scenario.bed()?.set_link("b", false)?;
    signal_daemon(a, "CONT")?;
    let watched = a.try_tranship(&["migrate", "watch", &id])?;
    ensure!(
        watched.status.code() == Some(UNKNOWN),
        "{} instead of {UNKNOWN}: {}",
        watched.status,
        watched.errors()
    );
    ensure!(
        a.container("redis")?["state"] == "in_doubt",
        "the copy is not in doubt"
    );
    scenario.bed()?.set_link("b", true)?;
    let sees = Instant::now();
    let owner = the_one_that_runs("redis", a, b)?;
    let took = sees.elapsed();
    eprintln!("decided after {took:?}");
    ensure!(owner.name() == "b", "it is on {}", owner.name());
    ensure!(took < AT_LAST, "it took {took:?}");
    sleep(Duration::from_secs(1));
    counter.stop()?.checked()?;
    scenario.end()
}

fn relays(host: &Host) -> Result<Vec<String>> {
    let found = host.finish("sh", ["-c", RELAYS], SHORT)?;
    Ok(found.text().lines().map(str::to_owned).collect())
}
