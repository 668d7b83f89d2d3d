//! Hosts whose handoffs an etcd of three members decides: the loss of a source does not keep a destination waiting that is ready, who
//! comes back finds it decided, and without etcd nothing new is handed over.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::etcd::Etcd;
use tranship_tests::faults;
use tranship_tests::halfway::{counted_on, hold_at_ready, state};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::is_frozen;
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::power::switch_off;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// Decided without the other host within this time.
const AT_LAST: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(20);
/// A container runs again this long after its daemon has died.
const GIVEN_BACK: Duration = Duration::from_secs(5);

/// A guard that has found nobody to decide tries again within this time.
const GUARD_AGAIN: Duration = Duration::from_secs(15);

/// It has committed, and is about to say so.
const GO: &str = "source:send-go";

/// Two hosts that share an etcd and obey plans, a Redis on a, and a client that counts.
struct Field {
    scenario: Scenario,
    etcd: Etcd,
    counter: Counter,
}

impl Field {
    fn begin() -> Result<Self> {
        let scenario = Scenario::begin(&["redis"])?;
        let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
        let etcd = Etcd::start(client)?;
        for host in [a, b] {
            etcd.configure(host)?;
        }
        faults::arm(&[a, b])?;
        images::run_redis(a, "redis", "data", client)?;
        let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
        Ok(Self {
            scenario,
            etcd,
            counter,
        })
    }

    fn hosts(&self) -> Result<(&Host, &Host)> {
        Ok((self.scenario.host("a")?, self.scenario.host("b")?))
    }

    /// One host runs the container, the client goes on as if nothing had happened, and it moves like any other.
    fn end(self, owner: &str) -> Result<()> {
        let Self {
            scenario,
            etcd,
            counter,
        } = self;
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        counted_on(owner, [a, b], counter)?;
        let (from, to) = if owner == "a" { (a, "b") } else { (b, "a") };
        from.migrate("redis", to).context("afterwards")?;
        let owner = etcd.owners()?;
        ensure!(
            owner.contains(&format!("\"host\":\"{to}\"")),
            "on record is {owner}"
        );
        scenario.host(to)?.tranship(&["rm", "--force", "redis"])?;
        wait_for("the record of the owner to be gone", AT_LAST, || {
            Ok(etcd.owners()?.is_empty())
        })?;
        faults::disarm(&[a, b])?;
        for host in [a, b] {
            daemon::stop(host)?;
            etcd.forget(host)?;
            daemon::start(host)?;
        }
        etcd.end()?;
        scenario.end()
    }
}

fn runs(host: &Host) -> Result<bool> {
    Ok(state(host, "redis")? == "running")
}

#[test]
fn a_destination_that_is_ready_goes_on_without_its_source() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    hold_at_ready(a, "redis")?;
    switch_off(a)?;
    let gone = Instant::now();
    wait_for("the destination to run it by itself", AT_LAST, || runs(b))?;
    eprintln!("it runs {:?} after its source has gone", gone.elapsed());
    faults::forget_plans(a)?;
    faults::start(a)?;
    field.end("b")
}

#[test]
fn whoever_was_first_has_decided_and_who_comes_back_finds_it_so() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    // The guard is first.
    hold_at_ready(a, "redis")?;
    let id = a.container("redis")?["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    daemon::kill(a)?;
    wait_for("the guard to let it run", GIVEN_BACK, || Ok(!is_frozen(a, &id)?))?;
    faults::forget_plans(a)?;
    faults::start(a)?;
    let owner = the_one_that_runs("redis", a, b)?;
    ensure!(owner.name() == "a", "it is on {}", owner.name());
    // The source is first, and dies before its own journal has it.
    faults::plan(a, "source:journal-committed kill-before")?;
    a.try_tranship(&["migrate", "--detach", "redis", "b"])?;
    wait_for("the source to die", PATIENCE, || Ok(daemon::pid(a).is_none()))?;
    wait_for("the destination to run it by itself", PATIENCE, || runs(b))?;
    ensure!(is_frozen(a, &id)?, "its copy was let run");
    faults::start(a)?;
    field.end("b")
}

#[test]
fn a_guard_that_finds_etcd_away_waits_for_it() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    hold_at_ready(a, "redis")?;
    let record = a.container("redis")?;
    let id = record["id"].as_str().context("a container has an id")?;
    for member in [0, 1] {
        field.etcd.kill(member)?;
    }
    // Nobody else is to be asked.
    daemon::kill(b)?;
    daemon::kill(a)?;
    sleep(GIVEN_BACK);
    ensure!(is_frozen(a, id)?, "it was let run though nothing was decided");
    for member in [0, 1] {
        field.etcd.start_member(member)?;
    }
    field.etcd.wait_healthy()?;
    wait_for("the guard to let it run", GUARD_AGAIN, || Ok(!is_frozen(a, id)?))?;
    for host in [a, b] {
        faults::forget_plans(host)?;
        faults::start(host)?;
    }
    let owner = the_one_that_runs("redis", a, b)?;
    ensure!(owner.name() == "a", "it is on {}", owner.name());
    field.end("a")
}

#[test]
fn without_etcd_nothing_new_is_handed_over_and_what_was_is_finished() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    for member in [0, 1] {
        field.etcd.kill(member)?;
    }
    let refused = a.try_tranship(&["migrate", "redis", "b"])?;
    ensure!(
        refused.status.code() == Some(1),
        "{}: {}",
        refused.status,
        refused.errors()
    );
    ensure!(
        refused.errors().contains("was not touched"),
        "{}",
        refused.errors()
    );
    ensure!(runs(a)?, "it does not run");
    for member in [0, 1] {
        field.etcd.start_member(member)?;
    }
    field.etcd.wait_healthy()?;
    a.migrate("redis", "b")?;
    b.migrate("redis", "a")?;
    faults::plan(a, &format!("{GO} hold"))?;
    a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(a, GO)?;
    for member in [1, 2] {
        field.etcd.kill(member)?;
    }
    faults::let_go(a, GO)?;
    wait_for("what was committed to be finished", AT_LAST, || runs(b))?;
    for member in [1, 2] {
        field.etcd.start_member(member)?;
    }
    field.etcd.wait_healthy()?;
    field.end("b")
}
