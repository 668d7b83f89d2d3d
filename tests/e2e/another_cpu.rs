//! The destination's CPU lacks something that the container may use, and the preflight has not found that: another machine may have
//! answered it, or the host may have been moved to another one since. It is found at the reservation, and once more at the restore.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tranship_tests::better_cpu::describe;
use tranship_tests::broken_criu::real_criu;
use tranship_tests::counter::Counter;
use tranship_tests::faults;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};

const NOT_TOUCHED: i32 = 1;
const ROLLED_BACK: i32 = 5;

/// Between two migrations, so that each finds a client at work.
const COUNT: Duration = Duration::from_millis(200);

/// All has arrived and nothing of it is restored.
const BEFORE_THE_RESTORE: &str = "destination:restore-held";

#[test]
fn a_cpu_that_lacks_something_is_found_also_when_the_preflight_did_not_find_it() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client, bed) = (
        scenario.host("a")?,
        scenario.host("b")?,
        scenario.host("client")?,
        scenario.bed()?,
    );
    images::run_redis_with(a, "redis", "data", client, &["--appendfsync", "always"])?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    let better = b.layout.disk("b").join("cpuinfo.img");
    describe(b, &better)?;

    let criu = criu_of_a_host_that_is_moved(b, &better)?;
    let before = Inventory::take(bed)?;
    sleep(COUNT);
    let failed = migrate(a)?.wait_with_output()?;
    is_told(&failed, NOT_TOUCHED, &["reserve failed", "CPU lacks"])?;
    stays(a, b)?;
    before.expect_unchanged(bed)?;
    daemon::set_lines(b, "")?;
    fs::remove_dir_all(criu)?;

    faults::arm(&[b])?;
    let before = Inventory::take(bed)?;
    faults::plan(b, &format!("{BEFORE_THE_RESTORE} hold"))?;
    let migrating = migrate(a)?;
    faults::wait_held(b, BEFORE_THE_RESTORE)?;
    let images = images_of_the_last_migration(b)?;
    let image = images.join("cpuinfo.img");
    ensure!(image.exists(), "the images do not say what CPU they are from");
    fs::copy(&better, image)?;
    faults::let_go(b, BEFORE_THE_RESTORE)?;
    is_told(
        &migrating.wait_with_output()?,
        ROLLED_BACK,
        &["hold failed", "xfeatures has unsupported bits"],
    )?;
    stays(a, b)?;
    before.expect_unchanged_but(bed, |line| {
        line.contains("/overlay/layers/") || (line.starts_with("gone") && line.contains("/overlay/staging/"))
    })?;
    faults::disarm(&[b])?;

    fs::remove_file(better)?;
    a.migrate("redis", "b").context("to a CPU that lacks nothing")?;
    sleep(COUNT);
    counter.stop()?.checked()?;
    scenario.end()
}

/// From its daemon's next start on a host's CRIU finds the first CPU that it is shown good enough, and any later one better. Answers what
/// there is to be removed.
fn criu_of_a_host_that_is_moved(host: &Host, better: &Path) -> Result<PathBuf> {
    let directory = host.layout.disk(host.name()).join("moved");
    fs::create_dir(&directory)?;
    let (asked, wrapper) = (directory.join("asked"), directory.join("criu"));
    fs::write(&asked, "")?;
    let script = format!(
        "#!/bin/sh\nif [ \"$1 $2\" = 'cpuinfo check' ]; then\n[ ! -s {asked:?} ] || cp {better:?} \"$4\"\necho >{asked:?}\nfi\nexec {} \"$@\"\n",
        real_criu()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    daemon::set_lines(host, &format!("criu = {wrapper:?}"))?;
    daemon::stop(host)?;
    daemon::start(host)?;
    Ok(directory)
}

fn migrate(a: &Host) -> Result<std::process::Child> {
    let mut migrate = daemon::cli(a, &["migrate", "redis", "b"])?;
    Ok(migrate.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

fn is_told(failed: &Output, exit_code: i32, words: &[&str]) -> Result<()> {
    let told = String::from_utf8_lossy(&failed.stderr);
    ensure!(
        failed.status.code() == Some(exit_code),
        "{} instead of {exit_code}: {told}",
        failed.status
    );
    for word in words.iter().chain(&["redis runs at a"]) {
        ensure!(told.contains(word), "{word:?} is not told: {told}");
    }
    Ok(())
}

fn stays(a: &Host, b: &Host) -> Result<()> {
    ensure!(
        a.container("redis")?["state"] == "running",
        "it does not run at the source"
    );
    let there = b.try_tranship(&["inspect", "redis"])?;
    ensure!(!there.status.success(), "something is at b: {}", there.text());
    Ok(())
}

fn images_of_the_last_migration(host: &Host) -> Result<PathBuf> {
    let list = host.tranship(&["--format", "json", "migrate", "ls"])?;
    let newest: Value = serde_json::from_str(list.lines().last().context("there is a migration")?)?;
    let id = newest["id"].as_str().context("a migration has an id")?;
    Ok(host.path(Path::new("/run/tranship/migrations").join(id).join("images")))
}
