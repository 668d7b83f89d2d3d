//! Attempts, one after the other, on hosts whose daemons obey plans: each begins with a Redis on host a and a client that counts, and
//! however it ends, one host runs the Redis, no increment is lost or repeated, and everything is put back as it was.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::counter::Counter;
use crate::faults::{self, Passed, Point};
use crate::images::{self, REDIS_PORT};
use crate::journals;
use crate::oracles::Inventory;
use crate::owner::the_one_of;
use crate::scenario::Scenario;
use crate::testbed::{Host, Options, daemon, pool};
use crate::tranship::wait_for;

/// A Redis that never forks: its processes are counted.
const NO_CHILDREN: [&str; 4] = ["--save", "", "--auto-aof-rewrite-percentage", "0"];

/// Until somebody new gets an answer, and until the hosts are as they were.
const SOON: Duration = Duration::from_secs(10);

/// A testbed, and what came of the attempts on it.
#[derive(Debug)]
pub struct Field {
    /// Where it happens.
    pub scenario: Scenario,
    passed: usize,
    failed: Vec<String>,
    disorder: Option<String>,
    attempts: usize,
    /// What each source that lived took from learning of a failure to letting its container run, in microseconds.
    thaws_us: Vec<u64>,
}

/// What came of an attempt.
#[derive(Debug)]
pub struct Course<T> {
    /// What the blow has answered.
    pub struck: T,
    /// The host that ran the container in the end.
    pub owner: String,
    /// From the end of the blow, when every host can see every other one, until all agree who runs it.
    pub decided: Duration,
    /// What the client waited for at most.
    pub wait_us: u64,
    /// What the daemons have passed, host by host.
    pub passed: Vec<Passed>,
    /// From learning of a failure to letting the container run again, in microseconds, where the source did both.
    pub thawed_us: Option<u64>,
}

impl Field {
    /// Two hosts, and a Redis on the first.
    ///
    /// # Errors
    /// The testbed does not come up, or Redis does not.
    pub fn begin() -> Result<Self> {
        Self::begin_with(&Options::default(), &[])
    }

    /// A testbed to order, and more words on Redis's command line.
    ///
    /// # Errors
    /// As [`Field::begin`].
    pub fn begin_with(options: &Options, words: &[&str]) -> Result<Self> {
        let scenario = Scenario::begin_with(options, &["redis"])?;
        faults::arm(&scenario.bed()?.hosts().iter().collect::<Vec<_>>())?;
        images::run_redis_with(
            scenario.host("a")?,
            "redis",
            "data",
            scenario.host("client")?,
            &[&NO_CHILDREN[..], words].concat(),
        )?;
        Ok(Self {
            scenario,
            passed: 0,
            failed: Vec::new(),
            disorder: None,
            attempts: 0,
            thaws_us: Vec::new(),
        })
    }

    /// The points of a migration from a to b that nothing happens to: the source's, then the destination's. Those of the roles once, those
    /// below them as often as they are passed.
    ///
    /// # Errors
    /// It does not move.
    pub fn discover(&self) -> Result<Vec<Point>> {
        let (a, b) = (self.scenario.host("a")?, self.scenario.host("b")?);
        // The first takes the image along, which no other one does.
        for (from, to) in [(a, "b"), (b, "a")] {
            from.migrate("redis", to)?;
        }
        for host in [a, b] {
            faults::forget(host)?;
        }
        a.migrate("redis", "b")?;
        let mut points = Vec::new();
        for host in [a, b] {
            let passed = faults::passed(host)?.into_iter().map(|passed| passed.point);
            points.extend(passed.filter(|point| point.passes == 0 || !point.is_of_role()));
        }
        let told: Vec<_> = points.iter().map(Point::to_string).collect();
        eprintln!("{} points: {}", points.len(), told.join("; "));
        b.migrate("redis", "a")?;
        Ok(points)
    }

    /// One attempt: `strike` begins a migration from a and does what it wants to; when it returns every daemon runs and every cable is
    /// plugged in. `judge` demands what is to come of it. Answers nothing if it failed: that is remembered.
    pub fn attempt<T>(
        &mut self,
        told: &str,
        strike: impl FnOnce(&Scenario) -> Result<T>,
        judge: impl FnOnce(&Course<T>) -> Result<()>,
    ) -> Option<Course<T>> {
        let begun = Instant::now();
        self.attempts += 1;
        // Of a client that was given up a request may still be on its way.
        let key = format!("visits-{}", self.attempts);
        let tried = match &self.disorder {
            Some(disorder) => Err(anyhow!(
                "not tried: an earlier one has left things in disorder: {disorder}"
            )),
            None => try_out(&self.scenario, &key, strike, judge),
        };
        match tried {
            Ok(course) => {
                eprintln!(
                    "passed in {:.1?}: {told}: on {} after {:.1?}, the client waited {} ms",
                    begun.elapsed(),
                    course.owner,
                    course.decided,
                    course.wait_us / 1000
                );
                self.passed += 1;
                self.thaws_us.extend(course.thawed_us);
                Some(course)
            }
            Err(error) => {
                eprintln!("FAILED after {:.1?}: {told}: {error:#}", begun.elapsed());
                self.failed.push(format!("{told}: {error:#}"));
                if self.disorder.is_none()
                    && let Err(error) = tidy_up(&self.scenario)
                {
                    self.disorder = Some(format!("{error:#}"));
                }
                None
            }
        }
    }

    /// Says how many attempts passed and failed.
    ///
    /// # Errors
    /// Some failed, or something is left behind.
    pub fn end(mut self) -> Result<()> {
        self.thaws_us.sort_unstable();
        let at = |percent: usize| {
            self.thaws_us
                .get((self.thaws_us.len() * percent / 100).min(self.thaws_us.len().saturating_sub(1)))
        };
        if let (Some(median), Some(percentile), Some(longest)) = (at(50), at(99), at(100)) {
            eprintln!(
                "{} times a source let its container run again: {} ms after it had learned of the failure in the median, {} ms at the 99th percentile, {} ms at most",
                self.thaws_us.len(),
                median / 1000,
                percentile / 1000,
                longest / 1000
            );
        }
        eprintln!("{} passed, {} failed", self.passed, self.failed.len());
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        faults::disarm(&self.scenario.bed()?.hosts().iter().collect::<Vec<_>>())?;
        self.scenario.end()
    }
}

fn try_out<T>(
    scenario: &Scenario,
    key: &str,
    strike: impl FnOnce(&Scenario) -> Result<T>,
    judge: impl FnOnce(&Course<T>) -> Result<()>,
) -> Result<Course<T>> {
    let (a, client, bed) = (scenario.host("a")?, scenario.host("client")?, scenario.bed()?);
    let hosts: Vec<&Host> = bed.hosts().iter().collect();
    let before = Inventory::take(bed)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, key)?;
    for host in &hosts {
        faults::forget(host)?;
    }
    let struck = strike(scenario)?;
    let since = Instant::now();
    let owner = the_one_of("redis", &hosts)?;
    let decided = since.elapsed();
    let address = owner.address_of("redis", REDIS_PORT)?;
    wait_for("somebody else to get an answer", SOON, || {
        Ok(images::ask_redis(client, address, "PING")? == "PONG")
    })?;
    let counted = counter.stop()?.checked()?;
    let mut passed = Vec::new();
    for host in &hosts {
        faults::forget_plans(host)?;
        passed.extend(faults::passed(host)?);
    }
    let course = Course {
        struck,
        owner: owner.name().to_owned(),
        decided,
        wait_us: counted.longest_stall_us(),
        passed,
        thawed_us: thawed_us(a)?,
    };
    judge(&course)?;
    let record = owner.container("redis")?;
    let container = record["id"].as_str().context("a container has an id")?;
    journals::agree(container, &hosts, owner)?;
    bring_home(owner).context("on the way back")?;
    wait_for("the hosts to be as they were", SOON, || {
        let as_before = before.expect_unchanged_but(bed, |line| {
            line.contains("/overlay/layers/") || line.contains("/overlay/staging/")
        });
        as_before.map(|()| true)
    })?;
    Ok(course)
}

/// Of the last migration away from this host.
fn thawed_us(host: &Host) -> Result<Option<u64>> {
    let list = host.tranship(&["--format", "json", "migrate", "ls"])?;
    let all: Vec<Value> = list.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let Some(last) = all.iter().rfind(|migration| migration["role"] == "source") else {
        return Ok(None);
    };
    let id = last["id"].as_str().context("a migration has an id")?;
    let record = host.tranship_json(&["migrate", "status", id])?;
    let spans = record["spans"].as_array().map(Vec::as_slice).unwrap_or_default();
    let span = spans.iter().find(|span| span["name"] == "failure to thaw");
    Ok(span.and_then(|span| span["duration_us"].as_u64()))
}

fn bring_home(owner: &Host) -> Result<()> {
    if owner.name() != "a" {
        owner.migrate("redis", "a")?;
    }
    Ok(())
}

/// After a failure: as it was before, as far as the next attempt needs it.
fn tidy_up(scenario: &Scenario) -> Result<()> {
    let bed = scenario.bed()?;
    let hosts: Vec<&Host> = bed.hosts().iter().collect();
    bed.set_loss(0)?;
    for host in &hosts {
        faults::forget_plans(host)?;
        bed.set_link(host.name(), true)?;
        bed.set_rate(host.name(), "unlimited")?;
        // Where nothing was broken there is nothing to end, nor to give back where nothing was filled.
        bed.set_breaking(host.name(), false).ok();
        pool::empty(host).ok();
        daemon::kill(host)?;
        faults::start(host)?;
    }
    let owner = the_one_of("redis", &hosts)?;
    bring_home(owner)
}
