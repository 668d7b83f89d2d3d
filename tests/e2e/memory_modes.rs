//! How memory leaves a host whose CRIU cannot leave it out of its images: the move is a stop and copy by itself, whether that
//! is known beforehand or turns out only when the dump is prepared, and everybody is told why.
//!
//! The container knows what its pages must hold, and a client is connected to it all the time.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::images;
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::stamps::Stamps;
use tranship_tests::testbed::{Host, daemon};

/// MiB, and those that are stamped each second.
const MEMORY: [&str; 2] = ["48", "40"];

const ROLLED_BACK: i32 = 5;

/// What is said of it.
const WHY: &str = "stop and copy: CRIU does not load the library that hides memory from it";

/// As where LD_PRELOAD is forbidden: CRIU never loads the library.
const NEVER: &str = "unset LD_PRELOAD; exec \"$real\" \"$@\"";
/// It loads the library when it is asked what it is, and not when it works.
const NOT_AT_WORK: &str = "[ \"$1\" != swrk ] || unset LD_PRELOAD; exec \"$real\" \"$@\"";
/// A restore fails when everything is restored.
const NO_RESTORE: &str = "[ \"$1\" != swrk ] || export CRIU_FAULT=6; exec \"$real\" \"$@\"";

#[test]
fn a_criu_that_does_not_load_the_library_is_known_beforehand() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], MEMORY)?;
    wrap_criu(a, NEVER)?;
    ensure!(mode_of(a)? == WHY, "info says {}", mode_of(a)?);
    ensure!(mode_of(b)? == "live", "info on b says {}", mode_of(b)?);
    let check = a.tranship_json(&["migrate", "stamps", "b", "--check"])?;
    ensure!(check["memory_mode"] == WHY, "the check: {check:#}");
    let warnings = check["warnings"].to_string();
    ensure!(
        warnings.contains("stop and copy: the container stands still")
            && warnings.contains("does not load the library"),
        "the check warns of {warnings}"
    );

    let moved = a.tranship_json(&["migrate", "stamps", "b"])?;
    ensure!(moved["memory_mode"] == WHY, "the record: {moved:#}");
    ensure!(rounds(&moved) == 0, "it sent memory in rounds: {moved:#}");
    stamps.expect_right(b)?;
    // It is the source's CRIU that matters.
    let back = b.tranship_json(&["migrate", "stamps", "a"])?;
    ensure!(back["memory_mode"] == "live", "the way back: {back:#}");
    stamps.expect_right(a)?;
    stamps.check(a)?;
    unwrap_criu(a)?;
    scenario.end()
}

#[test]
fn a_criu_that_turns_out_not_to_load_the_library_takes_the_memory_along() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], MEMORY)?;
    wrap_criu(a, NOT_AT_WORK)?;
    ensure!(mode_of(a)? == "live", "info says {}", mode_of(a)?);

    // It fails as it would have otherwise, and leaves nothing.
    wrap_criu(b, NO_RESTORE)?;
    let before = Inventory::take(scenario.bed()?)?;
    let failed = a.try_tranship(&["--format", "json", "migrate", "stamps", "b"])?;
    ensure!(failed.status.code() == Some(ROLLED_BACK), "{failed:?}");
    let record: Value = serde_json::from_str(&failed.text())?;
    ensure!(record["memory_mode"] == WHY, "the record: {record:#}");
    stamps.expect_right(a)?;
    before.expect_unchanged_but(scenario.bed()?, |line| {
        line.contains("/overlay/layers/") || (line.starts_with("gone") && line.contains("/overlay/staging/"))
    })?;
    unwrap_criu(b)?;

    let moved = a.tranship_json(&["migrate", "stamps", "b"])?;
    ensure!(moved["memory_mode"] == WHY, "the record: {moved:#}");
    ensure!(
        rounds(&moved) > 0,
        "it was known before anything was sent: {moved:#}"
    );
    let log = fs::read_to_string(a.layout.log("a"))?;
    let told = |line: &str| line.contains("WARN") && line.contains(WHY);
    ensure!(log.lines().any(told), "the log of a does not say it");
    stamps.expect_right(b)?;
    let listed = a.tranship(&["--format", "json", "migrate", "ls"])?;
    ensure!(
        listed.lines().last().is_some_and(|line| line.contains(WHY)),
        "{listed}"
    );
    // Nobody follows its memory any more, so it can be followed again.
    let back = b.tranship_json(&["migrate", "stamps", "a"])?;
    ensure!(back["memory_mode"] == "live", "the way back: {back:#}");
    stamps.expect_right(a)?;
    stamps.check(a)?;
    unwrap_criu(a)?;
    scenario.end()
}

fn mode_of(host: &Host) -> Result<String> {
    let info = host.tranship_json(&["info"])?;
    let mode = info["memory_mode"].as_str();
    Ok(mode.context("info says how memory moves")?.to_owned())
}

fn rounds(record: &Value) -> usize {
    record["rounds"].as_array().map_or(0, Vec::len)
}

/// Puts a script in CRIU's place.
fn wrap_criu(host: &Host, script: &str) -> Result<()> {
    let prefix = std::env::var("TRANSHIP_PREFIX").unwrap_or_else(|_| "/opt/tranship".to_owned());
    let wrapper = wrapper(host);
    let text = format!("#!/bin/sh\nreal={prefix}/criu/sbin/criu\n{script}\n");
    fs::write(&wrapper, text).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    daemon::restart_with(host, &format!("criu = \"{}\"", wrapper.display()))
}

fn unwrap_criu(host: &Host) -> Result<()> {
    daemon::restart_with(host, "")?;
    fs::remove_file(wrapper(host)).context("cannot remove the script")
}

fn wrapper(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("criu-in-a-script")
}
