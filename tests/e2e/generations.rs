//! A program that stamps a generation into every page moves to and fro: its pages are all within one generation after
//! each move.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::images::{self, QUESTION_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;

/// What is stamped per second.
const MIB_PER_S: &str = "100";
/// Before each move, so that it begins somewhere in the memory.
const WRITE: Duration = Duration::from_millis(700);
/// For a look at every page.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn all_pages_are_within_one_generation_after_each_of_three_moves() -> Result<()> {
    to_and_fro(256, 3)
}

/// `make test-full` runs it.
#[test]
#[ignore = "takes minutes: make test-full"]
fn all_pages_of_a_gib_are_within_one_generation_after_each_of_ten_moves() -> Result<()> {
    to_and_fro(1024, 10)
}

fn to_and_fro(mib: usize, moves: usize) -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let port = QUESTION_PORT.to_string();
    let size = mib.to_string();
    let job = [
        "generations",
        "--mib",
        &size,
        "--mib-per-s",
        MIB_PER_S,
        "--port",
        &port,
    ];
    images::run_workload(a, "stamps", &job)?;
    let address = a.address_of("stamps", QUESTION_PORT)?;
    let mut pass = 0;
    let mut look = |host: &Host, when: &str| -> Result<()> {
        let answer = images::ask_workload(client, address, PATIENCE);
        let answer = answer.with_context(|| format!("{when}; its log:\n{}", log(host)))?;
        let (now, pages) = answer.split_once(' ').context("a pass and pages")?;
        let now: u64 = now.parse()?;
        ensure!(now >= pass, "{when} it is at pass {now}, and was at {pass}");
        ensure!(pages.parse() == Ok(mib * 256), "{when} it has {pages} pages");
        pass = now;
        Ok(())
    };
    look(a, "before the first move")?;
    let mut hosts = [a, b];
    for number in 1..=moves {
        let [from, to] = hosts;
        sleep(WRITE);
        let moved = from
            .migrate("stamps", to.name())
            .with_context(|| format!("move {number}"))?;
        ensure!(
            moved.outcome == "done",
            "move {number} ended as {}",
            moved.outcome
        );
        eprintln!(
            "move {number}: blackout {} ms, {} MB",
            moved.blackout_us / 1000,
            moved.bytes_sent / 1_000_000
        );
        look(to, &format!("after move {number}"))?;
        hosts.reverse();
    }
    // Once more round: every page is looked at before it is stamped.
    sleep(Duration::from_secs(1));
    look(hosts[0], "at the end")?;
    ensure!(!log(hosts[0]).contains("WRONG"), "{}", log(hosts[0]));
    scenario.end()
}

fn log(host: &Host) -> String {
    host.tranship(&["logs", "stamps"])
        .unwrap_or_else(|error| format!("{error:#}"))
}
