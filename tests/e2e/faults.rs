//! The daemon dies before or after every step of a handoff, or the step fails; then what recovers from that dies once, too. However
//! that ends, one host runs the container, its client's connection goes on, no increment is lost, and nothing is left.
//!
//! The steps are not listed here: a migration that nothing happens to tells them, and so does each recovery. `make test` tries the
//! steps of the journal, `make faults` all of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::owner::the_one_that_runs;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// A build of the daemon that obeys a plan.
const PROGRAM: &str = "transhipd-faults";
/// Names the directory with the plan and the log of what came of it.
const VARIABLE: &str = "TRANSHIP_FAULTS";

/// Until a fault that is planned has come, and after that until the next one has.
const REACHED: Duration = Duration::from_secs(10);
/// A daemon that was killed has ended by then.
const DYING: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_millis(5);

/// The step behind which the destination owns the container.
const COMMIT: &str = "source:journal-committed";

/// A Redis that never forks: its processes are counted.
const NO_CHILDREN: [&str; 4] = ["--save", "", "--auto-aof-rewrite-percentage", "0"];

const DEEDS: [&str; 3] = ["kill-before", "kill-after", "error"];

#[derive(Clone, Debug)]
struct Fault {
    point: String,
    deed: &'static str,
}

#[test]
fn each_step_of_the_journal_may_be_the_last() -> Result<()> {
    let mut field = Field::begin()?;
    let points = field.discover()?;
    let faults: Vec<_> = all_faults(points.iter().filter(|point| point.contains(":journal-"))).collect();
    for fault in faults {
        field.attempt(&[fault]);
    }
    field.end()
}

#[test]
#[ignore = "takes long: make faults"]
fn every_point_may_fail_or_be_the_last_and_so_may_its_recovery() -> Result<()> {
    let mut field = Field::begin()?;
    let points = field.discover()?;
    let mut known: BTreeSet<String> = points.iter().cloned().collect();
    let mut seconds = Vec::new();
    for first in all_faults(points.iter()) {
        let passed = field.attempt(std::slice::from_ref(&first));
        // What only a recovery passes is tried behind the first fault that led there.
        for point in passed.iter().filter(|point| known.insert((*point).clone())) {
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
        field.attempt(&faults);
    }
    field.end()
}

fn all_faults<'a>(points: impl Iterator<Item = &'a String>) -> impl Iterator<Item = Fault> {
    points.flat_map(|point| {
        // Whether a record that failed is there all the same is for nobody to know.
        let in_doubt = point.contains(":journal-").then_some("error-after");
        DEEDS.into_iter().chain(in_doubt).map(|deed| Fault {
            point: point.clone(),
            deed,
        })
    })
}

/// Two hosts whose daemons obey plans, and a container on the first.
struct Field {
    scenario: Scenario,
    before_commit: BTreeSet<String>,
    passed: usize,
    failed: Vec<String>,
    disorder: Option<String>,
    not_reached: usize,
    /// The longest wait of the client in each attempt after which the source still ran it.
    waits_us: Vec<u64>,
}

/// How an attempt went.
struct Course {
    /// The points that were passed after the first fault.
    passed: Vec<String>,
    all_came: bool,
    wait_us: u64,
    stayed: bool,
}

impl Field {
    fn begin() -> Result<Self> {
        let scenario = Scenario::begin(&["redis"])?;
        let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
        for host in [a, b] {
            daemon::stop(host)?;
            fs::create_dir_all(directory(host))?;
            plan(host, "")?;
            fs::write(directory(host).join("log"), "")?;
            start(host)?;
        }
        images::run_redis_with(a, "redis", "data", client, &NO_CHILDREN)?;
        Ok(Self {
            scenario,
            before_commit: BTreeSet::new(),
            passed: 0,
            failed: Vec::new(),
            disorder: None,
            not_reached: 0,
            waits_us: Vec::new(),
        })
    }

    /// Who must run the container after this: of a fault at the source it is known whether it had committed.
    fn entitled(&self, fault: &Fault) -> Option<&'static str> {
        let committed = match fault.deed {
            "kill-before" | "error" if fault.point == COMMIT => false,
            _ if fault.host() == "a" => !self.before_commit.contains(&fault.point),
            _ => return None,
        };
        Some(if committed { "b" } else { "a" })
    }

    /// The points of a migration that nothing happens to.
    fn discover(&mut self) -> Result<Vec<String>> {
        let (a, b) = (self.scenario.host("a")?, self.scenario.host("b")?);
        // The first takes the image along, which no other one does.
        for (from, to) in [(a, "b"), (b, "a")] {
            from.migrate("redis", to)?;
        }
        for host in [a, b] {
            fs::write(directory(host).join("log"), "")?;
        }
        a.migrate("redis", "b")?;
        let mut points = Vec::new();
        for host in [a, b] {
            for point in log(host)? {
                if !points.contains(&point) {
                    points.push(point);
                }
            }
        }
        let commit = points.iter().position(|point| point == COMMIT);
        let commit = commit.context("no point is the commit")?;
        let sources = points[..commit]
            .iter()
            .filter(|point| point.starts_with("source:"));
        self.before_commit = sources.cloned().collect();
        eprintln!("{} points: {}", points.len(), points.join(" "));
        b.migrate("redis", "a")?;
        Ok(points)
    }

    /// A migration in which these faults come, one after the other. Answers the points that were passed after the first.
    fn attempt(&mut self, faults: &[Fault]) -> Vec<String> {
        let told = faults
            .iter()
            .map(|fault| format!("{} {}", fault.point, fault.deed));
        let told = told.collect::<Vec<_>>().join(", then ");
        let begun = Instant::now();
        match self.try_out(faults) {
            Ok(course) => {
                let how = if course.all_came {
                    ""
                } else {
                    " (the second fault was not reached)"
                };
                eprintln!(
                    "passed in {:.1?}, the client waited {} ms: {told}{how}",
                    begun.elapsed(),
                    course.wait_us / 1000
                );
                self.passed += 1;
                self.not_reached += usize::from(!course.all_came);
                self.waits_us.extend(course.stayed.then_some(course.wait_us));
                course.passed
            }
            Err(error) => {
                eprintln!("FAILED after {:.1?}: {told}: {error:#}", begun.elapsed());
                self.failed.push(format!("{told}: {error:#}"));
                if let Err(error) = self.tidy_up() {
                    self.disorder = Some(format!("{error:#}"));
                }
                Vec::new()
            }
        }
    }

    fn try_out(&self, faults: &[Fault]) -> Result<Course> {
        let (a, b, client) = (
            self.scenario.host("a")?,
            self.scenario.host("b")?,
            self.scenario.host("client")?,
        );
        if let Some(disorder) = &self.disorder {
            bail!("not tried: an earlier one has left things in disorder: {disorder}");
        }
        let before = Inventory::take(self.scenario.bed()?)?;
        let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
        for host in [a, b] {
            fs::write(directory(host).join("log"), "")?;
            let of_host = faults.iter().filter(|fault| fault.host() == host.name());
            let lines: Vec<String> = of_host
                .map(|fault| format!("{} {}", fault.point, fault.deed))
                .collect();
            plan(host, &lines.join("\n"))?;
        }
        // It may die before it has answered.
        a.try_tranship(&["migrate", "--detach", "redis", "b"])?;
        let all_came = self.let_come([a, b], faults)?;
        let owner = the_one_that_runs("redis", a, b)?;
        let entitled = self.entitled(&faults[0]);
        ensure!(
            entitled.is_none_or(|entitled| entitled == owner.name()),
            "{} runs it",
            owner.name()
        );
        let address = owner.address_of("redis", REDIS_PORT)?;
        wait_for("somebody else to get an answer", REACHED, || {
            Ok(images::ask_redis(client, address, "PING")? == "PONG")
        })?;
        let counted = counter.stop()?.checked()?;
        let mut passed = log(a)?;
        passed.extend(log(b)?);
        let first = passed.iter().position(|line| line.contains(' '));
        let mut passed = passed.split_off(first.map_or(0, |first| first + 1));
        if owner.name() == "b" {
            b.migrate("redis", "a").context("on the way back")?;
        }
        wait_for("the hosts to be as they were", REACHED, || {
            let as_before = before.expect_unchanged_but(self.scenario.bed()?, |line| {
                line.contains("/overlay/layers/") || line.contains("/overlay/staging/")
            });
            as_before.map(|()| true)
        })?;
        passed.retain(|line| !line.contains(' '));
        Ok(Course {
            passed,
            all_came,
            wait_us: counted.longest_stall_us(),
            stayed: owner.name() == "a",
        })
    }

    /// After a failure: as it was before, as far as the next attempt needs it.
    fn tidy_up(&self) -> Result<()> {
        let (a, b) = (self.scenario.host("a")?, self.scenario.host("b")?);
        for host in [a, b] {
            plan(host, "")?;
            daemon::kill(host)?;
            start(host)?;
        }
        if the_one_that_runs("redis", a, b)?.name() == "b" {
            b.migrate("redis", "a")?;
        }
        Ok(())
    }

    /// Starts again whoever dies, until all faults have come and both live. Answers whether all have come.
    fn let_come(&self, hosts: [&Host; 2], faults: &[Fault]) -> Result<bool> {
        let mut since = Instant::now();
        let mut open = faults.len();
        loop {
            let mut left = 0;
            for host in hosts {
                left += fs::read_to_string(directory(host).join("plan"))?.lines().count();
            }
            if left < open {
                (open, since) = (left, Instant::now());
            }
            for host in hosts {
                if daemon::pid(host).is_none()
                    && let Err(error) = start(host)
                    && left == 0
                {
                    return Err(error);
                }
            }
            if left == 0 {
                // What was just killed may not have ended yet.
                let killed = faults.iter().any(|fault| fault.deed.starts_with("kill"));
                if !killed || since.elapsed() > DYING {
                    return Ok(true);
                }
            }
            if left > 0 && since.elapsed() > REACHED {
                if left == faults.len() {
                    bail!("the fault was not reached");
                }
                for host in hosts {
                    plan(host, "")?;
                }
                return Ok(false);
            }
            sleep(AGAIN);
        }
    }

    fn end(mut self) -> Result<()> {
        eprintln!(
            "{} passed, {} failed ({} of those that passed did not reach their second fault)",
            self.passed,
            self.failed.len(),
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
        ensure!(self.failed.is_empty(), "{}", self.failed.join("\n"));
        for host in [self.scenario.host("a")?, self.scenario.host("b")?] {
            daemon::stop(host)?;
            fs::remove_dir_all(directory(host))?;
            daemon::start(host)?;
        }
        self.scenario.end()
    }
}

impl Fault {
    fn host(&self) -> &'static str {
        if self.point.starts_with("source:") {
            "a"
        } else {
            "b"
        }
    }
}

fn directory(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("faults")
}

fn plan(host: &Host, lines: &str) -> Result<()> {
    Ok(fs::write(directory(host).join("plan"), lines)?)
}

/// The points that were passed, and the faults that came, in order.
fn log(host: &Host) -> Result<Vec<String>> {
    let text = fs::read_to_string(directory(host).join("log"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn start(host: &Host) -> Result<()> {
    let directory = directory(host);
    let directory = directory.to_str().context("the testbed's paths are text")?;
    daemon::start_program(host, PROGRAM, &[(VARIABLE, directory)])
}
