//! Hosts that are gone: for a while, for ever, or switched off. A person decides where nobody else can, the host that comes back obeys,
//! and what a destination cannot bring to run it gives back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::faults;
use tranship_tests::halfway::{READY, counted_on, hold_at_ready, state};
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::is_frozen;
use tranship_tests::owner::the_one_of;
use tranship_tests::power::switch_off;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, daemon};
use tranship_tests::tranship::wait_for;

/// What daemons and migrations may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// A host that comes back obeys within this time.
const AT_LAST: Duration = Duration::from_secs(10);

/// Two hosts whose daemons obey plans, a Redis on a, and a client that counts.
struct Field {
    scenario: Scenario,
    counter: Counter,
    container: String,
    epoch: u64,
}

impl Field {
    fn begin() -> Result<Self> {
        let scenario = Scenario::begin(&["redis"])?;
        let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
        faults::arm(&[a, b])?;
        images::run_redis(a, "redis", "data", client)?;
        let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
        let record = a.container("redis")?;
        let container = record["id"]
            .as_str()
            .context("the container has no id")?
            .to_owned();
        let epoch = epoch(a)?;
        Ok(Self {
            scenario,
            counter,
            container,
            epoch,
        })
    }

    fn hosts(&self) -> Result<(&Host, &Host)> {
        Ok((self.scenario.host("a")?, self.scenario.host("b")?))
    }

    fn migrate_to_ready(&self) -> Result<String> {
        let (a, _) = self.hosts()?;
        let id = hold_at_ready(a, "redis")?;
        ensure!(is_frozen(a, &self.container)?, "it does not stand still");
        Ok(id)
    }

    /// One host runs the container, the client goes on as if nothing had happened, and it moves like any other.
    fn end(self, owner: &str) -> Result<()> {
        let Self {
            scenario, counter, ..
        } = self;
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        counted_on(owner, [a, b], counter)?;
        let (from, to) = if owner == "a" { (a, b) } else { (b, a) };
        // What a host that was decided against has kept is in the way.
        if to.tranship(&["volume", "ls"])?.contains("data") {
            to.tranship(&["volume", "rm", "data"])?;
        }
        from.migrate("redis", to.name()).context("afterwards")?;
        faults::disarm(&[a, b])?;
        scenario.end()
    }
}

fn epoch(host: &Host) -> Result<u64> {
    let record = host.container("redis")?;
    // A number of 64 bits is text in JSON.
    let epoch = &record["epoch"];
    let text = epoch
        .as_str()
        .map(str::to_owned)
        .unwrap_or_else(|| epoch.to_string());
    Ok(text.parse()?)
}

fn wait_state(host: &Host, wanted: &str, within: Duration) -> Result<()> {
    wait_for(
        &format!("the container on {} to be {wanted}", host.name()),
        within,
        || Ok(state(host, "redis")? == wanted),
    )
}

/// Decides that the container is `owner`'s; what was said about that beforehand.
fn resolve(at: &Host, id: &str, owner: &str) -> Result<String> {
    let mut told = String::new();
    wait_for("the migration to be in doubt", PATIENCE, || {
        let planned = at.try_tranship(&["migrate", "resolve", id, "--owner", owner])?;
        told = planned.errors();
        Ok(planned.status.code() == Some(2))
    })?;
    ensure!(told.contains("nothing was changed"), "{told}");
    at.tranship(&["migrate", "resolve", id, "--owner", owner, "--yes"])?;
    Ok(told)
}

#[test]
fn a_container_whose_destination_is_gone_runs_on_at_its_source_when_a_person_says_so() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    faults::plan(a, "source:journal-committed kill-after")?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    wait_for("the source to die behind its commit", PATIENCE, || {
        Ok(daemon::pid(a).is_none())
    })?;
    switch_off(b)?;
    faults::start(a)?;
    wait_state(a, "in_doubt", PATIENCE)?;
    let other = a.try_tranship(&["migrate", "resolve", &id, "--owner", "c", "--yes"])?;
    ensure!(
        other.status.code() == Some(2),
        "{}: {}",
        other.status,
        other.errors()
    );
    ensure!(is_frozen(a, &field.container)?, "it was let run");
    let told = resolve(a, &id, "a")?;
    ensure!(told.contains("two of it"), "{told}");
    wait_state(a, "running", PATIENCE)?;
    ensure!(epoch(a)? == field.epoch + 2, "the epoch is {}", epoch(a)?);
    let again = a.try_tranship(&["migrate", "resolve", &id, "--owner", "a", "--yes"])?;
    ensure!(
        again.status.code() == Some(4),
        "{}: {}",
        again.status,
        again.errors()
    );
    faults::start(b)?;
    wait_state(b, "none", AT_LAST)?;
    field.end("a")
}

#[test]
fn a_container_whose_source_is_gone_runs_at_its_destination_when_a_person_says_so() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    let id = field.migrate_to_ready()?;
    switch_off(a)?;
    resolve(b, &id, "b")?;
    wait_state(b, "running", PATIENCE)?;
    faults::forget_plans(a)?;
    faults::start(a)?;
    wait_state(a, "moved", AT_LAST)?;
    ensure!(
        a.tranship(&["volume", "ls"])?.contains("data"),
        "its volume was not kept"
    );
    field.end("b")
}

#[test]
fn a_host_that_was_decided_against_obeys_also_when_it_runs_the_container() -> Result<()> {
    let Field {
        scenario, counter, ..
    } = Field::begin()?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    faults::plan(b, "destination:journal-running kill-after")?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    wait_for("the destination to die behind its last record", PATIENCE, || {
        Ok(daemon::pid(b).is_none())
    })?;
    daemon::kill(a)?;
    faults::start(a)?;
    wait_state(a, "in_doubt", PATIENCE)?;
    resolve(a, &id, "a")?;
    // A person was wrong: there are two of it now, until the other host is back.
    wait_state(a, "running", PATIENCE)?;
    faults::start(b)?;
    wait_state(b, "moved", AT_LAST)?;
    ensure!(
        b.tranship(&["volume", "ls"])?.contains("data"),
        "its volume was not kept"
    );
    b.tranship(&["volume", "rm", "data"])?;
    ensure!(
        state(a, "redis")? == "running",
        "on a it is {}",
        state(a, "redis")?
    );
    // Its client was answered by both.
    drop(counter);
    a.migrate("redis", "b")?;
    faults::disarm(&[a, b])?;
    scenario.end()
}

/// Three hosts whose daemons obey plans, and a Redis on a.
fn three_hosts() -> Result<Scenario> {
    let options = Options {
        hosts: 3,
        ..Options::default()
    };
    let scenario = Scenario::begin_with(&options, &["redis"])?;
    let (a, client) = (scenario.host("a")?, scenario.host("client")?);
    faults::arm(&[a, scenario.host("b")?, scenario.host("c")?])?;
    images::run_redis(a, "redis", "data", client)?;
    Ok(scenario)
}

/// The container is the owner's alone now, under `owned`, what is on c of it has ended, and it moves there like any other.
fn ends_on_c(scenario: Scenario, owner: &str, owned: u64) -> Result<()> {
    let [a, b, c] = ["a", "b", "c"].map(|name| scenario.host(name));
    let (hosts, owner) = ([a?, b?, c?], scenario.host(owner)?);
    let c = hosts[2];
    wait_state(c, "moved", AT_LAST)?;
    the_one_of("redis", &hosts)?;
    ensure!(epoch(owner)? == owned, "the epoch is {}", epoch(owner)?);
    let moved_to = &c.container("redis")?["moved_to"];
    ensure!(moved_to == owner.name(), "it moved to {moved_to}");
    ensure!(
        c.tranship(&["volume", "ls"])?.contains("data"),
        "its volume was not kept"
    );
    c.tranship(&["volume", "rm", "data"])?;
    owner.migrate("redis", "c").context("afterwards")?;
    faults::disarm(&hosts)?;
    scenario.end()
}

#[test]
fn a_container_that_went_on_from_a_destination_that_was_decided_against_ends_where_it_went() -> Result<()> {
    let scenario = three_hosts()?;
    let (a, b, c) = (scenario.host("a")?, scenario.host("b")?, scenario.host("c")?);
    let began = epoch(a)?;
    faults::plan(a, "source:receive-running kill-before")?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    wait_for("the source to die before it hears", PATIENCE, || {
        Ok(daemon::pid(a).is_none())
    })?;
    wait_state(b, "running", PATIENCE)?;
    b.migrate("redis", "c")?;
    daemon::kill(b)?;
    faults::start(a)?;
    wait_state(a, "in_doubt", PATIENCE)?;
    resolve(a, &id, "a")?;
    // A person was wrong: there are two of it now, and each has the same epoch.
    wait_state(a, "running", PATIENCE)?;
    ensure!(state(c, "redis")? == "running", "it does not run on c");
    ensure!(epoch(a)? == epoch(c)?, "{} and {}", epoch(a)?, epoch(c)?);
    faults::start(b)?;
    ends_on_c(scenario, "a", began + 3)
}

#[test]
fn a_container_that_went_on_from_a_source_that_was_decided_against_ends_where_it_went() -> Result<()> {
    let scenario = three_hosts()?;
    let (a, b, c) = (scenario.host("a")?, scenario.host("b")?, scenario.host("c")?);
    let began = epoch(a)?;
    let id = hold_at_ready(a, "redis")?;
    daemon::kill(b)?;
    daemon::kill(a)?;
    faults::forget_plans(a)?;
    faults::start(a)?;
    wait_state(a, "running", PATIENCE)?;
    a.migrate("redis", "c")?;
    daemon::kill(a)?;
    faults::start(b)?;
    resolve(b, &id, "b")?;
    wait_state(b, "running", PATIENCE)?;
    ensure!(state(c, "redis")? == "running", "it does not run on c");
    ensure!(epoch(b)? == epoch(c)?, "{} and {}", epoch(b)?, epoch(c)?);
    // The host it went on to is away for a while, too.
    daemon::kill(c)?;
    faults::start(a)?;
    wait_for("b to have it under a higher epoch", AT_LAST, || {
        Ok(epoch(b)? == began + 2)
    })?;
    faults::start(c)?;
    ends_on_c(scenario, "b", began + 2)
}

#[test]
fn a_destination_that_cannot_restore_gives_the_container_back() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    let id = field.migrate_to_ready()?;
    daemon::kill(b)?;
    faults::plan(b, &["destination:restore-held error"; 4].join("\n"))?;
    faults::let_go(a, READY)?;
    wait_for("the source to commit", PATIENCE, || {
        Ok(faults::log(a)?
            .iter()
            .any(|point| point == "source:journal-committed"))
    })?;
    faults::start(b)?;
    wait_state(a, "running", PATIENCE)?;
    ensure!(epoch(a)? == field.epoch + 2, "the epoch is {}", epoch(a)?);
    let record = a.tranship_json(&["migrate", "status", &id])?;
    ensure!(record["outcome"] == "rolled_back", "{record}");
    wait_state(b, "none", AT_LAST)?;
    field.end("a")
}

#[test]
fn a_source_that_was_switched_off_hands_over_to_a_destination_that_is_ready() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    field.migrate_to_ready()?;
    switch_off(a)?;
    faults::forget_plans(a)?;
    faults::boot_anew(a)?;
    faults::start(a)?;
    wait_state(b, "running", AT_LAST)?;
    field.end("b")
}

#[test]
fn a_destination_that_was_switched_off_gives_back_what_it_has_not_run() -> Result<()> {
    let field = Field::begin()?;
    let (a, b) = field.hosts()?;
    field.migrate_to_ready()?;
    switch_off(b)?;
    faults::boot_anew(b)?;
    // It commits, since it has heard all it needs.
    faults::let_go(a, READY)?;
    faults::start(b)?;
    wait_state(a, "running", PATIENCE)?;
    ensure!(epoch(a)? == field.epoch + 2, "the epoch is {}", epoch(a)?);
    wait_state(b, "none", AT_LAST)?;
    field.end("a")
}
