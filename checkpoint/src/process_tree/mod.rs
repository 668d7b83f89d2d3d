//! All processes of a container, found through its cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

use crate::cgroup::{self, CgroupError, CgroupVersion};
use crate::criu::leftovers;
use crate::freeze::{FreezeError, Freezer, FreezerState};

mod astray;
mod ending;
mod sockets;
mod undo;

pub(crate) use ending::is_ending;

/// Pause between two looks at a cgroup that is being emptied.
const LOOK: Duration = Duration::from_millis(1);

/// How long a tracer that was killed may take to be gone: it gives much memory back first.
const TRACER_ENDS: Duration = Duration::from_secs(5);

/// What CRIU names the memory of the code that it puts into a task for the time of a dump.
const PARASITE: &str = "CRIUMFD";

/// Why a tree is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The cgroup cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The freezer cannot be used.
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    /// CRIU has left something in a task. Do not let it run: kill the container, or end the tracer first.
    #[error("task {task} is not as it was before the dump: {remnant}")]
    Touched {
        /// The thread, as the host sees it.
        task: i32,
        /// What was found.
        remnant: Remnant,
    },
    /// The journal of what CRIU has changed cannot be read.
    #[error("the journal {} of what CRIU has changed cannot be read: {source}", path.display())]
    Journal {
        /// Its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A thread that a killed CRIU has left in the middle of something cannot be put right.
    #[error("task {task} was left in the middle of what CRIU had it do, and cannot be put right: {source}")]
    NotPutRight {
        /// The thread, as the host sees it.
        task: i32,
        /// Why.
        source: io::Error,
    },
    /// Processes of a CRIU that was killed do not end.
    #[error("processes {left:?}, which CRIU has left behind, are still there after SIGKILL")]
    LeftBehind {
        /// Those that are left.
        left: Vec<i32>,
    },
    /// A socket cannot be looked at or taken out of repair.
    #[error("a socket of process {pid} cannot be taken out of repair: {source}; its connections stay silent")]
    Socket {
        /// The process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// Processes did not go away in time.
    #[error("processes {left:?} of cgroup {} are still there after SIGKILL", directory.display())]
    NotDead {
        /// The cgroup.
        directory: PathBuf,
        /// Those that are left.
        left: Vec<i32>,
    },
}

/// What a dump that went wrong can leave in a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remnant {
    /// A process still traces it.
    Tracer {
        /// That process.
        pid: i32,
    },
    /// It stands in CRIU's code, or at a system call that CRIU put into its own. Code of CRIU's that is only mapped
    /// does no harm.
    Parasite,
    /// A TCP connection is in repair, and so silent. [`recover`] puts this right.
    Repair {
        /// Its descriptor in the task.
        fd: i32,
    },
}

impl std::fmt::Display for Remnant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tracer { pid } => write!(f, "process {pid} still traces it"),
            Self::Parasite => write!(f, "it stands in the middle of what CRIU had it do"),
            Self::Repair { fd } => write!(f, "the TCP connection at its descriptor {fd} is in repair"),
        }
    }
}

/// The processes of a container, sub-cgroups included.
pub fn pids(cgroup: &str) -> Result<Vec<i32>, TreeError> {
    Ok(cgroup::processes(&cgroup::directory(cgroup, "freezer")?)?)
}

/// What was put right in a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Connections that were silent.
    pub connections: usize,
    /// Threads that were in the middle of what CRIU had them do.
    pub threads: usize,
}

/// What to do after a failed dump, before the tree is thawed: lets connections speak again that a killed CRIU has left
/// silent, puts threads right by the journal of the dump (see [`crate::criu::journal_of`]), ends what is left of that CRIU,
/// and checks that nothing else is left. Where there were threads to put right the tree runs afterwards.
pub fn recover(cgroup: &str, journal: &Path) -> Result<Recovered, TreeError> {
    let mut connections = 0;
    let pids = pids(cgroup)?;
    let tasks: Vec<i32> = pids.iter().flat_map(|pid| threads(*pid)).collect();
    // Whoever traces a task must be gone before it can be seized. A CRIU that still works at it gives up by itself.
    wait_untraced(&tasks)?;
    let left = leftovers::end(journal, &pids);
    if !left.is_empty() {
        return Err(TreeError::LeftBehind { left });
    }
    expect_untraced(&tasks)?;
    for pid in &pids {
        let failed = |source| TreeError::Socket { pid: *pid, source };
        connections += sockets::release(*pid).map_err(failed)?;
    }
    let seized = undo::begin(journal, &tasks)?;
    for pid in &pids {
        expect_own(*pid, |task| seized.holds(task))?;
    }
    let threads = seized.finish(&Freezer::of_cgroup(cgroup)?)?;
    Ok(Recovered { connections, threads })
}

/// Checks that the tasks of `cgroup` are their own again: no tracer, none in CRIU's code, no silenced connection.
pub fn verify_untouched(cgroup: &str) -> Result<(), TreeError> {
    for pid in pids(cgroup)? {
        expect_untraced(&threads(pid))?;
        expect_own(pid, |_| false)?;
    }
    Ok(())
}

/// The threads of a process; none where it has ended meanwhile, and so has nothing left in it.
fn threads(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.map_or_else(
        |_| Vec::new(),
        |threads| {
            threads
                .flatten()
                .filter_map(|thread| thread.file_name().to_str()?.parse().ok())
                .collect()
        },
    )
}

/// As [`expect_untraced`], but a tracer that was killed may need a moment to be gone.
fn wait_untraced(tasks: &[i32]) -> Result<(), TreeError> {
    let deadline = Instant::now() + TRACER_ENDS;
    loop {
        match expect_untraced(tasks) {
            Err(TreeError::Touched {
                remnant: Remnant::Tracer { pid },
                ..
            }) if is_ending(pid) && Instant::now() < deadline => std::thread::sleep(LOOK),
            other => return other,
        }
    }
}

fn expect_untraced(tasks: &[i32]) -> Result<(), TreeError> {
    for task in tasks {
        let Ok(status) = fs::read_to_string(format!("/proc/{task}/status")) else {
            continue;
        };
        if let Some(pid) = tracer(&status) {
            let remnant = Remnant::Tracer { pid };
            return Err(TreeError::Touched { task: *task, remnant });
        }
    }
    Ok(())
}

fn expect_own(pid: i32, leave_out: impl Fn(i32) -> bool) -> Result<(), TreeError> {
    if let Some(task) = astray::find(pid, PARASITE, leave_out) {
        let remnant = Remnant::Parasite;
        return Err(TreeError::Touched { task, remnant });
    }
    let mut silent = None;
    let looked = sockets::in_repair(pid, |fd, _| {
        silent = Some(fd);
        Ok(())
    });
    looked.map_err(|source| TreeError::Socket { pid, source })?;
    match silent {
        Some(fd) => Err(TreeError::Touched {
            task: pid,
            remnant: Remnant::Repair { fd },
        }),
        None => Ok(()),
    }
}

fn tracer(status: &str) -> Option<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|pid| *pid != 0)
}

/// Threads in uninterruptible sleep below a cgroup directory.
pub(crate) fn uninterruptible(directory: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut found = Vec::new();
    for pid in cgroup::processes(directory)? {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let Ok(status) = fs::read_to_string(thread.path().join("status")) else {
                continue;
            };
            let sleeping = status
                .lines()
                .any(|line| line.starts_with("State:") && line.contains("D (disk sleep)"));
            if let (true, Some(task)) = (
                sleeping,
                thread.file_name().to_str().and_then(|name| name.parse().ok()),
            ) {
                found.push(task);
            }
        }
    }
    Ok(found)
}

/// Kills every process of a container, frozen or not, and waits until its cgroup is empty. No frozen task executes
/// another instruction of its own: on v1 SIGKILL is pending before the thaw, on v2 a frozen task dies where it is.
pub async fn kill(cgroup: &str, deadline: Instant) -> Result<(), TreeError> {
    match Freezer::of_cgroup(cgroup) {
        Err(FreezeError::Cgroup(CgroupError::Missing { .. })) => Ok(()),
        freezer => kill_all(&freezer?, deadline).await,
    }
}

pub(crate) async fn kill_all(freezer: &Freezer, deadline: Instant) -> Result<(), TreeError> {
    let directory = freezer.directory();
    loop {
        let left = cgroup::processes(directory)?;
        if left.is_empty() {
            return Ok(());
        }
        kill_once(freezer, &left)?;
        if Instant::now() >= deadline {
            return Err(TreeError::NotDead {
                directory: directory.to_owned(),
                left,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn kill_once(freezer: &Freezer, pids: &[i32]) -> Result<(), TreeError> {
    let at_once = freezer.directory().join("cgroup.kill");
    if freezer.version() == CgroupVersion::V2 && at_once.exists() {
        return Ok(cgroup::write(&at_once, "1")?);
    }
    for pid in pids.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        // One that has ended already is what is wanted; one that cannot be killed shows up at the deadline.
        let _ = kill_process(pid, Signal::KILL);
    }
    if freezer.state()? != FreezerState::Thawed {
        freezer.thaw()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::tracer;

    #[test]
    fn a_tracer_is_read_from_status() {
        assert_eq!(tracer("Name:\tx\nTracerPid:\t42\nUid:\t0\n"), Some(42));
        assert_eq!(tracer("Name:\tx\nTracerPid:\t0\n"), None);
        assert_eq!(tracer(""), None);
    }
}
