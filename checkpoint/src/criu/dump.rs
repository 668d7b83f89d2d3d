//! Dumping a frozen container through `runc checkpoint --leave-running`.
//!
//! ```text
//! Dump::prepare    runc starts, looks at CRIU, asks            the workload runs
//! (caller)         freezes the cgroup, cuts the network        frozen
//! Dump::write      CRIU writes the images, is held             stopped by ptrace, and frozen again
//! (caller)         copies what is left of rootfs and volumes   (they hold CRIU's temporary links only now)
//! Dump::complete   CRIU lets go of the tasks                   frozen
//! ```
//! Whatever fails, no task runs afterwards: CRIU thaws the cgroup while it works, so it is frozen again as soon as the
//! images are written and after every failure. The caller puts right what may be left with
//! [`crate::process_tree::recover`] and thaws.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout, timeout_at};
use tranship_proto::ids::ContainerId;

use super::log;
use super::relay::{Relay, RelayError};
use super::smaps::PreparedAreas;
use super::wire::{Barrier, Finished, Memory, Operation, StageTime};
use crate::freeze::{FreezeError, Freezer};
use crate::process_tree;

/// Name of CRIU's log of a dump; runc chooses it.
pub(super) const LOG_NAME: &str = "dump.log";

/// How long runc and CRIU get to clean up behind a dump that has failed.
const CLEAN_UP: Duration = Duration::from_secs(10);

/// How long a tree that CRIU has let go of may take to be frozen again.
const REFREEZE: Duration = Duration::from_secs(5);

/// As much of runc's own complaint as is kept.
const MAX_STDERR: u64 = 8 * 1024;

/// What to dump, with what, and where to.
#[derive(Clone, Debug)]
pub struct DumpRequest {
    /// The runc program.
    pub runc: PathBuf,
    /// runc's `--root`.
    pub runc_root: PathBuf,
    /// The container's name in runc.
    pub container: ContainerId,
    /// The container's cgroup, `/parent/id`.
    pub cgroup: String,
    /// An empty directory for the images, best on a tmpfs.
    pub images_dir: PathBuf,
    /// An existing directory for CRIU's log.
    pub work_dir: PathBuf,
    /// An existing directory, closed to everybody else, for the relay's socket.
    pub relay_dir: PathBuf,
    /// The directory in which the relay is called `criu`.
    pub criu_path_dir: PathBuf,
    /// The real CRIU.
    pub criu: PathBuf,
    /// What the images should hold.
    pub memory: Memory,
    /// The images of the last pre-dump, as a path from `images_dir`: of private memory the images then hold only what was written
    /// since, and name this.
    pub parent: Option<String>,
    /// Unix sockets whose other end is outside the container are allowed.
    pub external_unix_sockets: bool,
    /// The container's terminal comes from outside.
    pub shell_job: bool,
    /// CRIU's log level; `None` for warnings and errors only.
    pub log_level: Option<u8>,
}

/// What a dump came to.
#[derive(Clone, Debug)]
pub struct DumpReport {
    /// The root task.
    pub pid: i32,
    /// What the images hold: perhaps more than was asked for.
    pub memory: Memory,
    /// When CRIU reached which stage.
    pub stages: Vec<StageTime>,
    /// Bytes of all images.
    pub images_bytes: u64,
}

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The relay cannot be used.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// runc cannot be run.
    #[error("{} cannot be started: {source}", runc.display())]
    Start {
        /// The program.
        runc: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// runc gave up before it asked CRIU for anything.
    #[error("runc did not ask for the dump ({status}): {stderr}")]
    Runc {
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// CRIU could not dump the tree. Its tasks are as they were, and frozen.
    #[error("criu could not dump the container (after stage `{stage}`, {exit}): {}", lines.join("; "))]
    Criu {
        /// The last stage it reached.
        stage: String,
        /// How its process ended.
        exit: String,
        /// Its errno, if it gave one.
        errno: Option<i32>,
        /// The first errors in its log.
        lines: Vec<String>,
    },
    /// The dump went well, but runc did not.
    #[error("criu has dumped the container, but runc failed afterwards ({status}): {stderr}")]
    RuncAfterwards {
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// CRIU could not write memory while the tasks run. They run on.
    #[error("criu could not pre-dump the container ({status}): {}; {}", lines.join("; "), stderr.trim())]
    PreDump {
        /// How runc ended.
        status: String,
        /// The first errors in CRIU's log.
        lines: Vec<String>,
        /// What runc said.
        stderr: String,
    },
    /// Time is up.
    #[error("the pre-dump did not end in time; it may still be at work")]
    PreDumpDeadline,
    /// Time is up.
    #[error("the dump did not reach {waiting_for} in time and was given up; the container is frozen")]
    Deadline {
        /// What was awaited.
        waiting_for: &'static str,
    },
    /// The cgroup cannot be frozen again.
    #[error("after the dump: {0}")]
    Freeze(#[from] FreezeError),
    /// The directory of the images cannot be read.
    #[error("the images in {} cannot be read: {source}", path.display())]
    Images {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A dump under way. Dropped, it is given up.
#[derive(Debug)]
pub struct Dump {
    request: DumpRequest,
    freezer: Freezer,
    relay: Relay,
    runc: Child,
    pid: i32,
    memory: Memory,
    areas: Option<PreparedAreas>,
}

impl Dump {
    /// Starts runc and waits until it has asked for the dump. The workload runs on.
    pub async fn prepare(request: DumpRequest, deadline: Instant) -> Result<Self, DumpError> {
        let freezer = Freezer::of_cgroup(&request.cgroup)?;
        let mut relay = Relay::bind(&request.relay_dir, &request.criu, Operation::Dump)?;
        relay.freeze_at_end(&request.cgroup);
        if let Some(level) = request.log_level {
            relay.set_log_level(level);
        }
        relay.set_memory(request.memory);
        let mut runc = request.command(&relay).spawn().map_err(|source| {
            let runc = request.runc.clone();
            DumpError::Start { runc, source }
        })?;
        let seen = tokio::select! {
            seen = relay.wait_request(deadline) => seen?,
            status = runc.wait() => {
                let status = in_words(status);
                return Err(DumpError::Runc { status, stderr: complaint(&mut runc).await });
            }
        };
        let areas = match seen.memory {
            Memory::StateOnly => prepare_areas(&request.relay_dir).await,
            Memory::Full => None,
        };
        Ok(Self {
            request,
            areas,
            freezer,
            relay,
            runc,
            pid: seen.pid.unwrap_or_default(),
            memory: seen.memory,
        })
    }

    /// What the images will hold or, after [`Self::write`], hold.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Lets CRIU dump the tree, which the caller has frozen, and holds it when the images are complete.
    ///
    /// When this returns, well or not, the tree is frozen (or the error is [`DumpError::Freeze`]).
    pub async fn write(&mut self, deadline: Instant) -> Result<Barrier, DumpError> {
        self.write_areas().await;
        self.relay.release_request().await?;
        match self.relay.wait_barrier(deadline).await {
            Ok(barrier) => {
                // From here on the tasks stay where they are even if CRIU or this daemon is killed.
                self.freezer.ask_to_freeze()?;
                self.memory = barrier.memory;
                Ok(barrier)
            }
            Err(error) => Err(self.failed(error, "the end of the images").await),
        }
    }

    /// Writes the areas of all processes down for CRIU. What is not written CRIU gets from the kernel, later.
    async fn write_areas(&mut self) {
        let Some(areas) = self.areas.take() else {
            return;
        };
        let cgroup = self.request.cgroup.clone();
        let written = spawn_blocking(move || {
            let pids = process_tree::pids(&cgroup).unwrap_or_default();
            (areas.write(&pids), areas)
        });
        if let Ok((written, areas)) = written.await {
            tracing::debug!(?written, "areas written down for CRIU");
            self.areas = Some(areas);
        }
    }

    /// Lets CRIU leave the tasks, which stay frozen, and waits for runc.
    pub async fn complete(mut self, deadline: Instant) -> Result<DumpReport, DumpError> {
        self.relay.release().await?;
        let finished = match self.relay.wait_finished(deadline).await {
            Ok(finished) if finished.success => finished,
            Ok(finished) => return Err(self.criu_failed(finished).await),
            Err(error) => return Err(self.failed(error, "CRIU's end").await),
        };
        let Ok(status) = timeout_at(deadline, self.runc.wait()).await else {
            self.clean_up().await;
            return Err(DumpError::Deadline {
                waiting_for: "runc's end",
            });
        };
        if !matches!(&status, Ok(status) if status.success()) {
            let status = in_words(status);
            return Err(DumpError::RuncAfterwards {
                status,
                stderr: complaint(&mut self.runc).await,
            });
        }
        self.freezer.freeze(Instant::now() + REFREEZE).await?;
        let images_bytes = directory_bytes(&self.request.images_dir)?;
        Ok(DumpReport {
            pid: self.pid,
            memory: self.memory,
            stages: finished.stages,
            images_bytes,
        })
    }

    /// Gives the dump up at a barrier or before. The tree is frozen afterwards.
    pub async fn abort(mut self) -> Result<(), DumpError> {
        // One that is not held has ended already, or ends because its connection does.
        let _ = self.relay.abort().await;
        let _ = self.relay.wait_finished(Instant::now() + CLEAN_UP).await;
        self.clean_up().await;
        self.freezer.freeze(Instant::now() + REFREEZE).await?;
        Ok(())
    }

    async fn failed(&mut self, error: RelayError, waiting_for: &'static str) -> DumpError {
        match error {
            RelayError::Ended { finished, .. } => self.criu_failed(finished).await,
            error => {
                let _ = self.relay.abort().await;
                self.clean_up().await;
                let frozen = self.freezer.freeze(Instant::now() + REFREEZE).await;
                match (frozen, error) {
                    (Err(error), _) => error.into(),
                    (Ok(_), RelayError::Deadline { .. }) => DumpError::Deadline { waiting_for },
                    (Ok(_), error) => error.into(),
                }
            }
        }
    }

    async fn criu_failed(&mut self, finished: Finished) -> DumpError {
        self.clean_up().await;
        if let Err(error) = self.freezer.freeze(Instant::now() + REFREEZE).await {
            return error.into();
        }
        DumpError::Criu {
            stage: last_stage(&finished.stages),
            exit: finished.exit,
            errno: finished.errno,
            lines: log::explain(&self.request.work_dir.join(LOG_NAME)),
        }
    }

    /// Waits for runc to end by itself; kills it where it does not.
    async fn clean_up(&mut self) {
        if timeout(CLEAN_UP, self.runc.wait()).await.is_err() {
            // It has ended meanwhile, then; there is nothing else a SIGKILL could fail on.
            let _ = self.runc.kill().await;
        }
    }
}

/// Dumps a tree that is frozen already, in one go. See [`Dump`] for holding it at the barrier.
pub async fn dump(request: DumpRequest, deadline: Instant) -> Result<DumpReport, DumpError> {
    let mut dump = Dump::prepare(request, deadline).await?;
    dump.write(deadline).await?;
    dump.complete(deadline).await
}

impl DumpRequest {
    fn command(&self, relay: &Relay) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.runc_root).arg("checkpoint");
        command
            .arg("--leave-running")
            .arg("--image-path")
            .arg(&self.images_dir);
        command
            .arg("--work-path")
            .arg(&self.work_dir)
            .arg("--tcp-established")
            .arg("--file-locks");
        if let Some(parent) = &self.parent {
            command.arg("--parent-path").arg(parent);
        }
        if self.external_unix_sockets {
            command.arg("--ext-unix-sk");
        }
        if self.shell_job {
            command.arg("--shell-job");
        }
        command.arg(self.container.as_str());
        command
            .envs(relay.environment())
            .env("PATH", search_path(&self.criu_path_dir));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// Makes ready to tell CRIU the areas of processes; without it a dump takes longer and is the same.
async fn prepare_areas(relay_dir: &Path) -> Option<PreparedAreas> {
    let relay_dir = relay_dir.to_owned();
    match spawn_blocking(move || PreparedAreas::create(&relay_dir)).await {
        Ok(Ok(areas)) => Some(areas),
        Ok(Err(error)) => {
            tracing::info!(%error, "CRIU will look at every page, some 20 ms per GiB");
            None
        }
        Err(_) => None,
    }
}

/// The PATH on which `first` comes before everything else: for a runc that must find the relay as `criu`.
pub fn search_path(first: &Path) -> OsString {
    let mut path = first.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

pub(super) fn last_stage(stages: &[StageTime]) -> String {
    // CRIU unlocks the network and ends after a failure too.
    let reached = stages
        .iter()
        .rev()
        .find(|time| !["ended", "network-unlock"].contains(&time.stage.as_str()));
    reached.map_or_else(|| "none".to_owned(), |time| time.stage.clone())
}

fn in_words(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("end unknown: {error}"),
    }
}

/// What runc has said, for a runc that has ended.
async fn complaint(runc: &mut Child) -> String {
    let Some(stderr) = runc.stderr.take() else {
        return String::new();
    };
    let mut text = Vec::new();
    // A process that runc left behind may hold the pipe open; what is there by now is enough.
    let _ = timeout(
        Duration::from_secs(1),
        stderr.take(MAX_STDERR).read_to_end(&mut text),
    )
    .await;
    String::from_utf8_lossy(&text).trim().to_owned()
}

fn directory_bytes(path: &Path) -> Result<u64, DumpError> {
    let failed = |source| DumpError::Images {
        path: path.to_owned(),
        source,
    };
    let mut bytes = 0;
    for entry in std::fs::read_dir(path).map_err(failed)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(bytes)
}
