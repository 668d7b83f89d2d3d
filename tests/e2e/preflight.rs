//! What is in the way of a move is told before anything is touched, every reason at once; the exit codes of `migrate`.
//!
//! Every reason is made real on the hosts; the better CPU is one of which CRIU says so. Two cannot be: a missing storage driver (there is
//! one driver) and another architecture (there is one machine); those are cases of the unit test beside the reasons.

use std::fs::{self, File, Permissions};
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::fs::FallocateFlags;
use serde_json::Value;
use tranship_tests::better_cpu::describe;
use tranship_tests::broken_criu::real_criu;
use tranship_tests::command::Finished;
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, PoolKind, daemon, layout};
use tranship_tests::tranship::wait_for;

const USAGE: i32 = 2;
const NO_SUCH_OBJECT: i32 = 3;
const REFUSED: i32 = 4;
const CANCELLED: i32 = 7;

/// A client of a container that nobody touches waits no longer than this, on a machine with other things to do.
const UNTOUCHED: Duration = Duration::from_secs(1);

/// More than half of a pool's loop image, so that two of them do not fit into one. Nothing is written.
const BULK_BYTES: u64 = 10 << 30;

/// The command of containers that only have to be there.
const SLEEP: [&str; 3] = ["busybox", "sleep", "86400"];

#[test]
fn every_reason_is_told_before_anything_is_touched() -> Result<()> {
    // Loop pools, whose room can be taken up without writing; a third host to play another machine.
    let options = Options {
        hosts: 3,
        pool: PoolKind::Xfs,
        ..Options::default()
    };
    let scenario = Scenario::begin_with(&options, &["redis", "busybox"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::import(b, "busybox")?;
    // The address that the Redis gets on a; later it would not be given away on b.
    let (first, _) = layout::container_range("a", options.hosts).context("a has addresses")?;
    run(
        b,
        &["--name", "redis", "--network", "l2", "--ip", &first.to_string()],
    )?;
    b.tranship(&["kill", "redis"])?;
    b.tranship(&["wait", "redis"])?;
    b.tranship(&["volume", "create", "data"])?;
    images::run_redis(a, "redis", "data", client)?;
    let address = a.address_of("redis", REDIS_PORT)?;
    ensure!(address.ip() == first, "redis has {address}, not {first}");
    let counter = Counter::start(client, address, "visits")?;

    what_is_in_use(a, b, first)?;
    let before = Inventory::take(scenario.bed()?)?;
    fits(a, "redis")?;
    who_is_not_there(&scenario)?;
    what_b_cannot_do(a, b)?;
    another_machine(&scenario)?;
    a_better_cpu(a, b)?;
    what_does_not_run(a)?;
    fits(a, "redis")?;

    let report = counter.stop()?.checked()?;
    let stall = Duration::from_micros(report.longest_stall_us());
    ensure!(stall < UNTOUCHED, "the client waited {stall:?} for an answer");
    before.expect_unchanged(scenario.bed()?)?;
    a.migrate("redis", "b").context("with nothing in the way")?;
    scenario.end()
}

/// Name, address and volume of the Redis are somebody's on b.
fn what_is_in_use(a: &Host, b: &Host, address: Ipv4Addr) -> Result<()> {
    let taken = format!("address {address} is in use at b, by container redis");
    let reasons = [
        "a container named \"redis\" is on b",
        &taken,
        "a volume named \"data\" is on b",
    ];
    refused(a, "redis", "b", &reasons)?;
    b.tranship(&["rm", "redis"])?;
    refused(a, "redis", "b", &reasons[2..])?;
    b.tranship(&["volume", "rm", "data"])?;
    Ok(())
}

fn who_is_not_there(scenario: &Scenario) -> Result<()> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    refused(a, "redis", "nowhere", &["there is no host \"nowhere\""])?;
    refused(a, "redis", "a", &["the container is on a already"])?;
    daemon::stop(b)?;
    refused(a, "redis", "b", &["b cannot be reached"])?;
    daemon::start(b)?;
    bed.set_link("b", false)?;
    // It takes seconds to be sure that a host does not answer: time to make something that is too large for it.
    let ballast = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| refused(a, "redis", "b", &["b cannot be reached"]));
        let ballast = fill(a, b)?;
        waiting.join().ok().context("the question panicked")??;
        Ok::<_, anyhow::Error>(ballast)
    })?;
    bed.set_link("b", true)?;
    wait_for("b to be reached again", Duration::from_secs(10), || {
        fits(a, "redis").map(|()| true)
    })?;
    too_large(a, &ballast)
}

/// Programs from long ago, and another network than the Redis is on.
fn what_b_cannot_do(a: &Host, b: &Host) -> Result<()> {
    let config = b.layout.config("b");
    let text = fs::read_to_string(&config)?;
    let criu = old_program(b, "criu", "Version: 3.17.1")?;
    let runc = old_program(b, "runc", "runc version 1.0.0~rc93")?;
    let old = format!(
        "criu = {criu:?}\nrunc = {runc:?}\ndefault_network = \"other\"\n{}",
        text.replace("[network.l2]", "[network.other]")
    );
    reconfigure(b, &old)?;
    let reasons = [
        "CRIU does not work on b",
        "criu-of-old is version 3.17.1; 4.1.1 or later is needed",
        "runc does not work on b",
        "runc-of-old is version 1.0.0; 1.1.0 or later is needed",
        "b has no network \"l2\"",
    ];
    told(a, "redis", "b", 3, &reasons)?;
    reconfigure(b, &text)?;
    fs::remove_file(criu)?;
    fs::remove_file(runc)?;
    Ok(())
}

/// A third machine has taken the address of a container that still runs.
fn another_machine(scenario: &Scenario) -> Result<()> {
    let (a, c) = (scenario.host("a")?, scenario.host("c")?);
    run(a, &["--name", "twin", "--network", "l2", "--ip", "10.77.0.60"])?;
    fits(a, "twin")?;
    c.run("ip", ["address", "add", "10.77.0.60/32", "dev", "br0"])?;
    refused(a, "twin", "b", &["address 10.77.0.60 is in use at b, by "])?;
    c.run("ip", ["address", "del", "10.77.0.60/32", "dev", "br0"])?;
    fits(a, "twin")?;
    a.tranship(&["rm", "-f", "twin"])?;
    Ok(())
}

/// The source's CPU can save more of a process than the destination's can load.
fn a_better_cpu(a: &Host, b: &Host) -> Result<()> {
    let criu = real_criu();
    let image = a.layout.disk("a").join("cpuinfo.img");
    describe(b, &image)?;
    let script =
        format!("#!/bin/sh\n{criu} \"$@\" || exit\n[ \"$1 $2\" != 'cpuinfo dump' ] || cp {image:?} \"$4\"\n");
    let config = a.layout.config("a");
    let text = fs::read_to_string(&config)?;
    let better = executable(a, "criu-of-a-better-cpu", &script)?;
    reconfigure(a, &format!("criu = {better:?}\n{text}"))?;
    refused(
        a,
        "redis",
        "b",
        &["the CPU of b lacks features the container may use: "],
    )?;
    reconfigure(a, &text)?;
    fs::remove_file(better)?;
    fs::remove_file(image)?;
    fits(a, "redis")
}

fn what_does_not_run(a: &Host) -> Result<()> {
    run(a, &["--name", "still", "--network", "none"])?;
    let reasons = ["container still is not running", "there is no host \"nowhere\""];
    a.tranship(&["pause", "still"])?;
    refused(a, "still", "b", &reasons[..1])?;
    a.tranship(&["unpause", "still"])?;
    a.tranship(&["kill", "still"])?;
    a.tranship(&["wait", "still"])?;
    refused(a, "still", "nowhere", &reasons)?;
    a.tranship(&["rm", "still"])?;
    Ok(())
}

/// Makes a container with more files and more memory than b has room for; answers what takes up the room there.
fn fill(a: &Host, b: &Host) -> Result<PathBuf> {
    run(
        a,
        &[
            "--name",
            "large",
            "--network",
            "none",
            "-v",
            "bulk:/bulk",
            "--tmpfs",
            "/memory",
        ],
    )?;
    let volume = a.tranship_json(&["volume", "inspect", "bulk"])?;
    let volume = volume["mountpoint"]
        .as_str()
        .context("a volume has a mountpoint")?;
    occupy(&a.path(volume).join("file"))?;
    let ballast = b.path(b.layout.pool("b")).join("ballast");
    occupy(&ballast)?;
    // It would be needed twice: as images and as memory.
    let bytes = available_memory()? * 2 / 5;
    a.exec("large", &["fallocate", "-l", &bytes.to_string(), "/memory/file"])?;
    Ok(ballast)
}

fn too_large(a: &Host, ballast: &Path) -> Result<()> {
    refused(
        a,
        "large",
        "b",
        &["bytes of disk free", "bytes of memory available"],
    )?;
    a.exec("large", &["rm", "/memory/file"])?;
    fs::remove_file(ballast)?;
    fits(a, "large")?;
    a.tranship(&["rm", "-f", "large"])?;
    a.tranship(&["volume", "rm", "bulk"])?;
    Ok(())
}

#[test]
fn a_cancelled_move_an_unknown_container_and_wrong_words_have_codes_of_their_own() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, client, bed) = (scenario.host("a")?, scenario.host("client")?, scenario.bed()?);
    for (words, code) in [
        (&["migrate", "nobody", "b"][..], NO_SUCH_OBJECT),
        (&["migrate", "nobody", "b", "--check"], NO_SUCH_OBJECT),
        (
            &["migrate", "status", "01ARZ3NDEKTSV4RRFFQ69G5FAV"],
            NO_SUCH_OBJECT,
        ),
        (&["migrate", "redis"], USAGE),
        (&["migrate", "redis", "b", "--max-downtime", "soon"], USAGE),
        (&["migrate", "redis", "b", "--frobnicate"], USAGE),
    ] {
        let answer = a.try_tranship(words)?;
        ensure!(answer.status.code() == Some(code), "{words:?}: {answer:?}");
        ensure!(!answer.errors().is_empty(), "{words:?}: nothing is said");
        ensure!(answer.text().is_empty(), "{words:?}: {answer:?}");
    }

    images::run_redis(a, "redis", "data", client)?;
    let before = Inventory::take(bed)?;
    let was = a.container("redis")?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    // The image alone takes many seconds at this rate.
    bed.set_rate("b", "8mbit")?;
    let mut moving = daemon::cli(a, &["--format", "json", "migrate", "redis", "b"])?;
    let moving = moving.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut id = String::new();
    wait_for("the move to send", Duration::from_secs(10), || {
        let text = a.tranship(&["--format", "json", "migrate", "ls"])?;
        let record: Value = serde_json::from_str(text.lines().next().unwrap_or("null"))?;
        id = record["id"].as_str().unwrap_or_default().to_owned();
        Ok(record["phase"] == "seed")
    })?;
    a.tranship(&["migrate", "cancel", &id])?;
    let output = moving.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(CANCELLED),
        "{}: {said}",
        output.status
    );
    ensure!(said.contains("cancelled"), "it says: {said}");
    let record: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(record["outcome"] == "cancelled", "the record: {record:#}");
    bed.set_rate("b", "unlimited")?;

    ensure!(a.container("redis")? == was, "it was {was:#}");
    counter.stop()?.checked()?;
    before.expect_unchanged(bed)?;
    a.migrate("redis", "b")?;
    scenario.end()
}

/// Runs a container that only has to be there.
fn run(host: &Host, options: &[&str]) -> Result<()> {
    host.tranship(&[&["run", "-d"], options, &SLEEP].concat())?;
    Ok(())
}

/// What `migrate --check` and `migrate` say, both asked at once: an unreachable host is waited for.
fn ask(a: &Host, container: &str, destination: &str) -> Result<[Finished; 2]> {
    let words = ["--format", "json", "migrate", container, destination];
    std::thread::scope(|scope| {
        let check = scope.spawn(|| a.try_tranship(&[&words[..], &["--check"]].concat()));
        let moved = a.try_tranship(&words)?;
        let checked = check.join().ok().context("the check panicked")??;
        Ok([checked, moved])
    })
}

/// A check finds nothing in the way.
fn fits(a: &Host, container: &str) -> Result<()> {
    let answer = a.try_tranship(&["migrate", container, "b", "--check"])?;
    ensure!(
        answer.status.success(),
        "something is in the way: {}",
        answer.errors()
    );
    Ok(())
}

/// The move is refused for these reasons and no others.
fn refused(a: &Host, container: &str, destination: &str, reasons: &[&str]) -> Result<()> {
    told(a, container, destination, reasons.len(), reasons)
}

/// `migrate` and `migrate --check` both refuse for that many reasons, which have these words in them, for people and for
/// programs; and the container is what it was.
fn told(a: &Host, container: &str, destination: &str, number: usize, words: &[&str]) -> Result<()> {
    let was = a.container(container)?;
    for answer in ask(a, container, destination)? {
        let said = answer.errors();
        let context = || format!("{container} to {destination}: {said}");
        ensure!(
            answer.status.code() == Some(REFUSED),
            "{} {}",
            answer.status,
            context()
        );
        let record: Value = serde_json::from_slice(&answer.stdout).with_context(context)?;
        ensure!(record["outcome"] == "refused", "the record: {record:#}");
        let blockers: Vec<_> = record["blockers"].as_array().into_iter().flatten().collect();
        let blockers: Vec<_> = blockers.into_iter().filter_map(Value::as_str).collect();
        ensure!(blockers.len() == number, "{blockers:#?} are not {number}");
        for blocker in &blockers {
            ensure!(said.contains(blocker), "{blocker:?} is not told: {said}");
        }
        for word in words {
            let times = blockers.iter().filter(|blocker| blocker.contains(word)).count();
            ensure!(times == 1, "{word:?} is in {times} of {blockers:#?}");
        }
        let advice = record["advice"].as_str().unwrap_or_default();
        ensure!(!advice.is_empty() && said.contains(advice), "no advice: {said}");
    }
    let is = a.container(container)?;
    ensure!(is == was, "the refusals made of {was:#} this: {is:#}");
    Ok(())
}

/// A program that says it is an old version, and otherwise is the one that the host has.
fn old_program(host: &Host, name: &str, version: &str) -> Result<PathBuf> {
    let script = format!("#!/bin/sh\n[ \"$1\" = --version ] || exec {name} \"$@\"\necho '{version}'\n");
    executable(host, &format!("{name}-of-old"), &script)
}

fn executable(host: &Host, name: &str, script: &str) -> Result<PathBuf> {
    let path = host.layout.disk(host.name()).join(name);
    fs::write(&path, script)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

fn reconfigure(host: &Host, text: &str) -> Result<()> {
    daemon::stop(host)?;
    fs::write(host.layout.config(host.name()), text)?;
    daemon::start(host)
}

/// Makes a file that takes up room without being written.
fn occupy(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, BULK_BYTES)?;
    Ok(())
}

fn available_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next());
    Ok(kib
        .context("the kernel tells no available memory")?
        .parse::<u64>()?
        * 1024)
}
