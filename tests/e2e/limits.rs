//! What bounds a move that cannot keep up with its container: `--max-downtime`, `--timeout`, `--on-timeout`, and the
//! slow-down.
//!
//! The container stamps all of its memory ten times a second, and `--max-bandwidth` lets it travel twice: such a move has no
//! end by itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use tranship_tests::images::{self, COUNT_PORT};
use tranship_tests::namespace::enter_network;
use tranship_tests::scenario::Scenario;
use tranship_tests::stamps::Stamps;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::{Migration, wait_for};

/// MiB, and those that are stamped each second.
const MEMORY: [&str; 2] = ["10", "100"];
/// So much is sent per second at most.
const BANDWIDTH: &str = "24m";
/// So little that time is up before it is slowed down.
const HALF: &str = "12m";

/// For anything that a loaded machine may take long for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit codes of a migration.
const NOT_TOUCHED: i32 = 1;
const TIMED_OUT: i32 = 8;

/// How a migration ended that need not have succeeded.
struct Ended {
    code: Option<i32>,
    record: Migration,
    said: String,
}

fn migrate(from: &Host, to: &str, options: &[&str]) -> Result<Ended> {
    let command = ["--format", "json", "migrate", "stamps", to];
    let ended = from.try_tranship(&[&command[..], options].concat())?;
    let record = serde_json::from_str(&ended.text());
    Ok(Ended {
        code: ended.status.code(),
        record: record.with_context(|| format!("{} {}", ended.text(), ended.errors()))?,
        said: ended.errors(),
    })
}

impl Ended {
    fn expect(&self, code: i32, outcome: &str, words: &[&str]) -> Result<()> {
        let right = self.code == Some(code) && self.record.outcome == outcome;
        ensure!(right, "{:?}, {}: {}", self.code, self.record.outcome, self.said);
        for word in words {
            ensure!(self.said.contains(word), "no {word:?} in: {}", self.said);
        }
        Ok(())
    }
}

#[test]
fn what_cannot_be_had_in_time_is_given_up_or_forced_as_was_asked_for() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], MEMORY)?;
    given_up(&stamps, a, b)?;
    given_up_before_all_was_sent(&stamps, a)?;
    forced(&stamps, a, b)?;
    hopeless(&stamps, b)?;
    // With no limits it moves.
    stamps.crowd.begin()?;
    b.migrate("stamps", "a")?;
    stamps.check(a)?;
    scenario.end()
}

/// The container never notices: two rounds in vain are not yet a reason to slow it down.
fn given_up(stamps: &Stamps<'_>, a: &Host, b: &Host) -> Result<()> {
    stamps.crowd.begin()?;
    let limits = [
        "--max-downtime",
        "200ms",
        "--timeout",
        "2s",
        "--on-timeout",
        "cancel",
    ];
    let ended = migrate(a, "b", &[&limits[..], &["--max-bandwidth", HALF]].concat())?;
    let why = [
        "instead of 200 ms",
        "writes memory too fast",
        "MB/s or more",
        "MB/s can be sent",
        "stamps runs at a",
    ];
    ended.expect(TIMED_OUT, "timed_out", &why)?;
    let total = Duration::from_micros(ended.record.total_us);
    let stall = stamps.check(a)?;
    eprintln!(
        "given up after {total:?}, the longest wait was {stall:?}: {}",
        ended.said
    );
    ensure!(stall < total / 3, "somebody waited {stall:?} for an answer");
    let slowed = ended
        .record
        .spans
        .iter()
        .any(|span| span.name.starts_with("slow down"));
    ensure!(!slowed && stamps.limit(a)?.is_none(), "it was slowed down");
    let there = b.try_tranship(&["inspect", "stamps"])?;
    ensure!(!there.status.success(), "something of it is at b");
    Ok(())
}

/// Time may be up in the middle of the first round, which would take ten seconds here.
fn given_up_before_all_was_sent(stamps: &Stamps<'_>, a: &Host) -> Result<()> {
    stamps.crowd.begin()?;
    let ended = migrate(a, "b", &["--timeout", "1s", "--max-bandwidth", "1m"])?;
    let why = ["not everything had been sent once", "stamps runs at a"];
    ended.expect(TIMED_OUT, "timed_out", &why)?;
    let total = Duration::from_micros(ended.record.total_us);
    ensure!(total < Duration::from_secs(7), "it took {total:?}");
    stamps.check(a).map(drop)
}

fn forced(stamps: &Stamps<'_>, a: &Host, b: &Host) -> Result<()> {
    stamps.crowd.begin()?;
    let limits = [
        "--max-downtime",
        "100ms",
        "--timeout",
        "1s",
        "--on-timeout",
        "force",
    ];
    let ended = migrate(a, "b", &[&limits[..], &["--max-bandwidth", BANDWIDTH]].concat())?;
    ended.expect(0, "done", &[])?;
    let blackout = Duration::from_micros(ended.record.blackout_us);
    let stall = stamps.check(b)?;
    eprintln!("forced: a blackout of {blackout:?}, the longest wait was {stall:?}");
    ensure!(
        ended.record.total_us > 1_000_000,
        "it did not wait until time was up"
    );
    ensure!(blackout > Duration::from_millis(100), "no force was needed");
    Ok(())
}

/// What hosts cannot do at all is said before anything is sent.
fn hopeless(stamps: &Stamps<'_>, b: &Host) -> Result<()> {
    stamps.crowd.begin()?;
    let ended = migrate(b, "a", &["--max-downtime", "1ms"])?;
    let why = ["a blackout of 1 ms cannot be kept", "stamps runs at b"];
    ended.expect(NOT_TOUCHED, "failed", &why)?;
    ensure!(
        ended.record.bytes_sent == 0,
        "{} bytes were sent",
        ended.record.bytes_sent
    );
    stamps.check(b).map(drop)
}

#[test]
fn one_that_writes_too_fast_is_slowed_down_moves_and_is_as_fast_as_before() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &[], MEMORY)?;
    let before = stamps.speed()?;
    let callers = Callers::start(client, a.address_of("stamps", COUNT_PORT)?);
    stamps.crowd.begin()?;
    let id = a.tranship(&["migrate", "--detach", "--max-bandwidth", BANDWIDTH, "stamps", "b"])?;
    let mut limits = Vec::new();
    wait_for("the end of the migration", PATIENCE, || {
        // Once it has moved there is nothing left to look at.
        limits.extend(stamps.limit(a).ok().flatten());
        Ok(a.tranship_json(&["migrate", "status", &id])?["outcome"] != "running")
    })?;
    limits.dedup();
    let record: Migration = serde_json::from_value(a.tranship_json(&["migrate", "status", &id])?)?;
    ensure!(
        record.outcome == "done",
        "it ended as {}: {}",
        record.outcome,
        record.error
    );
    let stall = stamps.check(b)?;
    let calls = callers.finish()?;
    eprintln!(
        "held to {limits:?} us; blackout {} ms of {} ms, longest wait {stall:?}, {calls} new connections",
        record.blackout_us / 1000,
        record.total_us / 1000
    );
    ensure!(!limits.is_empty(), "it was not slowed down");
    ensure!(
        limits.is_sorted_by(|earlier, later| earlier > later),
        "not ever slower: {limits:?}"
    );
    let told = |name: &str| record.spans.iter().any(|span| span.name == name);
    ensure!(
        told("slow down to 60 %") && told("full speed"),
        "nobody is told of it"
    );
    ensure!(stamps.limit(b)?.is_none(), "it is slowed down at its new host");
    let after = stamps.speed()?;
    eprintln!("{before:.1} passes per second before, {after:.1} after");
    ensure!(
        after > before / 3.0,
        "{before:.1} passes per second before, {after:.1} after"
    );
    scenario.end()
}

#[test]
fn a_slow_down_ends_with_its_migration_and_the_containers_own_limit_comes_back() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let stamps = Stamps::run(a, client, &["--cpus", "1.5"], MEMORY)?;
    let own = stamps.limit(a)?;
    ensure!(own.is_some(), "it has no limit of its own");
    stamps.crowd.begin()?;

    let id = until_slowed(a, &stamps, own)?;
    a.tranship(&["migrate", "cancel", &id])?;
    let outcome = outcome(a, &id)?;
    ensure!(outcome == "cancelled", "it is {outcome}");
    ensure!(
        stamps.limit(a)? == own,
        "it is still slowed down after a cancelled move"
    );

    let id = until_slowed(a, &stamps, own)?;
    daemon::kill(a)?;
    ensure!(
        stamps.limit(a)? != own,
        "nobody was there to give it its time back"
    );
    daemon::start(a)?;
    wait_for("the container to be as fast as before", PATIENCE, || {
        Ok(stamps.limit(a)? == own)
    })?;
    let outcome = self::outcome(a, &id)?;
    ensure!(outcome == "failed", "it is {outcome}");

    a.migrate("stamps", "b")?;
    ensure!(stamps.limit(b)? == own, "at its new host it has another limit");
    stamps.check(b)?;
    scenario.end()
}

/// Begins a migration that has to slow the container down, and waits until it does.
fn until_slowed(a: &Host, stamps: &Stamps<'_>, own: Option<u64>) -> Result<String> {
    let id = a.tranship(&["migrate", "--detach", "--max-bandwidth", BANDWIDTH, "stamps", "b"])?;
    wait_for("the container to be slowed down", PATIENCE, || {
        Ok(stamps.limit(a)? != own)
    })?;
    Ok(id)
}

/// How a migration has ended.
fn outcome(a: &Host, id: &str) -> Result<String> {
    let mut outcome = String::new();
    wait_for("the end of the migration", PATIENCE, || {
        let record = a.tranship_json(&["migrate", "status", id])?;
        outcome = record["outcome"].as_str().unwrap_or_default().to_owned();
        Ok(outcome != "running")
    })?;
    Ok(outcome)
}

/// Somebody who connects, asks once and hangs up, again and again: who comes while the container hardly runs is served too.
struct Callers {
    end: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Callers {
    fn start(host: &Host, address: SocketAddr) -> Self {
        let (end, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (theirs, counted, host) = (Arc::clone(&end), Arc::clone(&calls), host.clone());
        let thread = std::thread::spawn(move || {
            enter_network(&host)?;
            while !theirs.load(Ordering::Relaxed) {
                let number = counted.fetch_add(1, Ordering::Relaxed);
                call(address).with_context(|| format!("call {number}"))?;
                sleep(Duration::from_millis(3));
            }
            Ok(())
        });
        Self { end, calls, thread }
    }

    fn finish(self) -> Result<u64> {
        self.end.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the caller panicked"))??;
        Ok(self.calls.load(Ordering::Relaxed))
    }
}

fn call(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("no connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&1_u64.to_le_bytes())?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(u64::from_le_bytes(answer) == 1, "the answer is {answer:?}");
    Ok(())
}
