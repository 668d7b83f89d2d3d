//! The daemon dies before or after every step of a handoff, or the step fails; then what recovers from that dies once, too. However
//! that ends, one host runs the container, its client's connection goes on, no increment is lost, and nothing is left.
//!
//! The steps are not listed here: a migration that nothing happens to tells them, and so does each recovery. `make test` tries the
//! steps of the journal, `make faults` all of them. `FAULTS_AT="source:freeze kill-after"` in the environment leaves out every attempt
//! without these words.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tranship_tests::faults::{self, Fault, Point, REACHED};
use tranship_tests::field::{Course, Field};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};

/// A daemon that was killed has ended by then.
const DYING: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(5);

/// The step behind which the destination owns the container.
const COMMIT: &str = "source:journal-committed";

const DEEDS: [&str; 3] = ["kill-before", "kill-after", "error"];

#[test]
fn each_step_of_the_journal_may_be_the_last() -> Result<()> {
    let (mut trials, points) = Trials::begin()?;
    let journal = |point: &&Point| point.is_of_role() && point.name.contains(":journal-");
    let faults: Vec<_> = all_faults(points.iter().filter(journal)).collect();
    for fault in faults {
        trials.attempt(&[fault]);
    }
    trials.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn every_point_may_fail_or_be_the_last_and_so_may_its_recovery() -> Result<()> {
    let (mut trials, points) = Trials::begin()?;
    let place = |point: &Point| (point.host.clone(), point.name.clone());
    let mut known: BTreeSet<_> = points.iter().map(place).collect();
    let mut seconds = Vec::new();
    for first in all_faults(points.iter()) {
        let passed = trials.attempt(std::slice::from_ref(&first));
        // What only a recovery passes is tried behind the first fault that led there.
        for point in passed.iter().filter(|point| known.insert(place(point))) {
            seconds.extend(all_faults(std::iter::once(point)).map(|second| [first.clone(), second]));
        }
        // And each recovery dies once.
        if first.deed != "error"
            && let Some(point) = passed.first()
        {
            let second = Fault {
                point: point.clone(),
                deed: "kill-after",
            };
            seconds.push([first, second]);
        }
    }
    for faults in seconds {
        trials.attempt(&faults);
    }
    trials.end()
}

fn all_faults<'a>(points: impl Iterator<Item = &'a Point>) -> impl Iterator<Item = Fault> {
    points.flat_map(|point| {
        // Whether a record that failed is there all the same is for nobody to know.
        let is_record = point.name.contains(":journal-") || point.name.starts_with("registry:");
        let in_doubt = is_record.then_some("error-after");
        DEEDS.into_iter().chain(in_doubt).map(|deed| Fault {
            point: point.clone(),
            deed,
        })
    })
}

/// What comes of faults, one set of them after the other.
struct Trials {
    field: Field,
    /// Those of a migration that nothing happens to.
    points: BTreeSet<Point>,
    before_commit: BTreeSet<Point>,
    not_reached: usize,
    /// What an attempt must have in its name.
    only: Option<String>,
    tried: usize,
    /// The longest wait of the client in each attempt after which the source still ran it.
    waits_us: Vec<u64>,
}

impl Trials {
    /// The trials, and the points that there are.
    fn begin() -> Result<(Self, Vec<Point>)> {
        let field = Field::begin()?;
        let points = field.discover()?;
        let commit = points.iter().position(|point| point.name == COMMIT);
        let commit = commit.context("no point is the commit")?;
        let sources = points[..commit].iter().filter(|point| point.is_of_role());
        let trials = Self {
            before_commit: sources.cloned().collect(),
            points: points.iter().cloned().collect(),
            field,
            not_reached: 0,
            only: std::env::var("FAULTS_AT").ok(),
            tried: 0,
            waits_us: Vec::new(),
        };
        Ok((trials, points))
    }

    /// Who must run the container after this: of a fault at a step of the source it is known whether it had committed.
    fn entitled(&self, fault: &Fault) -> Option<&'static str> {
        let committed = match fault.deed {
            "kill-before" | "error" if fault.point.name == COMMIT => false,
            _ if fault.point.name.starts_with("source:") => !self.before_commit.contains(&fault.point),
            _ => return None,
        };
        Some(if committed { "b" } else { "a" })
    }

    /// A migration in which these faults come, one after the other. Answers the points that were passed after the first.
    fn attempt(&mut self, faults: &[Fault]) -> Vec<Point> {
        let told = faults
            .iter()
            .map(|fault| format!("{} {}", fault.point, fault.deed));
        let told = told.collect::<Vec<_>>().join(", then ");
        if self.only.as_ref().is_some_and(|only| !told.contains(only)) {
            return Vec::new();
        }
        self.tried += 1;
        let entitled = self.entitled(&faults[0]);
        let judge = |course: &Course<bool>| {
            let right = entitled.is_none_or(|entitled| entitled == course.owner);
            ensure!(right, "{} runs it", course.owner);
            Ok(())
        };
        let strike = |scenario: &Scenario| have_come(scenario, faults);
        let Some(course) = self.field.attempt(&told, strike, judge) else {
            return Vec::new();
        };
        if !course.struck {
            eprintln!("(the second fault was not reached)");
            self.not_reached += 1;
        }
        if course.owner == "a" {
            self.waits_us.push(course.wait_us);
        }
        let first = course.passed.iter().position(|passed| passed.struck);
        let behind = course.passed.into_iter().skip(first.map_or(0, |first| first + 1));
        // What the other host has passed may have been before, unless it has to do with a recovery.
        let host = &faults[0].point.host;
        behind
            .filter(|passed| !passed.struck)
            .map(|passed| passed.point)
            .filter(|point| point.host == *host || !self.points.contains(point))
            .collect()
    }

    fn end(mut self) -> Result<()> {
        ensure!(self.tried > 0, "no attempt has {:?} in its name", self.only);
        eprintln!(
            "{} of those that passed did not reach their second fault",
            self.not_reached
        );
        self.waits_us.sort_unstable();
        if let Some(longest_us) = self.waits_us.last() {
            eprintln!(
                "where the source kept it, {} times, the client waited {} ms in the median, {} ms at the 99th percentile, {} ms at most",
                self.waits_us.len(),
                self.waits_us[self.waits_us.len() / 2] / 1000,
                self.waits_us[self.waits_us.len() * 99 / 100] / 1000,
                longest_us / 1000
            );
        }
        self.field.end()
    }
}

/// Begins a migration with these faults in it. Answers whether all have come.
fn have_come(scenario: &Scenario, faults: &[Fault]) -> Result<bool> {
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    for host in [a, b] {
        let of_host = faults.iter().filter(|fault| fault.point.host == host.name());
        let lines: Vec<String> = of_host.map(Fault::line).collect();
        faults::plan(host, &lines.join("\n"))?;
    }
    // It may die before it has answered.
    a.try_tranship(&["migrate", "--detach", "redis", "b"])?;
    let_come([a, b], faults)
}

/// Starts again whoever dies, until all faults have come and both live. Answers whether all have come.
fn let_come(hosts: [&Host; 2], faults: &[Fault]) -> Result<bool> {
    let mut since = Instant::now();
    let mut open = faults.len();
    loop {
        let mut left = 0;
        for host in hosts {
            left += faults::planned(host)?;
        }
        if left < open {
            (open, since) = (left, Instant::now());
        }
        for host in hosts {
            if daemon::pid(host).is_none()
                && let Err(error) = faults::start(host)
                && left == 0
            {
                return Err(error);
            }
        }
        if left == 0 {
            // What was just killed may not have ended yet.
            let killed = faults.iter().any(Fault::is_deadly);
            if !killed || since.elapsed() > DYING {
                return Ok(true);
            }
        }
        if left > 0 && since.elapsed() > REACHED {
            if left == faults.len() {
                bail!("the fault was not reached");
            }
            for host in hosts {
                faults::plan(host, "")?;
            }
            return Ok(false);
        }
        sleep(AGAIN);
    }
}
