//! The narrowest moment of all: the destination has written that the container is about to run, and everything there dies
//! before it does.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::halfway::{is_in, migrate_to_ready, signal, signal_daemon};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

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
            Ok(log.contains("newest=Some(Resuming)"))
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

fn relays(host: &Host) -> Result<Vec<String>> {
    let found = host.finish("sh", ["-c", RELAYS], SHORT)?;
    Ok(found.text().lines().map(str::to_owned).collect())
}
