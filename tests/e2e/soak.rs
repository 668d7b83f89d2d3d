//! The same container, to and fro under load, again and again: every write that was acknowledged is there once, at no moment
//! two hosts own it, and nothing grows with the number of moves.
//!
//! Twenty moves are part of `make test`; `make soak` makes 200. Both hosts share one kernel, so this does not prove
//! that it holds between two.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::owner::Sampling;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// Moves without anything in the environment; `TRANSHIP_MOVES` makes it another number.
const MOVES: usize = 20;
/// Moves after which the daemons have made what they keep: caches, threads, connections. Even, as all are counted where
/// the container is on its first host.
const WARM_UP: usize = 6;

/// What a daemon's memory may differ by between two looks: what its allocator holds back and pools it fills when it likes.
const MEMORY_SLACK_KIB: u64 = 12 << 10;
/// Threads and descriptors that come and go: the runtime's idle threads, a connection that is about to be closed.
const COUNT_SLACK: u64 = 8;
/// The state database's log of writes, before it begins again at its start.
const LOG: &str = "registry.db-wal";
const LOG_BYTES: u64 = 5 << 20;
/// What the database may still get from its log after the first look: the records of a few moves, not those of hundreds.
const DATABASE_BYTES: u64 = 512 << 10;

/// Moves that stay on record, and how many more there may be until both hosts know that they are over.
const HISTORY: usize = 4;
const HISTORY_SLACK: usize = 4;

/// Records are written by a client who waits for each.
const ALWAYS: [&str; 2] = ["--appendfsync", "always"];

const VISITS: &str = "visits";

#[test]
fn a_container_that_moves_again_and_again_loses_nothing_and_leaves_nothing() -> Result<()> {
    let moves = moves()?;
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    for host in [a, b] {
        daemon::stop(host)?;
        daemon::set_lines(host, &format!("migrate.history = {HISTORY}"))?;
        daemon::start(host)?;
    }
    images::run_redis_with(a, "redis", "data", client, &ALWAYS)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, VISITS)?;
    let sampling = Sampling::start("redis", &[a, b])?;
    let (mut hosts, mut before, mut blackouts_us) = ([a, b], None, Vec::new());
    for number in 1..=moves {
        let told = || format!("move {number} of {moves}");
        let [from, to] = hosts;
        let migration = from.migrate("redis", to.name()).with_context(told)?;
        ensure!(migration.outcome == "done", "{}: {}", told(), migration.error);
        blackouts_us.push(migration.blackout_us);
        let epoch = to.container("redis")?["epoch"].as_u64();
        ensure!(epoch == Some(1 + number as u64), "{}: epoch {epoch:?}", told());
        hosts.reverse();
        if number == WARM_UP {
            before = Some(Use::of_both(a, b)?);
        }
    }
    let after = Use::of_both(a, b)?;
    let before = before.context("there are more moves than it takes to warm up")?;
    let owners = sampling.finish()?;
    let counted = counter.stop()?.checked()?;
    blackouts_us.sort_unstable();
    eprintln!(
        "{moves} moves: blackout {} us in the median, {} at most; longest wait {} us; {} increments; {owners:?}\nbefore {before:?}\nafter {after:?}",
        blackouts_us[moves / 2],
        blackouts_us[moves - 1],
        counted.longest_stall_us(),
        counted.answers
    );
    for (host, after) in &after {
        before[host]
            .expect_no_growth(after, moves - WARM_UP)
            .with_context(|| host.clone())?;
    }
    for host in [a, b] {
        let kept = host.tranship(&["-q", "migrate", "ls"])?.lines().count();
        let most = HISTORY + HISTORY_SLACK;
        ensure!(
            (HISTORY..=most).contains(&kept),
            "{} has {kept} moves on record",
            host.name()
        );
    }
    expect_on_disk(a, client, counted.last)?;
    scenario.end()
}

fn moves() -> Result<usize> {
    let Some(text) = env::var_os("TRANSHIP_MOVES") else {
        return Ok(MOVES);
    };
    let moves = text.to_str().and_then(|text| text.parse().ok());
    let moves = moves.context("TRANSHIP_MOVES is no number")?;
    ensure!(
        moves > WARM_UP && moves % 2 == 0,
        "TRANSHIP_MOVES must be even and more than {WARM_UP}"
    );
    Ok(moves)
}

/// Another Redis finds in the volume what the first has acknowledged last.
fn expect_on_disk(host: &Host, client: &Host, last: i64) -> Result<()> {
    host.tranship(&["rm", "-f", "redis"])?;
    images::run_redis_with(host, "heir", "data", client, &ALWAYS)?;
    let found = images::ask_redis(
        client,
        host.address_of("heir", REDIS_PORT)?,
        &format!("GET {VISITS}"),
    )?;
    ensure!(
        found == last.to_string(),
        "{last} increments were acknowledged, and {found} are in the volume"
    );
    Ok(())
}

/// What a host's daemon has taken.
#[derive(Debug)]
struct Use {
    memory_kib: u64,
    threads: u64,
    descriptors: u64,
    /// Without volumes, which grow with what is written to them, and without the database's log.
    disk_bytes: u64,
    log_bytes: u64,
}

impl Use {
    /// Once nothing of the last move is under way any more.
    fn of_both(a: &Host, b: &Host) -> Result<BTreeMap<String, Self>> {
        for host in [a, b] {
            wait_for("the last move to be over", Duration::from_secs(20), || {
                let staging = host.path("/run/tranship/migrations");
                Ok(fs::read_dir(&staging)?.next().is_none())
            })?;
        }
        std::thread::sleep(Duration::from_secs(1));
        let of = |host: &Host| Ok((host.name().to_owned(), Self::of(host)?));
        [a, b].into_iter().map(of).collect()
    }

    fn of(host: &Host) -> Result<Self> {
        let pid = daemon::pid(host).context("the daemon does not run")?;
        let process = host.path(format!("/proc/{pid}"));
        let status = fs::read_to_string(process.join("status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            word.with_context(|| format!("no {name} in the daemon's status"))
        };
        Ok(Self {
            memory_kib: field("VmRSS:")?,
            threads: field("Threads:")?,
            descriptors: fs::read_dir(process.join("fd"))?.count() as u64,
            disk_bytes: bytes_below(&host.layout.state_dir(host.name()))?,
            log_bytes: fs::metadata(host.layout.state_dir(host.name()).join(LOG))?.len(),
        })
    }

    fn expect_no_growth(&self, later: &Self, moves: usize) -> Result<()> {
        for (what, before, after, slack) in [
            (
                "KiB of memory",
                self.memory_kib,
                later.memory_kib,
                MEMORY_SLACK_KIB,
            ),
            ("threads", self.threads, later.threads, COUNT_SLACK),
            ("descriptors", self.descriptors, later.descriptors, COUNT_SLACK),
            ("bytes on disk", self.disk_bytes, later.disk_bytes, DATABASE_BYTES),
            ("bytes of the database's log", 0, later.log_bytes, LOG_BYTES),
        ] {
            ensure!(
                after <= before + slack,
                "in {moves} moves the daemon came from {before} to {after} {what}"
            );
        }
        Ok(())
    }
}

fn bytes_below(path: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(path).with_context(|| format!("cannot look into {}", path.display()))? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != "volumes" {
            total += bytes_below(&entry.path())?;
        } else if kind.is_file() && entry.file_name() != LOG {
            total += entry.metadata()?.len();
        }
    }
    Ok(total)
}
