//! `demo`: a Redis moves from one host to another while a client counts, and nobody notices but a stopwatch.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tranship_tests::counter::{Counter, CounterReport};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::remove_everything;
use tranship_tests::testbed::{Host, Options, Testbed};
use tranship_tests::{command, interrupt, programs};

/// How long the client counts before the move, and after it.
const COUNT: Duration = Duration::from_millis(1500);

const VOLUME: &str = "redis-data";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let begun = Instant::now();
    println!("A Redis moves from host a to host b while a client is connected to it.\n");
    let options = Options {
        force: true,
        ..Options::default()
    };
    interrupt::take_down_on_signal(&options.dir)?;
    let bed = Testbed::up(&options)?;
    let (a, b) = (bed.host("a")?, bed.host("b")?);
    step(
        "hosts",
        "a (10.77.0.1) and b (10.77.0.2), each with a transhipd, joined over mutual TLS",
        begun,
    );

    let empty = Inventory::take(&bed)?;
    let since = Instant::now();
    images::import(a, "redis")?;
    images::run_redis(a, "redis", VOLUME, bed.client())?;
    let address = a.address_of("redis", REDIS_PORT)?;
    step(
        "container",
        &format!("redis on a, at {address}, append-only file in volume {VOLUME}"),
        since,
    );

    let counter = Counter::start(bed.client(), address, "visits")?;
    std::thread::sleep(COUNT);
    println!("\n$ tranship migrate redis b\n");
    println!("{}", indented(&a.tranship(&["migrate", "redis", "b"])?));
    std::thread::sleep(COUNT);
    let report = counter.stop()?.checked()?;

    judge(&bed, &report)?;
    prove_volume(&bed, a, b, report.last)?;
    remove_everything(&bed)?;
    empty.expect_unchanged(&bed)?;
    good("nothing is left of it on either host: no mount, link, cgroup, process or file");
    bed.down()?;
    println!(
        "\nAll of it, from nothing to nothing, took {:.1} s.",
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// What the client saw, and what Redis says now.
fn judge(bed: &Testbed, report: &CounterReport) -> Result<()> {
    let CounterReport {
        answers,
        last,
        median_us,
        ..
    } = report;
    let stall = report.longest_stall_us();
    println!(
        "\n  longest stall as the client saw it: {:.0} ms (median answer {:.2} ms)\n",
        stall as f64 / 1e3,
        *median_us as f64 / 1e3
    );
    good(&format!(
        "{answers} increments on one TCP connection, answered 1 to {last}: none lost, none repeated"
    ));
    let value = redis(bed, bed.host("b")?, "redis", &["GET", "visits"])?;
    if value != last.to_string() {
        bail!("the counter is {value} on b, and the last answer was {last}");
    }
    good(&format!("a new connection to the same address reads {value}"));
    Ok(())
}

/// A Redis that is started from the volume on b must know what the other one knew.
fn prove_volume(bed: &Testbed, a: &Host, b: &Host, last: i64) -> Result<()> {
    if a.tranship(&["volume", "ls", "-q"])?
        .lines()
        .any(|name| name == VOLUME)
    {
        bail!("volume {VOLUME} is still on a");
    }
    let volume = b.tranship_json(&["volume", "inspect", VOLUME])?;
    let mountpoint = volume["mountpoint"]
        .as_str()
        .context("a volume has a mountpoint")?;
    let log = b.path(mountpoint).join("appendonlydir");
    if !log.is_dir() {
        bail!("there is no append-only file in {mountpoint} on b");
    }
    b.tranship(&["stop", "redis"])?;
    images::run_redis(b, "reborn", VOLUME, bed.client())?;
    let value = redis(bed, b, "reborn", &["GET", "visits"])?;
    if value != last.to_string() {
        bail!("a Redis started from the volume on b knows {value}, not {last}");
    }
    good(&format!(
        "the volume came along: a second Redis, started from its append-only file on b, reads {value}"
    ));
    Ok(())
}

fn redis(bed: &Testbed, host: &Host, container: &str, words: &[&str]) -> Result<String> {
    let address = host.address_of(container, REDIS_PORT)?.to_string();
    let arguments = [&["redis", &address], words].concat();
    let mut client = bed.client().command(programs::find("tb-client")?, arguments);
    Ok(command::succeed(&mut client, command::SHORT)?.text())
}

fn step(what: &str, detail: &str, since: Instant) {
    println!("  {what:<10} {detail}  ({:.1} s)", since.elapsed().as_secs_f64());
}

fn good(what: &str) {
    println!("  ok  {what}");
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| {
            if line.is_empty() {
                String::new()
            } else {
                format!("  {line}")
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}
