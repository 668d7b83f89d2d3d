//! The daemon's side of the relay: one operation, one socket.
//!
//! ```text
//! bind -> [start runc with environment()] -> wait_request -> release_request
//!      -> (restore: wait_namespaces -> continue_namespaces) -> wait_barrier -> release
//!      -> (restore: wait_released) -> wait_finished
//! ```
//! Each wait can be answered with `abort` instead.
//! Dropping a [`Relay`] closes the connection: what is held then, or comes to a barrier later, is aborted.

use std::fmt::{self, Display};
use std::io;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout_at};
use tranship_proto::points::{self, Injected};

use super::watch::Watch;
use super::wire::{
    self, Barrier, BarrierStage, Decision, Finished, FromRelay, MAX_LINE, Memory, Operation, RequestSeen,
    environment,
};
use crate::freeze::Freezer;

/// Name of the socket in the directory that [`Relay::bind`] is given.
const SOCKET_NAME: &str = "criu.sock";

/// Longest path of a unix socket, without the closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// Why the relay cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket could not be made.
    #[error("the relay's socket {} cannot be made: {source}", path.display())]
    Bind {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path does not fit a unix socket's address.
    #[error("the relay's socket path {} is longer than {MAX_SOCKET_PATH} bytes; use a shorter run_dir", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Time is up.
    #[error("CRIU's relay did not report {waiting_for} in time; CRIU may still be at work")]
    Deadline {
        /// What was awaited.
        waiting_for: &'static str,
    },
    /// The relay process ended without saying how; CRIU ends with it.
    #[error("CRIU's relay went away before {waiting_for}: {source}")]
    Lost {
        /// What was awaited.
        waiting_for: &'static str,
        /// Why.
        source: io::Error,
    },
    /// CRIU ended before the stage that was awaited.
    #[error("CRIU ended before {waiting_for}: {}", .finished.exit)]
    Ended {
        /// What was awaited.
        waiting_for: &'static str,
        /// How it ended.
        finished: Finished,
    },
    /// The relay said something that does not belong here.
    #[error("CRIU's relay sent something unexpected while {waiting_for} was awaited")]
    Protocol {
        /// What was awaited.
        waiting_for: &'static str,
    },
    /// A call that does not fit what has happened so far.
    #[error("CRIU's relay is not held at present, so there is nothing to answer")]
    NotHeld,
}

/// One dump or restore, held by the daemon where it matters.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    socket: PathBuf,
    criu: PathBuf,
    operation: Operation,
    log_level: Option<u8>,
    memory: Memory,
    lazy_pages: bool,
    cgroup: Option<String>,
    /// What freezes the tree when the relay is killed.
    watch: Option<Watch>,
    connection: Option<UnixStream>,
    buffer: Vec<u8>,
    held: bool,
    /// What CRIU has come to.
    stage: &'static str,
    finished: Option<Finished>,
}

impl Relay {
    /// Makes the socket in `dir`, which only root may enter. `criu` is the real CRIU. A socket that an earlier daemon
    /// left there is replaced.
    pub fn bind(dir: &Path, criu: &Path, operation: Operation) -> Result<Self, RelayError> {
        let socket = dir.join(SOCKET_NAME);
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(RelayError::PathTooLong { path: socket });
        }
        let listener = remove_stale(&socket)
            .and_then(|()| UnixListener::bind(&socket))
            .map_err(|source| RelayError::Bind {
                path: socket.clone(),
                source,
            })?;
        Ok(Self {
            listener,
            socket,
            criu: criu.to_owned(),
            operation,
            log_level: None,
            memory: Memory::Full,
            lazy_pages: false,
            cgroup: None,
            watch: None,
            connection: None,
            buffer: Vec::new(),
            held: false,
            stage: "start",
            finished: None,
        })
    }

    /// Makes CRIU log more (up to 4) than warnings and errors, at the price of a longer blackout.
    pub fn set_log_level(&mut self, level: u8) {
        self.log_level = Some(level);
    }

    /// Asks for a dump with or without memory. [`RequestSeen::memory`] and [`Barrier::memory`] say what it becomes.
    pub fn set_memory(&mut self, memory: Memory) {
        self.memory = memory;
    }

    /// Leaves the lazy pages of a restore to a filler that listens in CRIU's working directory; see
    /// [`crate::memory::fill`].
    pub fn set_lazy_pages(&mut self) {
        self.lazy_pages = true;
    }

    /// Has this cgroup frozen whenever CRIU ends in a dump, before its tasks can run: by the relay, or here where the
    /// relay is killed.
    pub fn freeze_at_end(&mut self, cgroup: &str) {
        self.cgroup = Some(cgroup.to_owned());
    }

    /// The variables to set for the runc process, besides a PATH on which the relay is the first `criu`.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut variables = vec![
            (environment::SOCKET.to_owned(), text(&self.socket)),
            (
                environment::OPERATION.to_owned(),
                self.operation.word().to_owned(),
            ),
            (environment::CRIU.to_owned(), text(&self.criu)),
            (environment::MEMORY.to_owned(), self.memory.word().to_owned()),
        ];
        if let Some(cgroup) = &self.cgroup {
            variables.push((environment::CGROUP.to_owned(), cgroup.clone()));
        }
        if let Some(level) = self.log_level {
            variables.push((environment::LOG_LEVEL.to_owned(), level.to_string()));
        }
        if self.lazy_pages {
            variables.push((environment::LAZY_PAGES.to_owned(), "1".to_owned()));
        }
        variables
    }

    /// Waits until runc has asked for the operation. CRIU is started and knows nothing of it yet.
    pub async fn wait_request(&mut self, deadline: Instant) -> Result<RequestSeen, RelayError> {
        const WAITING_FOR: &str = "runc's request";
        if self.connection.is_none() {
            self.connection = Some(self.accept(deadline, WAITING_FOR).await?);
        }
        match self.next(deadline, WAITING_FOR).await? {
            FromRelay::Request(seen) if seen.operation == self.operation => {
                self.held = true;
                self.watch = self.watch_over(&seen);
                Ok(seen)
            }
            _ => Err(RelayError::Protocol {
                waiting_for: WAITING_FOR,
            }),
        }
    }

    /// Watches over the relay's guard. Somebody who looks for a fault of the relay may trace it; then nobody does.
    fn watch_over(&self, seen: &RequestSeen) -> Option<Watch> {
        let freezer = Freezer::of_cgroup(self.cgroup.as_ref()?).ok()?;
        Watch::over(seen.guard?, seen.criu_pid, freezer).ok()
    }

    /// Waits until a restore has made its namespaces; returns the new init as the host sees it. Its network namespace is
    /// empty, and sockets come only after [`Self::continue_namespaces`]: plumb it now.
    pub async fn wait_namespaces(&mut self, deadline: Instant) -> Result<i32, RelayError> {
        let is_it = |stage| stage == BarrierStage::SetupNamespaces;
        Ok(self
            .wait_stage(is_it, deadline, "the restore's namespaces")
            .await?
            .pid)
    }

    /// Waits for `post-dump` or `post-restore`. A restore comes through [`Self::wait_namespaces`] first.
    pub async fn wait_barrier(&mut self, deadline: Instant) -> Result<Barrier, RelayError> {
        self.wait_stage(
            |stage| stage != BarrierStage::SetupNamespaces,
            deadline,
            "the barrier",
        )
        .await
    }

    async fn wait_stage(
        &mut self,
        is_it: impl Fn(BarrierStage) -> bool,
        deadline: Instant,
        waiting_for: &'static str,
    ) -> Result<Barrier, RelayError> {
        match self.next(deadline, waiting_for).await? {
            FromRelay::Barrier(barrier) if is_it(barrier.stage) => {
                self.held = true;
                Ok(barrier)
            }
            _ => Err(RelayError::Protocol { waiting_for }),
        }
    }

    /// Waits, after [`Self::release`] of a restore, until it cannot be taken back any more: the tasks run, or will at once,
    /// whoever ends. Nothing a task says may reach anybody before that.
    pub async fn wait_released(&mut self, deadline: Instant) -> Result<(), RelayError> {
        const WAITING_FOR: &str = "the release";
        match self.next(deadline, WAITING_FOR).await? {
            FromRelay::Released => Ok(()),
            _ => Err(RelayError::Protocol {
                waiting_for: WAITING_FOR,
            }),
        }
    }

    /// Waits for CRIU's end, whichever it is.
    pub async fn wait_finished(&mut self, deadline: Instant) -> Result<Finished, RelayError> {
        const WAITING_FOR: &str = "CRIU's end";
        loop {
            match self.next(deadline, WAITING_FOR).await {
                Err(RelayError::Ended { finished, .. }) => return Ok(finished),
                // Nobody has waited for it.
                Ok(FromRelay::Released) => {}
                Ok(_) => {
                    return Err(RelayError::Protocol {
                        waiting_for: WAITING_FOR,
                    });
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Lets the request go to CRIU.
    pub async fn release_request(&mut self) -> Result<(), RelayError> {
        if let Some(watch) = &self.watch {
            watch.begin();
        }
        self.decide(Decision::Go).await
    }

    /// Lets a restore go on from [`Self::wait_namespaces`].
    pub async fn continue_namespaces(&mut self) -> Result<(), RelayError> {
        self.decide(Decision::Go).await
    }

    /// Lets CRIU go on from the barrier.
    pub async fn release(&mut self) -> Result<(), RelayError> {
        self.decide(Decision::Go).await
    }

    /// Makes CRIU give up: at the request nothing has happened, at a dump's barrier the tasks are let go, at a
    /// restore's they are killed.
    pub async fn abort(&mut self) -> Result<(), RelayError> {
        let decided = self.decide(Decision::Abort).await;
        if decided.is_err() {
            // Its end says the same, also to one that waits at a barrier of which nobody here has heard.
            self.connection = None;
        }
        decided
    }

    async fn decide(&mut self, decision: Decision) -> Result<(), RelayError> {
        const WAITING_FOR: &str = "the answer could be given";
        let stream = self
            .connection
            .as_mut()
            .filter(|_| self.held)
            .ok_or(RelayError::NotHeld)?;
        let lost = |source| RelayError::Lost {
            waiting_for: WAITING_FOR,
            source,
        };
        let line = wire::line(&decision).map_err(|source| lost(source.into()))?;
        let point = Point {
            operation: self.operation,
            stage: self.stage,
            answer: Some(decision),
        };
        // A few bytes always fit the socket's buffer, so this does not wait.
        let written = points::step_or_later(point, not_said, stream.write_all(&line)).await;
        written.map_err(lost)?;
        self.held = false;
        Ok(())
    }

    async fn accept(&self, deadline: Instant, waiting_for: &'static str) -> Result<UnixStream, RelayError> {
        let lost = |source| RelayError::Lost { waiting_for, source };
        loop {
            let accepted = timeout_at(deadline, self.listener.accept()).await;
            let (stream, _) = accepted
                .map_err(|_| RelayError::Deadline { waiting_for })?
                .map_err(lost)?;
            let peer = stream.peer_cred().map_err(lost)?.uid();
            if peer == rustix::process::geteuid().as_raw() {
                return Ok(stream);
            }
        }
    }

    /// The next message; CRIU's end comes as [`RelayError::Ended`], and again at each further call.
    async fn next(&mut self, deadline: Instant, waiting_for: &'static str) -> Result<FromRelay, RelayError> {
        if let Some(finished) = &self.finished {
            return Err(RelayError::Ended {
                waiting_for,
                finished: finished.clone(),
            });
        }
        let read = timeout_at(deadline, self.read_line(waiting_for)).await;
        let line = read.map_err(|_| RelayError::Deadline { waiting_for })??;
        let message = serde_json::from_slice(&line).map_err(|_| RelayError::Protocol { waiting_for })?;
        self.stage = FromRelay::stage(&message);
        let point = Point {
            operation: self.operation,
            stage: self.stage,
            answer: None,
        };
        points::step_or(point, not_said, || Ok(()))
            .map_err(|source| RelayError::Lost { waiting_for, source })?;
        match message {
            FromRelay::Finished(finished) => {
                self.finished = Some(finished.clone());
                self.held = false;
                Err(RelayError::Ended {
                    waiting_for,
                    finished,
                })
            }
            message => Ok(message),
        }
    }

    /// One line. Cancel safe: what has been read stays in the buffer.
    async fn read_line(&mut self, waiting_for: &'static str) -> Result<Vec<u8>, RelayError> {
        let stream = self.connection.as_mut().ok_or(RelayError::NotHeld)?;
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                return Ok(std::mem::replace(&mut self.buffer, rest));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(RelayError::Protocol { waiting_for });
            }
            match stream.read_buf(&mut self.buffer).await {
                Ok(0) => {
                    let source = io::ErrorKind::UnexpectedEof.into();
                    return Err(RelayError::Lost { waiting_for, source });
                }
                Ok(_) => {}
                Err(source) => return Err(RelayError::Lost { waiting_for, source }),
            }
        }
    }
}

/// Whether the relay whose socket was in `dir` has let restored tasks run, or may have. Only final when that relay has
/// ended.
pub fn was_released(dir: &Path) -> bool {
    dir.join(wire::RELEASED_NAME).try_exists().unwrap_or(true)
}

/// Where the journal of a dump is whose relay had its socket in `dir`; for [`crate::process_tree::recover`].
pub fn journal_of(dir: &Path) -> PathBuf {
    dir.join(wire::JOURNAL_NAME)
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A socket that stays behind is replaced by the next bind.
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// The fault point of a stage that CRIU has come to, or of the answer to it.
struct Point {
    operation: Operation,
    stage: &'static str,
    answer: Option<Decision>,
}

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "criu:{}-{}", self.operation.word(), self.stage)?;
        match self.answer {
            None => Ok(()),
            Some(Decision::Go) => f.write_str("-go"),
            Some(Decision::Abort) => f.write_str("-abort"),
        }
    }
}

/// As a test has it.
fn not_said(_: Injected) -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn remove_stale(socket: &Path) -> io::Result<()> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
