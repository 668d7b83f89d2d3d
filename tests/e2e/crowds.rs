//! Many of something: connections, processes, threads. None is lost.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::crowd::Crowd;
use tranship_tests::images::{self, COUNT_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;

/// Between two moves.
const LIVE: Duration = Duration::from_millis(300);
/// For a move there and one back.
const MOVES: usize = 2;

#[test]
fn a_thousand_connections_lose_no_answer() -> Result<()> {
    carry_on("count", &[], 1000, Duration::from_millis(100), |_| Ok(()))
}

#[test]
fn a_hundred_and_twenty_eight_processes_all_arrive() -> Result<()> {
    carry_on(
        "processes",
        &["--count", "128", "--mib", "2"],
        1,
        Duration::from_millis(1),
        |host| {
            let listing = host.exec("many", &["ps", "-o", "args"])?;
            let count = listing
                .lines()
                .filter(|line| line.contains("process --mib 2"))
                .count();
            ensure!(count == 128, "{count} of 128 processes are there:\n{listing}");
            Ok(())
        },
    )
}

#[test]
fn a_process_with_256_threads_arrives_whole() -> Result<()> {
    carry_on(
        "threads",
        &["--count", "256"],
        1,
        Duration::from_millis(1),
        |host| {
            let count = host.exec("many", &["sh", "-c", "ls /proc/1/task | wc -l"])?;
            // One more answers requests.
            ensure!(count == "257", "{count} of 257 threads are there");
            Ok(())
        },
    )
}

/// Moves a job there and back under the eyes of clients, and looks after each move.
fn carry_on(
    job: &str,
    arguments: &[&str],
    clients: usize,
    period: Duration,
    look: impl Fn(&Host) -> Result<()>,
) -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let port = COUNT_PORT.to_string();
    images::run_workload(a, "many", &[&[job, "--count-port", &port], arguments].concat())?;
    let crowd = Crowd::start(client, a.address_of("many", COUNT_PORT)?, clients, period)?;
    let mut hosts = [a, b];
    for number in 1..=MOVES {
        let [from, to] = hosts;
        sleep(LIVE);
        crowd.begin()?;
        let moved = from.migrate("many", to.name())?;
        let log = || to.tranship(&["logs", "many"]).unwrap_or_default();
        let stall_us = crowd
            .finish()
            .with_context(|| format!("move {number}: {}", log()))?;
        eprintln!(
            "move {number}: blackout {} ms, longest wait {} ms, {} answers",
            moved.blackout_us / 1000,
            stall_us / 1000,
            crowd.answers()
        );
        look(to).with_context(|| format!("after move {number}: {}", log()))?;
        ensure!(!log().contains("WRONG"), "{}", log());
        hosts.reverse();
    }
    drop(crowd);
    scenario.end()
}
