//! How memory leaves a host whose kernel or CRIU cannot move it live: by CRIU's pre-dumps, or while the container stands still,
//! whether that is known beforehand or turns out only when the dump is prepared; and everybody is told why.
//!
//! Kernels without soft-dirty pre-dump nothing, so `tests/e2e/memory_modes/soft_dirty.c` does for CRIU what the kernel would: a page is
//! written if its content is not what it was. All else is real: runc, CRIU's chain of images, their way, and the restore from them.
//!
//! The container knows what its pages must hold, and a client is connected to it all the time.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::command;
use tranship_tests::images;
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::stamps::Stamps;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// MiB, and those that are stamped each second: so that a round finds a part of it written, or all of it.
const SLOWLY: [&str; 2] = ["48", "40"];
const FAST: [&str; 2] = ["48", "2000"];
/// For what takes CRIU, a compiler or a narrow link some time.
const PATIENCE: Duration = Duration::from_secs(60);

const NOT_TOUCHED: i32 = 1;
const ROLLED_BACK: i32 = 5;
const CANCELLED: i32 = 7;
const TIMED_OUT: i32 = 8;

/// The configuration's reason.
const ASKED: &str = "the configuration asks for it";

/// What is said of it.
const WHY: &str = "stop and copy: CRIU does not load the library that hides memory from it, and CRIU finds no soft-dirty pages in \
                   this kernel";
/// What is said where it turns out late.
const LATE: &str = "stop and copy: CRIU does not load the library that hides memory from it";

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
    let stamps = Stamps::run(a, client, &[], SLOWLY)?;
    wrap_criu(a, NEVER, "")?;
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
    stamps.check(a)?;
    unwrap_criu(a)?;
    scenario.end()
}

#[test]
fn a_criu_that_turns_out_not_to_load_the_library_takes_the_memory_along() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], SLOWLY)?;
    wrap_criu(a, NOT_AT_WORK, "")?;
    ensure!(mode_of(a)? == "live", "info says {}", mode_of(a)?);

    // It fails as it would have otherwise, and leaves nothing.
    wrap_criu(b, NO_RESTORE, "")?;
    let before = Inventory::take(scenario.bed()?)?;
    let failed = a.try_tranship(&["--format", "json", "migrate", "stamps", "b"])?;
    ensure!(failed.status.code() == Some(ROLLED_BACK), "{failed:?}");
    let record: Value = serde_json::from_str(&failed.text())?;
    ensure!(record["memory_mode"] == LATE, "the record: {record:#}");
    stamps.expect_right(a)?;
    before.expect_unchanged_but(scenario.bed()?, |line| {
        line.contains("/overlay/layers/") || (line.starts_with("gone") && line.contains("/overlay/staging/"))
    })?;
    unwrap_criu(b)?;

    let moved = a.tranship_json(&["migrate", "stamps", "b"])?;
    ensure!(moved["memory_mode"] == LATE, "the record: {moved:#}");
    ensure!(
        rounds(&moved) > 0,
        "it was known before anything was sent: {moved:#}"
    );
    let log = fs::read_to_string(a.layout.log("a"))?;
    let told = |line: &str| line.contains("WARN") && line.contains(LATE);
    ensure!(log.lines().any(told), "the log of a does not say it");
    stamps.expect_right(b)?;
    let listed = a.tranship(&["--format", "json", "migrate", "ls"])?;
    ensure!(
        listed.lines().last().is_some_and(|line| line.contains(LATE)),
        "{listed}"
    );
    // Nobody follows its memory any more, so it can be followed again.
    let back = b.tranship_json(&["migrate", "stamps", "a"])?;
    ensure!(back["memory_mode"] == "live", "the way back: {back:#}");
    stamps.check(a)?;
    unwrap_criu(a)?;
    scenario.end()
}

#[test]
fn memory_moves_by_pre_dumps_where_that_is_asked_for() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], SLOWLY)?;
    let asked = "migrate.memory = \"pre-dump\"";
    daemon::restart_with(a, asked)?;
    let mode = mode_of(a)?;
    ensure!(
        mode == format!("stop and copy: {ASKED}, and CRIU finds no soft-dirty pages in this kernel"),
        "{mode}"
    );
    believe_in_soft_dirty(a, asked, "")?;
    let mode = format!("pre-dump: {ASKED}");
    ensure!(mode_of(a)? == mode, "info says {}", mode_of(a)?);
    let check = a.tranship_json(&["migrate", "stamps", "b", "--check"])?;
    ensure!(check["memory_mode"] == *mode, "the check: {check:#}");
    let warnings = check["warnings"].to_string();
    ensure!(
        warnings.contains("pre-dump: each round"),
        "the check warns of {warnings}"
    );

    for _ in 0..2 {
        let moved = a.tranship_json(&["migrate", "stamps", "b"])?;
        ensure!(moved["memory_mode"] == *mode, "the record: {moved:#}");
        // What a later round does not hold, the restore reads from the one before it.
        let [first, second] = [0, 1].map(|round| moved["rounds"][round]["bytes"].as_u64().unwrap_or(0));
        ensure!(
            second > 0 && second < first / 2,
            "rounds of {first} and {second} bytes"
        );
        let last = images_bytes(&moved);
        ensure!(
            last > 0 && last < first / 2,
            "{last} bytes after rounds of {first} and {second}"
        );
        let trees = moved["trees"].to_string();
        ensure!(trees.contains("round:0") && trees.contains("round:1"), "{trees}");
        stamps.expect_right(b)?;
        let back = b.tranship_json(&["migrate", "stamps", "a"])?;
        ensure!(back["memory_mode"] == "live", "the way back: {back:#}");
        stamps.expect_right(a)?;
    }
    stamps.check(a)?;
    disbelieve(a)?;
    scenario.end()
}

#[test]
fn pre_dumps_that_come_to_nothing_leave_the_container_and_nothing_else() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], FAST)?;
    let asked = "migrate.memory = \"pre-dump\"";
    believe_in_soft_dirty(a, asked, "")?;
    let bed = scenario.bed()?;
    let ends = |what: &str, options: &[&str], code: i32| -> Result<String> {
        let ended = a.try_tranship(&[&["migrate", "stamps", "b"], options].concat())?;
        let told = ended.errors();
        ensure!(
            ended.status.code() == Some(code),
            "{what}: {} {told}",
            ended.status
        );
        stamps.expect_right(a).with_context(|| what.to_owned())?;
        Ok(told)
    };
    // The image's layers come with the first, and stay.
    ends("it is too long", &["--max-downtime", "200ms"], TIMED_OUT)?;
    let before = Inventory::take(bed)?;
    let told = ends("it cannot be so short", &["--max-downtime", "50ms"], NOT_TOUCHED)?;
    ensure!(told.contains("with nothing left to send"), "{told}");
    before.expect_unchanged(bed)?;
    ends("it is too long again", &["--max-downtime", "200ms"], TIMED_OUT)?;
    before.expect_unchanged(bed)?;

    bed.set_rate("b", "16mbit")?;
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| a.try_tranship(&["migrate", "stamps", "b"]));
        let mut id = String::new();
        wait_for("the first round to be sent", PATIENCE, || {
            let text = a.tranship(&["--format", "json", "migrate", "ls"])?;
            let record: Value = serde_json::from_str(text.lines().last().unwrap_or("null"))?;
            id = record["id"].as_str().unwrap_or_default().to_owned();
            Ok(record["outcome"] == "running"
                && a.path("/run/tranship/migrations")
                    .join(&id)
                    .join("round-0")
                    .is_dir())
        })?;
        a.tranship(&["migrate", "cancel", &id])?;
        let ended = moving.join().ok().context("the move panicked")??;
        ensure!(ended.status.code() == Some(CANCELLED), "{ended:?}");
        Ok(())
    })?;
    bed.set_rate("b", "unlimited")?;
    stamps.expect_right(a)?;
    before.expect_unchanged(bed)?;

    wrap_criu(b, NO_RESTORE, "")?;
    let broken = Inventory::take(bed)?;
    ends("it cannot be restored", &[], ROLLED_BACK)?;
    broken.expect_unchanged(bed)?;
    unwrap_criu(b)?;
    // CRIU's own fault at the pages.
    believe_in_soft_dirty(a, asked, "[ \"$1\" != swrk ] || export CRIU_FAULT=3;")?;
    let broken = Inventory::take(bed)?;
    ends("CRIU cannot write a round", &[], NOT_TOUCHED)?;
    broken.expect_unchanged(bed)?;
    believe_in_soft_dirty(a, asked, "")?;
    a.migrate("stamps", "b")?;
    stamps.check(b)?;
    disbelieve(a)?;
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

fn images_bytes(record: &Value) -> u64 {
    let trees = record["trees"].as_array().into_iter().flatten();
    let images = trees.filter(|tree| tree["tree"] == "images");
    images.filter_map(|tree| tree["bytes"].as_u64()).sum()
}

/// Puts a script in CRIU's place.
fn wrap_criu(host: &Host, script: &str, more: &str) -> Result<()> {
    let prefix = std::env::var("TRANSHIP_PREFIX").unwrap_or_else(|_| "/opt/tranship".to_owned());
    let wrapper = wrapper(host);
    let text = format!("#!/bin/sh\nreal={prefix}/criu/sbin/criu\n{script}\n");
    fs::write(&wrapper, text).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    daemon::restart_with(host, &format!("criu = \"{}\"\n{more}", wrapper.display()))
}

/// Has CRIU find written pages marked, as in a kernel that does so. `more` is configuration, `before` goes before CRIU.
fn believe_in_soft_dirty(host: &Host, more: &str, before: &str) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/memory_modes/soft_dirty.c");
    let library = library(host);
    let mut compiler = command::command("cc", ["-O2", "-shared", "-fPIC", "-o"]);
    command::succeed(compiler.arg(&library).arg(source), PATIENCE)?;
    forget_the_kernel(host)?;
    let sums = sums(host);
    fs::create_dir_all(&sums).with_context(|| format!("cannot make {}", sums.display()))?;
    let preload = format!(
        "export SOFT_DIRTY={} LD_PRELOAD={}${{LD_PRELOAD:+:$LD_PRELOAD}}",
        sums.display(),
        library.display()
    );
    wrap_criu(host, &format!("{before} {preload}; exec \"$real\" \"$@\""), more)
}

fn disbelieve(host: &Host) -> Result<()> {
    unwrap_criu(host)?;
    fs::remove_file(library(host)).context("cannot remove the library")?;
    fs::remove_dir_all(sums(host)).context("cannot remove the sums of pages")?;
    forget_the_kernel(host)
}

/// What CRIU has found out about the kernel, and remembers.
fn forget_the_kernel(host: &Host) -> Result<()> {
    match fs::remove_file(host.path("/run/criu.kdat")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).context("cannot remove criu.kdat")
        }
        _ => Ok(()),
    }
}

fn library(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("soft-dirty.so")
}

/// Beside the host's disk, where nobody takes stock.
fn sums(host: &Host) -> PathBuf {
    let name = format!("soft-dirty-{}", host.name());
    host.layout.disks().join(name)
}

fn unwrap_criu(host: &Host) -> Result<()> {
    daemon::restart_with(host, "")?;
    fs::remove_file(wrapper(host)).context("cannot remove the script")
}

fn wrapper(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("criu-in-a-script")
}
