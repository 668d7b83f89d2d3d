//! Faults at exact moments. The program `transhipd-faults` obeys a plan: at a point that has a name it dies, or fails, or waits.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::testbed::{Host, daemon};
use crate::tranship::wait_for;

/// A build of the daemon that obeys a plan.
const PROGRAM: &str = "transhipd-faults";
/// Names the directory with the plan and the log of what came of it.
const VARIABLE: &str = "TRANSHIP_FAULTS";

/// Names the file there with more variables.
const ENVIRONMENT: &str = "environment";

/// Has the name of the machine's start that a daemon is told.
const BOOT: &str = "boot";

/// Until a point is reached at which something is planned.
pub const REACHED: Duration = Duration::from_secs(10);

/// A step of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Whose.
    pub host: String,
    /// As the daemon calls it: a step of a role, such as `source:freeze`, or one below those, such as `registry:insert-a-container`.
    pub name: String,
    /// How often the daemon comes there before.
    pub passes: usize,
}

impl Point {
    /// Whether it is a step of one of the roles, which come but once.
    #[must_use]
    pub fn is_of_role(&self) -> bool {
        ["source:", "destination:"]
            .iter()
            .any(|role| self.name.starts_with(role))
    }
}

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_of_role(), self.passes) {
            (true, 0) => f.write_str(&self.name),
            (_, passes) => write!(f, "{} of {}, time {}", self.name, self.host, passes + 1),
        }
    }
}

/// What happens at one point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub point: Point,
    /// `kill-before`, `kill-after`, `error`, `error-after` or `hold`.
    pub deed: &'static str,
}

impl Fault {
    /// Whether the daemon ends of it. It does so by itself when it does not know any more what its registry holds.
    #[must_use]
    pub fn is_deadly(&self) -> bool {
        self.deed.starts_with("kill")
            || self.deed == "error-after" && self.point.name.starts_with("registry:")
    }

    /// Its line in the plan of its host.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {} {}", self.point.name, self.deed, self.point.passes)
    }
}

/// A step that a daemon has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Which.
    pub point: Point,
    /// A fault was planned there.
    pub struck: bool,
}

/// The host of a migration from a to b that passes a point.
#[must_use]
pub fn host_of(point: &str) -> &'static str {
    if point.starts_with("source:") { "a" } else { "b" }
}

/// Has hosts whose daemons run obey plans from now on; there is nothing in them yet.
///
/// # Errors
/// A daemon does not end, or does not start.
pub fn arm(hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        daemon::stop(host)?;
        fs::create_dir_all(directory(host))?;
        plan(host, "")?;
        forget(host)?;
        let start_of_machine = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        fs::write(directory(host).join(BOOT), start_of_machine)?;
        start(host)?;
    }
    Ok(())
}

/// Daemons that obey nobody again.
///
/// # Errors
/// A daemon does not end, or does not start.
pub fn disarm(hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        daemon::stop(host)?;
        fs::remove_dir_all(directory(host))?;
        daemon::start(host)?;
    }
    Ok(())
}

/// Starts a host's daemon that has ended.
///
/// # Errors
/// It runs, or dies before it answers.
pub fn start(host: &Host) -> Result<()> {
    let directory = directory(host);
    let path = directory.to_str().context("the testbed's paths are text")?;
    let more = fs::read_to_string(directory.join(ENVIRONMENT)).unwrap_or_default();
    let mut environment: Vec<_> = more.lines().filter_map(|line| line.split_once('=')).collect();
    environment.push((VARIABLE, path));
    daemon::start_program(host, PROGRAM, &environment)
}

/// Gives a host's daemon more variables in its environment, from its next start on.
///
/// # Errors
/// They cannot be written down.
pub fn set_environment(host: &Host, variables: &[(&str, &str)]) -> Result<()> {
    let lines = variables.iter().map(|(name, value)| format!("{name}={value}\n"));
    Ok(fs::write(
        directory(host).join(ENVIRONMENT),
        lines.collect::<String>(),
    )?)
}

/// Plans what is to happen, a line `POINT DEED` for each fault, in the place of what was planned before.
///
/// # Errors
/// The plan cannot be written.
pub fn plan(host: &Host, lines: &str) -> Result<()> {
    Ok(fs::write(directory(host).join("plan"), lines)?)
}

/// How many faults are still to come.
///
/// # Errors
/// The plan cannot be read.
pub fn planned(host: &Host) -> Result<usize> {
    let plan = fs::read_to_string(directory(host).join("plan"))?;
    Ok(plan.lines().count())
}

/// The points that were passed, and the faults that came, in order.
///
/// # Errors
/// The log cannot be read.
pub fn log(host: &Host) -> Result<Vec<String>> {
    let text = fs::read_to_string(directory(host).join("log"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// What a host's daemon has come to since the log was emptied, in order.
///
/// # Errors
/// The log cannot be read.
pub fn passed(host: &Host) -> Result<Vec<Passed>> {
    let mut times = BTreeMap::new();
    let mut passed = Vec::new();
    for line in log(host)? {
        let (name, struck) = match line.split_once(' ') {
            Some((name, _)) => (name, true),
            None => (line.as_str(), false),
        };
        let passes = times.entry(name.to_owned()).or_insert(0);
        let point = Point {
            host: host.name().to_owned(),
            name: name.to_owned(),
            passes: *passes,
        };
        *passes += 1;
        passed.push(Passed { point, struck });
    }
    Ok(passed)
}

/// Empties the log.
///
/// # Errors
/// It cannot be written.
pub fn forget(host: &Host) -> Result<()> {
    Ok(fs::write(directory(host).join("log"), "")?)
}

/// Waits until a host's daemon has come to a point at which it is to be held.
///
/// # Errors
/// It does not come there.
pub fn wait_held(host: &Host, point: &str) -> Result<()> {
    let mark = mark(host, point);
    wait_for(&format!("{point} to be reached"), REACHED, || Ok(mark.exists()))
}

/// Lets a daemon go on that is held at a point; one that died there has left the mark.
///
/// # Errors
/// It was not held.
pub fn let_go(host: &Host, point: &str) -> Result<()> {
    let mark = mark(host, point);
    fs::remove_file(&mark).with_context(|| format!("nobody was held at {point}"))
}

/// Forgets every plan, also one that a daemon was about to shorten when it ended, and lets everybody go who is held.
///
/// # Errors
/// The directory cannot be written.
pub fn forget_plans(host: &Host) -> Result<()> {
    plan(host, "")?;
    for entry in fs::read_dir(directory(host))? {
        let path = entry?.path();
        let extension = path.extension();
        if extension.is_some_and(|extension| extension == "held" || extension == "new") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Has the next start of a host's daemon believe that the machine was started anew.
///
/// # Errors
/// The directory cannot be written.
pub fn boot_anew(host: &Host) -> Result<()> {
    let when = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let start = format!("the machine's start at {} ns", when.as_nanos());
    Ok(fs::write(directory(host).join(BOOT), start)?)
}

fn mark(host: &Host, point: &str) -> PathBuf {
    directory(host).join(format!("{point}.held"))
}

/// Where a host's plan is.
pub(crate) fn directory(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("faults")
}
