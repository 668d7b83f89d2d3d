//! Locks on files move with who holds them: nobody else gets them at the destination, until they are let go.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::images;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;
use tranship_tests::tranship::wait_for;
use tranship_tests::workload::locks;

/// A volume, and a directory of the writable layer.
const DIRECTORIES: [&str; 2] = ["/locks", "/tmp"];
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn locks_of_every_kind_are_held_through_a_move_there_and_back() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    let run = [
        "run",
        "-d",
        "--name",
        "keeper",
        "-v",
        "locks:/locks",
        images::WORKLOAD,
        images::WORKLOAD,
    ];
    let job = ["hold-locks", DIRECTORIES[0], DIRECTORIES[1]];
    a.tranship(&[&run[..], &job[..]].concat())?;
    wait_for("the locks to be held", PATIENCE, || has(a, "/locks/held"))?;
    everybody_else(a, "refused")?;
    for (from, to) in [(a, b), (b, a)] {
        from.migrate("keeper", to.name())?;
        everybody_else(to, "refused")?;
    }
    let release = format!("/locks/{}", locks::RELEASE);
    a.exec("keeper", &[images::WORKLOAD, "touch", &release])?;
    wait_for("the locks to be let go", PATIENCE, || {
        Ok(everybody_else(a, "got").is_ok())
    })?;
    scenario.end()
}

/// What another process of the container is told that wants each of the locks.
fn everybody_else(host: &Host, told: &str) -> Result<()> {
    for directory in DIRECTORIES {
        for kind in locks::KINDS {
            let path = locks::path(Path::new(directory), kind);
            let path = path.to_string_lossy();
            let said = host.exec("keeper", &[images::WORKLOAD, "try-lock", kind, &path])?;
            ensure!(
                said == told,
                "on {} the lock {path} is {said}, not {told}",
                host.name()
            );
        }
    }
    Ok(())
}

fn has(host: &Host, path: &str) -> Result<bool> {
    let tried = host.try_tranship(&["exec", "keeper", images::WORKLOAD, "exists", path])?;
    Ok(tried.status.success())
}
