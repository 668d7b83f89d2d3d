//! A program that maps, unmaps, moves, advises and protects memory at random, and forks, moves to and fro: it finds in every
//! page what it has put there.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::images::{self, QUESTION_PORT};
use tranship_tests::scenario::Scenario;

const MOVES: usize = 6;
/// Before each move.
const LIVE: Duration = Duration::from_millis(800);
/// For a look at every page.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_program_that_changes_its_map_at_random_finds_every_page_as_it_left_it() -> Result<()> {
    let scenario = Scenario::begin(&[images::WORKLOAD])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    let port = QUESTION_PORT.to_string();
    // Another course with each run; the log has the seed, and `workload remapper` repeats it.
    let seed = (std::process::id() % 1000).to_string();
    let job = ["remapper", "--mib", "96", "--seed", &seed, "--port", &port];
    images::run_workload(a, "maps", &job)?;
    let address = a.address_of("maps", QUESTION_PORT)?;
    let mut things = 0;
    let mut hosts = [a, b];
    for number in 1..=MOVES {
        let [from, to] = hosts;
        sleep(LIVE);
        let moved = from.migrate("maps", to.name());
        let log = || to.tranship(&["logs", "maps"]).unwrap_or_default();
        let moved = moved.with_context(|| format!("move {number}, seed {seed}: {}", log()))?;
        ensure!(
            moved.outcome == "done",
            "move {number} ended as {}",
            moved.outcome
        );
        let answer = images::ask_workload(client, address, PATIENCE);
        let answer = answer.with_context(|| format!("after move {number}, seed {seed}: {}", log()))?;
        eprintln!(
            "move {number}: blackout {} ms; {answer}",
            moved.blackout_us / 1000
        );
        let done: u64 = answer.split(' ').next().unwrap_or_default().parse()?;
        ensure!(done > things, "it has done nothing since move {}", number - 1);
        things = done;
        hosts.reverse();
    }
    let log = hosts[0].tranship(&["logs", "maps"])?;
    ensure!(!log.contains("WRONG"), "seed {seed}: {log}");
    scenario.end()
}
