//! Stops a migration from a to b at the edge of its commit: no daemon is as fast as a test would have to be to hit that.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::counter::Counter;
use crate::faults;
use crate::owner::the_one_that_runs;
use crate::testbed::{Host, daemon};
use crate::tranship::wait_for;

/// How often a migration is begun that went on too far.
const ATTEMPTS: usize = 5;

/// For a client to be answered some times.
const A_WHILE: Duration = Duration::from_secs(1);

/// From one phase to the next, in daemons that nothing holds up.
const SHORT: Duration = Duration::from_secs(5);

/// Moves a container to b until that restores it, and answers the migration's id.
fn migrate_to_hold(a: &Host, container: &str) -> Result<String> {
    let id = a.tranship(&["migrate", "--detach", container, "b"])?;
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

/// Moves a container from a to b until that is ready for it. The source's daemon is stopped then, and so has not committed. Between the
/// sight of the phase and the stop there are some milliseconds: what was over by then is moved back, and tried again.
///
/// # Errors
/// The source was never stopped in time.
pub fn migrate_to_ready(a: &Host, b: &Host, container: &str) -> Result<String> {
    for _ in 0..ATTEMPTS {
        let id = migrate_to_hold(a, container)?;
        signal_daemon(a, "STOP")?;
        let ready = wait_for("the destination to be ready", SHORT, || is_in(b, &id, "commit"));
        let Err(error) = ready else {
            return Ok(id);
        };
        eprintln!("stopped too late: {error:#}");
        signal_daemon(a, "CONT")?;
        if the_one_that_runs(container, a, b)?.name() == b.name() {
            b.migrate(container, a.name())?;
        }
    }
    bail!("the source was always faster than its stop");
}

/// Whether a host's record of a migration is in this phase.
///
/// # Errors
/// Its daemon does not answer.
pub fn is_in(host: &Host, migration: &str, phase: &str) -> Result<bool> {
    let record = host.tranship(&["--format", "json", "migrate", "status", migration])?;
    let record: Value = serde_json::from_str(&record)?;
    Ok(record["phase"] == phase)
}

/// Signals a host's daemon.
///
/// # Errors
/// It does not run.
pub fn signal_daemon(host: &Host, name: &str) -> Result<()> {
    let pid = daemon::pid(host).context("the daemon does not run")?;
    signal(host, name, &pid.to_string())
}

/// Signals a process by the number it has on its host.
///
/// # Errors
/// It is not there.
pub fn signal(host: &Host, name: &str, pid: &str) -> Result<()> {
    host.run("kill", [format!("-{name}"), pid.to_owned()])?;
    Ok(())
}

/// The source hears here that the destination is ready; the next thing it does is to commit.
pub const READY: &str = "source:receive-ready";

/// Moves a container from a to b, whose daemons obey plans, until b is ready and has said so. The source is held before it hears that.
/// Answers the migration's id.
///
/// # Errors
/// It does not come there.
pub fn hold_at_ready(a: &Host, container: &str) -> Result<String> {
    faults::plan(a, &format!("{READY} hold"))?;
    let id = a.tranship(&["migrate", "--detach", container, "b"])?;
    faults::wait_held(a, READY)?;
    Ok(id)
}

/// A container's state on a host; `none` where nothing of it is there.
///
/// # Errors
/// The daemon does not answer.
pub fn state(host: &Host, container: &str) -> Result<String> {
    let found = host.try_tranship(&["inspect", container])?;
    if !found.status.success() {
        return Ok("none".to_owned());
    }
    let state = &host.container(container)?["state"];
    Ok(state.as_str().unwrap_or_default().to_owned())
}

/// Ends a client's counting after it was answered some times more, and checks that nothing was lost or repeated, on the host that is
/// the only one to run the container and must be `owner`.
///
/// # Errors
/// It is on another host, or an answer was wrong.
pub fn counted_on(owner: &str, hosts: [&Host; 2], counter: Counter) -> Result<()> {
    let runs = the_one_that_runs("redis", hosts[0], hosts[1])?;
    ensure!(runs.name() == owner, "it is on {}", runs.name());
    sleep(A_WHILE);
    let counted = counter.stop()?.checked()?;
    eprintln!("the client waited {} ms", counted.longest_stall_us() / 1000);
    Ok(())
}
