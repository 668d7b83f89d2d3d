//! The daemon's side: a filler for one restore.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, timeout_at};

use super::program::FillJob;
use super::wire::{Figures, Progress};

/// Longest line that is read: a reason is a sentence.
const MAX_LINE: u64 = 64 << 10;

/// What to fill from, and where.
#[derive(Clone, Debug)]
pub struct FillRequest {
    /// The program `tranship-filler`.
    pub program: PathBuf,
    /// The store. It must be sealed when CRIU comes, and not before.
    pub store_dir: PathBuf,
    /// CRIU's images, complete when CRIU comes.
    pub images_dir: PathBuf,
    /// CRIU's working directory: the same as the restore's.
    pub work_dir: PathBuf,
    /// The file that is to exist until the memory is complete; see [`super::filling`].
    pub mark: PathBuf,
    /// The cgroup of the container's monitor, where the filler goes to live.
    pub cgroup: Option<String>,
    /// How long CRIU may take to come.
    pub patience: Duration,
}

/// Why a container's memory is not filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The program could not be run.
    #[error("{} cannot be started: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended, or spoke nonsense. The container's monitor ends the container if it was running already.
    #[error("the filler ended before {waiting_for}{}", detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default())]
    Lost {
        /// What was awaited.
        waiting_for: &'static str,
        /// What it said last.
        detail: Option<String>,
    },
    /// It said that it cannot go on. The container's monitor ends the container if it was running already.
    #[error("the container's memory cannot be completed: {reason}")]
    Failed {
        /// Why.
        reason: String,
    },
    /// Nothing was restored.
    #[error("the restore was given up before anything ran")]
    Aborted,
    /// Time is up.
    #[error("the filler did not report {waiting_for} in time; it may still be at work")]
    Deadline {
        /// What was awaited.
        waiting_for: &'static str,
    },
}

/// Where fillers come from.
#[derive(Debug)]
pub struct Filler;

/// A filler at work. Dropping it before CRIU has come ends the filler; afterwards it goes on by itself, as it does when the
/// daemon ends.
#[derive(Debug)]
pub struct FillerHandle {
    pid: i32,
    /// Closed when this is dropped, which a filler without a CRIU takes for its end.
    _wanted: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Filler {
    /// Starts a filler and waits until a restore with lazy pages may begin in its working directory. It can be started before
    /// there are images: it reads them, and the store, when CRIU comes.
    ///
    /// # Errors
    /// There is none.
    pub async fn start(request: &FillRequest, deadline: Instant) -> Result<FillerHandle, FillError> {
        const WAITING_FOR: &str = "a restore could begin";
        let failed = |source| FillError::Start {
            program: request.program.clone(),
            source,
        };
        let mut child = Command::new(&request.program)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let ends = child.stdin.take().zip(child.stdout.take()).zip(pid);
        // Reaps it if it ends before the daemon does; it is not ended when this task is.
        tokio::spawn(async move { child.wait().await });
        let ((mut wanted, reports), pid) = ends.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        wanted
            .write_all(&job(request).map_err(failed)?)
            .await
            .map_err(failed)?;
        let mut handle = FillerHandle {
            pid,
            _wanted: wanted,
            reports: BufReader::new(reports),
        };
        match handle.next(WAITING_FOR, deadline).await? {
            Progress::Listening => Ok(handle),
            other => Err(other.unexpected(WAITING_FOR)),
        }
    }
}

impl FillerHandle {
    /// The filler's process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until every page is there. Not cancel-safe: a report may be lost; the mark tells then.
    ///
    /// # Errors
    /// The memory is not complete; see [`FillError`].
    pub async fn wait_complete(&mut self, deadline: Instant) -> Result<Figures, FillError> {
        const WAITING_FOR: &str = "the memory was complete";
        loop {
            match self.next(WAITING_FOR, deadline).await? {
                Progress::Restored => {}
                Progress::Complete(figures) => return Ok(figures),
                other => return Err(other.unexpected(WAITING_FOR)),
            }
        }
    }

    async fn next(&mut self, waiting_for: &'static str, deadline: Instant) -> Result<Progress, FillError> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reports).take(MAX_LINE);
        let read = timeout_at(deadline, bounded.read_until(b'\n', &mut line)).await;
        let lost = |detail: Option<String>| FillError::Lost { waiting_for, detail };
        match read {
            Err(_) => Err(FillError::Deadline { waiting_for }),
            Ok(Ok(0)) => Err(lost(None)),
            Ok(Err(error)) => Err(lost(Some(error.to_string()))),
            Ok(Ok(_)) => serde_json::from_slice(&line).map_err(|error| lost(Some(error.to_string()))),
        }
    }
}

impl Progress {
    fn unexpected(self, waiting_for: &'static str) -> FillError {
        match self {
            Self::Failed(reason) => FillError::Failed { reason },
            Self::Aborted => FillError::Aborted,
            Self::Listening | Self::Restored | Self::Complete(_) => FillError::Lost {
                waiting_for,
                detail: None,
            },
        }
    }
}

fn job(request: &FillRequest) -> io::Result<Vec<u8>> {
    let job = FillJob {
        store_dir: request.store_dir.clone(),
        images_dir: request.images_dir.clone(),
        work_dir: request.work_dir.clone(),
        mark: request.mark.clone(),
        cgroup: request.cgroup.clone(),
        deadline_ms: u64::try_from(request.patience.as_millis()).unwrap_or(u64::MAX),
    };
    let mut line = serde_json::to_vec(&job)?;
    line.push(b'\n');
    Ok(line)
}
