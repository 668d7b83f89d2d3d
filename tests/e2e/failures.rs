//! Checkpoints and restores that fail: the container goes on at the source, and its client's connection with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};

/// Exit code of a migration that failed and was rolled back.
const ROLLED_BACK: i32 = 5;

/// How a CRIU fails: at once, without a word.
const REFUSES: &str = "exit 1";
/// How a CRIU fails: killed in the middle of its work.
const DIES: &str = "\"$real\" \"$@\" & pid=$!; sleep 0.04; kill -KILL $pid; wait $pid";

#[test]
fn a_restore_that_fails_leaves_the_container_at_the_source() -> Result<()> {
    with_broken_criu("b", REFUSES)
}

#[test]
fn a_restore_that_is_killed_leaves_the_container_at_the_source() -> Result<()> {
    with_broken_criu("b", DIES)
}

#[test]
fn a_dump_that_fails_leaves_the_container_running() -> Result<()> {
    with_broken_criu("a", REFUSES)
}

#[test]
fn a_dump_that_is_killed_leaves_the_container_running() -> Result<()> {
    with_broken_criu("a", DIES)
}

fn with_broken_criu(broken: &str, failure: &str) -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    break_criu(scenario.host(broken)?, failure)?;
    let before = Inventory::take(scenario.bed()?)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    std::thread::sleep(Duration::from_millis(300));

    let failed = a.try_tranship(&["migrate", "redis", "b"])?;
    ensure!(
        failed.status.code() == Some(ROLLED_BACK),
        "exit code {:?}: {}",
        failed.status,
        failed.errors()
    );
    ensure!(!failed.errors().is_empty(), "nothing was said of the failure");
    ensure!(
        a.container("redis")?["state"] == "running",
        "it does not run at the source"
    );
    let there = b.try_tranship(&["inspect", "redis"])?;
    ensure!(
        !there.status.success(),
        "something of it is at the destination: {}",
        there.text()
    );
    std::thread::sleep(Duration::from_millis(300));
    counter.stop()?.checked()?;
    before.expect_unchanged(scenario.bed()?)?;

    // And once what was broken is mended, it moves.
    daemon::restart_with(scenario.host(broken)?, "")?;
    a.migrate("redis", "b")?;
    scenario.end()
}

/// Puts a program in CRIU's place that answers questions about itself, and fails as soon as it should work.
fn break_criu(host: &Host, failure: &str) -> Result<()> {
    let prefix = std::env::var("TRANSHIP_PREFIX").unwrap_or_else(|_| "/opt/tranship".to_owned());
    let wrapper = host.layout.disk(host.name()).join("criu-that-fails");
    let script = format!(
        "#!/bin/sh\nreal={prefix}/criu/sbin/criu\ncase \"$1\" in\nswrk) {failure} ;;\n*) exec \"$real\" \"$@\" ;;\nesac\n"
    );
    fs::write(&wrapper, script).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    daemon::restart_with(host, &format!("criu = \"{}\"", wrapper.display()))
}
