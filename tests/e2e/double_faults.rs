//! Two things go wrong in one migration: the hosts lose sight of each other and a daemon dies, both daemons die at once, somebody asks
//! for a second migration or takes the first one back, at any step. Daemons are held at a step while that happens, so that it happens
//! there and nowhere else.
//!
//! `make test` tries some steps, `make faults` all of them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tranship_tests::broken_criu::{break_criu, mend_criu};
use tranship_tests::faults::{self, Point, REACHED, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::oracles::is_frozen;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options, daemon};
use tranship_tests::tranship::wait_for;

/// What is in doubt is decided within this time of the hosts seeing each other again.
const AT_LAST: Duration = Duration::from_secs(10);
/// How long hosts do not see each other, or one of them is away: long enough for the other one to notice and to try things.
const APART: Duration = Duration::from_secs(3);
/// A person who cancels is not kept waiting longer.
const PROMPT: Duration = Duration::from_secs(1);
/// A daemon's answer to somebody who asks for what cannot be.
const ANSWER: Duration = Duration::from_secs(5);

/// Before it the source owns the container, behind it the destination.
const COMMIT: &str = "source:journal-committed";
/// The first step of a destination that knows of the commit.
const GO: &str = "destination:receive-go";

/// A step, who runs the container when the source's daemon dies there, and who when the destination's does.
type Step = (&'static str, &'static str, &'static str);

/// A source that has been told that all is ready needs nobody for its commit.
const STEPS: [Step; 21] = [
    ("source:journal-intent", "a", "a"),
    ("source:send-reserve", "a", "a"),
    ("source:track-memory", "a", "a"),
    ("source:journal-freezing", "a", "a"),
    ("source:cut-network", "a", "a"),
    ("source:dump", "a", "a"),
    ("source:finish-dump", "a", "a"),
    ("source:receive-ready", "a", "b"),
    (COMMIT, "a", "b"),
    ("source:send-go", "b", "b"),
    ("source:receive-running", "b", "b"),
    ("source:remove-copy", "b", "b"),
    ("destination:journal-reserved", "a", "a"),
    ("destination:restore-held", "a", "a"),
    ("destination:journal-ready", "a", "a"),
    ("destination:send-ready", "a", "a"),
    (GO, "b", "b"),
    ("destination:journal-resuming", "b", "b"),
    ("destination:release", "b", "b"),
    ("destination:adopt", "b", "b"),
    ("destination:journal-running", "b", "b"),
];

/// Where both daemons die at once, and who runs the container.
const BOTH: [(&str, &str); 7] = [
    ("source:dump", "a"),
    (COMMIT, "a"),
    ("source:send-go", "b"),
    ("destination:journal-resuming", "b"),
    ("destination:release", "b"),
    ("destination:adopt", "b"),
    ("source:remove-copy", "b"),
];

#[test]
fn a_second_fault_beside_the_first_changes_nothing() -> Result<()> {
    let mut field = with_a_third_host()?;
    cut_and_dead(&mut field, STEPS[5], "b");
    cut_and_dead(&mut field, STEPS[9], "a");
    both_dead(&mut field, BOTH[1], "b");
    both_dead(&mut field, BOTH[2], "a");
    for point in ["source:describe", "source:dump"] {
        asked_twice(&mut field, point);
    }
    for point in ["source:track-memory", "destination:restore-held"] {
        cancelled(&mut field, point, true);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_cut_link_and_a_daemon_that_dies_at_any_step_leave_one_owner() -> Result<()> {
    let mut field = Field::begin()?;
    for step in STEPS {
        for victim in ["a", "b"] {
            cut_and_dead(&mut field, step, victim);
        }
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn both_daemons_that_die_at_the_commit_leave_one_owner() -> Result<()> {
    let mut field = Field::begin()?;
    for step in BOTH {
        for first in ["a", "b"] {
            both_dead(&mut field, step, first);
        }
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_link_that_is_cut_while_daemons_recover_keeps_the_container_still_until_it_is_back() -> Result<()> {
    let mut field = Field::begin()?;
    for (point, victims) in [
        ("source:send-go", &["a"][..]),
        (COMMIT, &["b"]),
        ("source:send-go", &["b"]),
        ("source:send-go", &["a", "b"]),
        (GO, &["a", "b"]),
    ] {
        cut_while_recovering(&mut field, point, victims);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_container_that_cannot_be_restored_behind_the_commit_is_given_back() -> Result<()> {
    let mut field = Field::begin()?;
    for point in [GO, "destination:journal-resuming", "destination:release"] {
        given_back(&mut field, point);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_second_migration_is_refused_at_any_step_of_the_first() -> Result<()> {
    let mut field = with_a_third_host()?;
    for point in steps_of_roles(&field)? {
        asked_twice(&mut field, &point);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn a_migration_can_be_cancelled_at_any_step_before_its_commit() -> Result<()> {
    let mut field = Field::begin()?;
    let points = steps_of_roles(&field)?;
    let place = |step: &str| points.iter().position(|point| point == step);
    let (commit, go) = (place(COMMIT).context("a commit")?, place(GO).context("a go")?);
    for (index, point) in points.iter().enumerate() {
        let early = if host_of(point) == "a" {
            index < commit
        } else {
            index < go
        };
        cancelled(&mut field, point, early);
    }
    field.end()
}

/// The steps of the roles in a migration from a to b, at which daemons can be held without holding everything.
fn steps_of_roles(field: &Field) -> Result<Vec<String>> {
    let points = field.discover()?.into_iter().filter(Point::is_of_role);
    Ok(points.map(|point| point.name).collect())
}

fn with_a_third_host() -> Result<Field> {
    let options = Options {
        hosts: 3,
        ..Options::default()
    };
    Field::begin_with(&options, &[])
}

/// A migration from a to b that is held at a point.
fn held_at(scenario: &Scenario, point: &str) -> Result<String> {
    let host = scenario.host(host_of(point))?;
    faults::plan(host, &format!("{point} hold"))?;
    let id = scenario
        .host("a")?
        .tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(host, point)?;
    Ok(id)
}

fn in_time<T>(course: &Course<T>, entitled: &str) -> Result<()> {
    ensure!(course.owner == entitled, "{} runs it", course.owner);
    ensure!(course.decided < AT_LAST, "it took {:?}", course.decided);
    Ok(())
}

/// The hosts lose sight of each other, and one daemon dies. It starts again before they see each other.
fn cut_and_dead(field: &mut Field, (point, if_source, if_destination): Step, victim: &str) {
    let strike = |scenario: &Scenario| {
        held_at(scenario, point)?;
        scenario.bed()?.set_link("b", false)?;
        daemon::kill(scenario.host(victim)?)?;
        faults::forget_plans(scenario.host(host_of(point))?)?;
        sleep(APART);
        faults::start(scenario.host(victim)?)?;
        sleep(PROMPT);
        scenario.bed()?.set_link("b", true)
    };
    let entitled = if victim == "a" { if_source } else { if_destination };
    field.attempt(
        &format!("at {point} the link is cut and {victim}'s daemon dies"),
        strike,
        |course| in_time(course, entitled),
    );
}

/// Both daemons die; one is back before the other.
fn both_dead(field: &mut Field, (point, entitled): (&str, &str), first: &str) {
    let strike = |scenario: &Scenario| {
        held_at(scenario, point)?;
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        for host in [a, b] {
            daemon::kill(host)?;
            faults::forget_plans(host)?;
        }
        let (first, second) = if first == "a" { (a, b) } else { (b, a) };
        faults::start(first)?;
        sleep(APART);
        faults::start(second)
    };
    field.attempt(
        &format!("at {point} both daemons die, {first} is back first"),
        strike,
        |course| in_time(course, entitled),
    );
}

/// The source has committed or is about to, the hosts lose sight of each other, daemons die and start again. Nobody runs the container
/// until the link is back.
fn cut_while_recovering(field: &mut Field, point: &str, victims: &[&str]) {
    let strike = |scenario: &Scenario| {
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        let record = a.container("redis")?;
        let container = record["id"].as_str().context("a container has an id")?;
        held_at(scenario, point)?;
        scenario.bed()?.set_link("b", false)?;
        for victim in victims {
            daemon::kill(scenario.host(victim)?)?;
        }
        faults::forget_plans(scenario.host(host_of(point))?)?;
        for victim in victims {
            faults::start(scenario.host(victim)?)?;
        }
        let since = Instant::now();
        while since.elapsed() < 2 * APART {
            ensure!(
                is_frozen(a, container)?,
                "it runs at a after {:?}",
                since.elapsed()
            );
            let there = b.try_tranship(&["inspect", "redis"])?;
            ensure!(
                !there.status.success() || b.container("redis")?["state"] != "running",
                "it runs at b after {:?}",
                since.elapsed()
            );
        }
        scenario.bed()?.set_link("b", true)
    };
    field.attempt(
        &format!("at {point} the link is cut, {} restarted", victims.join(" and ")),
        strike,
        |course| in_time(course, "b"),
    );
}

/// The destination's daemon dies behind the commit, and the CRIU that is to restore the container once more fails.
fn given_back(field: &mut Field, point: &str) {
    let strike = |scenario: &Scenario| {
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        held_at(scenario, point)?;
        daemon::kill(b)?;
        faults::forget_plans(b)?;
        break_criu(b, "CRIU_FAULT=6 exec \"$real\" \"$@\"")?;
        faults::start(b)?;
        wait_for("the source to run it again", REACHED, || {
            Ok(state(a)? == "running")
        })?;
        daemon::stop(b)?;
        mend_criu(b)?;
        faults::start(b)
    };
    let told = format!("at {point} the destination's daemon dies, and its CRIU cannot restore again");
    field.attempt(&told, strike, |course| in_time(course, "a"));
}

/// Somebody asks both hosts for another migration of the container, to where it is on its way and to where nobody knows of it.
fn asked_twice(field: &mut Field, point: &str) {
    let strike = |scenario: &Scenario| {
        let (a, b) = (scenario.host("a")?, scenario.host("b")?);
        let id = held_at(scenario, point)?;
        let before = [state(a)?, state(b)?];
        let mut told = Vec::new();
        // The first one may come to its end meanwhile.
        for to in ["b", "c"] {
            let why = refused(a, to)?;
            let after = state(a)?;
            ensure!(
                after == before[0] || after == "moved",
                "at a it was {}, is {after} after {why}",
                before[0]
            );
            told.push(why);
        }
        // Who has the container already may be asked to move it on; nobody else.
        for to in ["a", "c"] {
            if before[1] == "running" {
                continue;
            }
            let why = refused(b, to)?;
            let after = state(b)?;
            ensure!(
                after == before[1],
                "at b it was {}, is {after} after {why}",
                before[1]
            );
            told.push(why);
        }
        faults::let_go(scenario.host(host_of(point))?, point)?;
        let outcome = outcome(a, &id)?;
        ensure!(outcome == "done", "the first one is {outcome}");
        eprintln!("{} at a, {} at b: {}", before[0], before[1], told.join("; "));
        Ok(())
    };
    field.attempt(&format!("asked for again at {point}"), strike, |course| {
        in_time(course, "b")
    });
}

/// Asks for a migration that must not be, and answers why not.
fn refused(host: &Host, to: &str) -> Result<String> {
    let asked = host.try_tranship(&["migrate", "--detach", "redis", to])?;
    if !asked.status.success() {
        return Ok(asked.errors());
    }
    let id = asked.text();
    let mut record = serde_json::Value::Null;
    wait_for("the second one to be refused", ANSWER, || {
        record = host.tranship_json(&["migrate", "status", &id])?;
        Ok(record["outcome"] != "running")
    })?;
    ensure!(record["outcome"] != "done", "it moved: {record}");
    let why = format!("{} {}", record["error"], record["blockers"]);
    let clear = [
        "already",
        "is being migrated",
        "is not running",
        "has moved",
        "no volume",
    ];
    ensure!(
        clear.iter().any(|word| why.contains(word)),
        "it is not told why it is refused: {record}"
    );
    Ok(why)
}

fn state(host: &Host) -> Result<String> {
    let found = host.try_tranship(&["inspect", "redis"])?;
    if !found.status.success() {
        return Ok("not there".to_owned());
    }
    let record = host.container("redis")?;
    Ok(record["state"].as_str().unwrap_or_default().to_owned())
}

fn outcome(host: &Host, migration: &str) -> Result<String> {
    let mut outcome = String::new();
    wait_for("the migration to end", REACHED, || {
        let record = host.tranship_json(&["migrate", "status", migration])?;
        outcome = record["outcome"].as_str().unwrap_or_default().to_owned();
        Ok(outcome != "running")
    })?;
    Ok(outcome)
}

/// Somebody cancels a migration, which may be too late. A destination is not let go before the source has done with it.
fn cancelled(field: &mut Field, point: &str, early: bool) {
    let strike = |scenario: &Scenario| {
        let a = scenario.host("a")?;
        let id = held_at(scenario, point)?;
        let asked = Instant::now();
        let accepted = a.try_tranship(&["migrate", "cancel", &id])?;
        let of_source = host_of(point) == "a";
        if of_source || !accepted.status.success() {
            faults::let_go(scenario.host(host_of(point))?, point)?;
        }
        let outcome = outcome(a, &id)?;
        let took = asked.elapsed();
        if !of_source && accepted.status.success() {
            faults::forget_plans(scenario.host("b")?)?;
        }
        eprintln!("{outcome} after {took:?} {}", accepted.errors());
        ensure!(
            accepted.status.success() == early,
            "accepted: {}",
            accepted.status.success()
        );
        let right = if early { "cancelled" } else { "done" };
        ensure!(outcome == right, "it is {outcome}");
        ensure!(!early || took < 2 * PROMPT, "it took {took:?}");
        Ok(())
    };
    field.attempt(&format!("cancelled at {point}"), strike, |course| {
        in_time(course, if early { "a" } else { "b" })
    });
}
