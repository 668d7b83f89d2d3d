//! The narrowest moment of all: the destination has written that the container is about to run, and everything there dies
//! before it does.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::counter::Counter;
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
    let id = migrate_to_hold(a)?;
    // The source cannot commit while it is stopped, so there is time to stop the relay, which CRIU's next step needs.
    signal_daemon(a, "STOP")?;
    wait_for("the destination to be ready", SHORT, || is_in(b, &id, "commit"))?;
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

/// Starts a migration of the container to b and returns when the destination restores it.
fn migrate_to_hold(a: &Host) -> Result<String> {
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    let mut watch = daemon::cli(a, &["--format", "json", "migrate", "watch", &id])?;
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("the output is a pipe")?).lines();
    let mut held = false;
    for line in lines {
        let record: Value = serde_json::from_str(&line?)?;
        if record["phase"] == "hold" {
            held = true;
            break;
        }
    }
    watch.kill()?;
    watch.wait()?;
    ensure!(
        held,
        "the migration ended before the destination held the container"
    );
    Ok(id)
}

fn is_in(host: &Host, migration: &str, phase: &str) -> Result<bool> {
    let record = host.tranship(&["--format", "json", "migrate", "status", migration])?;
    let record: Value = serde_json::from_str(&record)?;
    Ok(record["phase"] == phase)
}

fn relays(host: &Host) -> Result<Vec<String>> {
    let found = host.finish("sh", ["-c", RELAYS], SHORT)?;
    Ok(found.text().lines().map(str::to_owned).collect())
}

fn signal_daemon(host: &Host, name: &str) -> Result<()> {
    let pid = daemon::pid(host).context("the daemon does not run")?;
    signal(host, name, &pid.to_string())
}

fn signal(host: &Host, name: &str, pid: &str) -> Result<()> {
    host.run("kill", [format!("-{name}"), pid.to_owned()])?;
    Ok(())
}
