//! Memory that is filled in behind a container: one that cannot be completed ends the container, and a second move waits.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::images::{self, QUESTION_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// Enough that filling takes a while.
const MIB: &str = "1024";

const PATIENCE: Duration = Duration::from_secs(60);

/// From the filler's end to the container's.
const KILLED: Duration = Duration::from_secs(5);

fn run(host: &Host, client: &Host) -> Result<()> {
    let port = QUESTION_PORT.to_string();
    let job = ["generations", "--mib", MIB, "--mib-per-s", "100", "--port", &port];
    images::run_workload(host, "stamps", &job)?;
    images::ask_workload(client, host.address_of("stamps", QUESTION_PORT)?, PATIENCE).map(drop)
}

/// The filler of a container of this host, as the host numbers its processes, if one is at work.
fn filler(host: &Host, container: &str) -> Option<i32> {
    let mark = Path::new("/run/tranship/containers")
        .join(container)
        .join("filling");
    let text = fs::read(host.path(mark)).ok()?;
    let mark: Value = serde_json::from_slice(&text).ok()?;
    i32::try_from(mark["pid"].as_i64()?).ok()
}

/// Moves the container from `a` to `b` and kills its filler as soon as the source hears that it runs.
fn kill_when_it_runs(a: &Host, b: &Host, container: &str) -> Result<()> {
    let migration = a.tranship(&["migrate", "--detach", "stamps", "b"])?;
    let mut watch = daemon::cli(a, &["--format", "json", "migrate", "watch", &migration])?;
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let lines = BufReader::new(watch.stdout.take().context("the output is a pipe")?);
    let mut killed = false;
    for line in lines.lines() {
        let record: Value = serde_json::from_str(&line?)?;
        if record["phase"] == "clean" && !killed {
            let pid =
                filler(b, container).context("its memory was complete before the filler could be killed")?;
            b.run("kill", ["-KILL".to_owned(), pid.to_string()])?;
            killed = true;
        }
    }
    watch.wait()?;
    ensure!(killed, "nobody was told that the container runs");
    Ok(())
}

#[test]
fn a_container_whose_filler_dies_is_killed_and_never_runs_on_zeros() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    run(a, client)?;
    let id = a.container("stamps")?["id"].as_str().context("an id")?.to_owned();
    kill_when_it_runs(a, b, &id)?;
    wait_for("the container to end", KILLED, || {
        Ok(b.container("stamps")?["state"] == "exited")
    })?;
    let ended = b.container("stamps")?;
    ensure!(ended["memory_lost"] == true, "nobody is told why: {ended}");
    ensure!(ended["exit_code"] == 137, "{ended}");
    let log = b.try_tranship(&["logs", "stamps"])?;
    let log = format!("{}{}", log.text(), log.errors());
    ensure!(
        !log.contains("WRONG"),
        "it ran on pages that were not its own: {log}"
    );
    scenario.end()
}

#[test]
fn a_second_move_waits_until_the_memory_of_the_first_is_there() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    run(a, client)?;
    let address = a.address_of("stamps", QUESTION_PORT)?;
    for (from, to) in [(a, b), (b, a), (a, b)] {
        from.migrate("stamps", to.name())?;
    }
    images::ask_workload(client, address, PATIENCE)
        .with_context(|| format!("{:?}", b.try_tranship(&["logs", "stamps"]).map(|log| log.text())))?;
    scenario.end()
}
