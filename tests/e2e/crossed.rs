//! Migrations that meet: two containers change places at the same time, with a daemon that dies meanwhile, and one moves on from a host
//! that dies, before the host it came from has done with it.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::faults;
use tranship_tests::field::Field;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::owner::{the_one_of, the_one_that_runs};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, daemon};
use tranship_tests::tranship::wait_for;
use tranship_tests::workload::random::{Random, draws, seed};

/// A daemon dies this long after both migrations have begun, at the latest: they have ended by then.
const LATEST_MS: usize = 1200;
/// For two migrations at once on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who was asked to migrate and is not yet dead had time to begin.
const BEGUN: Duration = Duration::from_secs(5);

/// Where b dies while it moves on what it has just got, and whether that is c's then.
const STEPS: [(&str, &str, &str); 8] = [
    ("source:journal-intent", "kill-after", "b"),
    ("source:journal-freezing", "kill-after", "b"),
    ("source:dump", "kill-before", "b"),
    ("source:receive-ready", "kill-before", "b"),
    ("source:journal-committed", "kill-before", "b"),
    ("source:journal-committed", "kill-after", "c"),
    ("source:receive-running", "kill-before", "c"),
    ("source:remove-copy", "kill-before", "c"),
];

#[test]
fn containers_that_change_places_do_not_harm_each_other() -> Result<()> {
    change_places(4)
}

#[test]
#[ignore = "takes long: make faults"]
fn containers_that_change_places_again_and_again_do_not_harm_each_other() -> Result<()> {
    change_places(30)
}

#[test]
fn a_container_that_moves_on_from_a_host_that_dies_is_on_one_of_three() -> Result<()> {
    move_on(&STEPS[4..6])
}

#[test]
#[ignore = "takes long: make faults"]
fn a_container_that_moves_on_from_a_host_that_dies_at_any_step_is_on_one_of_three() -> Result<()> {
    move_on(&STEPS)
}

/// Every second time a daemon dies in the middle.
fn change_places(times: u64) -> Result<()> {
    let (seed, times) = (seed(), draws(times));
    let mut random = Random::new(seed);
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::import(b, "redis")?;
    images::run_redis(a, "x", "data-x", client)?;
    images::run_redis(b, "y", "data-y", client)?;
    let counters = [
        Counter::start(client, a.address_of("x", REDIS_PORT)?, "visits")?,
        Counter::start(client, b.address_of("y", REDIS_PORT)?, "visits")?,
    ];
    let (mut x, mut moved, mut swapped) = (a, 0, 0);
    for number in 0..times {
        let y = if x.name() == "a" { b } else { a };
        let victim = (number % 2 == 1).then(|| [a, b][random.below(2)]);
        let after = Duration::from_millis(random.below(LATEST_MS) as u64);
        let told = || {
            let who = victim.map_or("nobody", Host::name);
            format!("{number} of seed {seed}: {who} dies after {after:?}")
        };
        let owners = cross(x, y, victim, after).with_context(told)?;
        moved += usize::from(owners[0].name() != x.name()) + usize::from(owners[1].name() != y.name());
        swapped += usize::from(owners[0].name() != x.name() && owners[1].name() != y.name());
        eprintln!(
            "{}: x is on {}, y on {}",
            told(),
            owners[0].name(),
            owners[1].name()
        );
        if owners[0].name() == owners[1].name() {
            let to = if owners[0].name() == "a" { "b" } else { "a" };
            owners[1].migrate("y", to).with_context(told)?;
        }
        x = owners[0];
    }
    eprintln!(
        "{times} times, {moved} of {} moved, both {swapped} times",
        2 * times
    );
    for counter in counters {
        counter.stop()?.checked()?;
    }
    ensure!(swapped >= 1, "they never changed places");
    scenario.end()
}

/// Has x and y change places. Answers where they are in the end.
fn cross<'a>(x: &'a Host, y: &'a Host, victim: Option<&Host>, after: Duration) -> Result<[&'a Host; 2]> {
    let ids = std::thread::scope(|scope| {
        let one = scope.spawn(|| x.tranship(&["migrate", "--detach", "x", y.name()]));
        let other = scope.spawn(|| y.tranship(&["migrate", "--detach", "y", x.name()]));
        [one, other].map(|asked| asked.join().ok().context("it panicked")?)
    });
    let [of_x, of_y] = ids;
    let (of_x, of_y) = (of_x?, of_y?);
    if let Some(victim) = victim {
        sleep(after);
        daemon::kill(victim)?;
        daemon::start(victim)?;
    }
    for (host, id) in [(x, of_x), (y, of_y)] {
        let mut record = serde_json::Value::Null;
        wait_for("both migrations to end", PATIENCE, || {
            record = host.tranship_json(&["migrate", "status", &id])?;
            Ok(!["running", "unknown"].contains(&record["outcome"].as_str().unwrap_or_default()))
        })?;
        ensure!(
            victim.is_some() || record["outcome"] == "done",
            "nothing failed, and it is {}: {}",
            record["outcome"],
            record["error"]
        );
    }
    Ok([the_one_that_runs("x", x, y)?, the_one_that_runs("y", x, y)?])
}

/// From a to b, and on to c, while a is held in `clean` and b dies.
fn move_on(steps: &[(&str, &str, &str)]) -> Result<()> {
    let mut field = Field::begin_with(
        &Options {
            hosts: 3,
            ..Options::default()
        },
        &[],
    )?;
    for (point, deed, entitled) in steps {
        let strike = |scenario: &Scenario| b_dies(scenario, point, deed);
        field.attempt(
            &format!("on its way from b to c: {point} {deed}"),
            strike,
            |course| {
                ensure!(course.owner == *entitled, "{} runs it", course.owner);
                Ok(())
            },
        );
    }
    field.end()
}

fn b_dies(scenario: &Scenario, point: &str, deed: &str) -> Result<()> {
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    faults::plan(a, "source:remove-copy hold")?;
    a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(a, "source:remove-copy")?;
    wait_for("b to have the container", BEGUN, || {
        Ok(b.container("redis")?["state"] == "running")
    })?;
    faults::plan(b, &format!("{point} {deed}"))?;
    // It may die before it has answered.
    let asked = b.try_tranship(&["migrate", "--detach", "redis", "c"])?;
    wait_for("b to die", BEGUN, || Ok(daemon::pid(b).is_none()))
        .with_context(|| format!("{} {}", asked.text(), asked.errors()))?;
    faults::start(b)?;
    // It has moved on, or it has not: c and b agree on that without a.
    let (b, c) = (scenario.host("b")?, scenario.host("c")?);
    the_one_of("redis", &[b, c])?;
    faults::let_go(a, "source:remove-copy")
}
