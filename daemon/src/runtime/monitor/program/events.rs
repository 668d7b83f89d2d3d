//! The one place where the monitor waits: for output of the container and for ends of children.

use std::collections::BTreeMap;
use std::io::{self, PipeReader, Read};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::super::job::START;
use super::held_memory::HeldMemory;
use super::log_file::{LogFile, Stream};

/// What is read at once; as much as a pipe holds, so that a busy container is not waited for.
const READ_BYTES: usize = 64 << 10;

/// Output that may be held back while runc runs: more is certainly not runc's own.
const MAX_HELD_BYTES: usize = 64 << 10;

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By itself.
    Exited(i32),
    /// By a signal.
    Killed(i32),
}

impl Ended {
    /// The exit code as shells have it.
    pub(super) fn exit_code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => 128 + signal,
        }
    }
}

/// What becomes of a container that waits for its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// It shall run.
    Start,
    /// Who made it is gone.
    Gone,
    /// Nothing was said in time.
    Late,
    /// It has ended already.
    Pointless,
}

struct Source {
    pipe: PipeReader,
    stream: Stream,
}

/// Everything that can happen to a monitor.
pub(super) struct Events {
    signals: SignalFd,
    sources: Vec<Source>,
    log: LogFile,
    /// Output since [`Events::hold`], while it is unknown whether it is runc's or the container's.
    held: Option<Vec<(Stream, Vec<u8>)>>,
    /// Children that have ended and were not asked for yet.
    ended: BTreeMap<i32, Ended>,
    buffer: Vec<u8>,
    /// Whether standard input is watched.
    listens_to_orders: bool,
    order: Option<Order>,
    memory: Option<HeldMemory>,
}

impl Events {
    /// From now on signals are events: those that would end a program are ignored by it, and children do not inherit that.
    pub(super) fn new(log: &Path) -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            signals,
            sources: Vec::new(),
            log: LogFile::open(log)?,
            held: None,
            ended: BTreeMap::new(),
            buffer: vec![0; READ_BYTES],
            listens_to_orders: false,
            order: None,
            memory: None,
        })
    }

    /// Reads the container's standard output and error from now on.
    pub(super) fn listen(&mut self, [stdout, stderr]: [PipeReader; 2]) {
        self.sources = vec![
            Source {
                pipe: stdout,
                stream: Stream::Stdout,
            },
            Source {
                pipe: stderr,
                stream: Stream::Stderr,
            },
        ];
    }

    /// Holds the descriptors of the filler that works in `directory`, until the memory of the container in `cgroup` is
    /// complete. Where it cannot be completed, the container is ended.
    pub(super) fn hold_memory(&mut self, directory: &Path, cgroup: &str) -> io::Result<()> {
        self.memory = Some(HeldMemory::of(directory, cgroup)?);
        Ok(())
    }

    /// Whether the container was ended because its memory could not be completed.
    pub(super) fn memory_lost(&self) -> bool {
        self.memory.as_ref().is_some_and(HeldMemory::is_lost)
    }

    /// Keeps output out of the log until it is known whose it is.
    pub(super) fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// It was the container's.
    pub(super) fn release(&mut self) {
        for (stream, bytes) in self.held.take().unwrap_or_default() {
            self.log.write(stream, &bytes);
        }
    }

    /// It was runc's.
    pub(super) fn take_held(&mut self) -> Vec<u8> {
        while self.read_all() {}
        self.held
            .take()
            .unwrap_or_default()
            .into_iter()
            .flat_map(|(_, bytes)| bytes)
            .collect()
    }

    /// Returns how the child ended, or nothing at the deadline. What arrives meanwhile goes where it belongs.
    pub(super) fn wait_for(&mut self, child: i32, deadline: Option<Instant>) -> io::Result<Option<Ended>> {
        loop {
            if let Some(ended) = self.ended.remove(&child) {
                return Ok(Some(ended));
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(None);
            }
            self.turn(deadline)?;
        }
    }

    /// Waits for the daemon's word about the created container whose first process is `init`.
    pub(super) fn order(&mut self, init: i32, deadline: Instant) -> io::Result<Order> {
        self.listens_to_orders = true;
        let order = loop {
            if let Some(order) = self.order.take() {
                break order;
            }
            if self.ended.contains_key(&init) {
                break Order::Pointless;
            }
            if Instant::now() >= deadline {
                break Order::Late;
            }
            self.turn(Some(deadline))?;
        };
        self.listens_to_orders = false;
        Ok(order)
    }

    /// Reads until all writers are gone, or the deadline.
    pub(super) fn drain(&mut self, deadline: Instant) -> io::Result<()> {
        while !self.sources.is_empty() && Instant::now() < deadline {
            self.turn(Some(deadline))?;
        }
        self.log.finish();
        Ok(())
    }

    /// Waits for something, and takes it.
    pub(super) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let deadline = [deadline, self.log.due()].into_iter().flatten().min();
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        watched.extend(
            self.sources
                .iter()
                .map(|source| PollFd::new(source.pipe.as_fd(), PollFlags::POLLIN)),
        );
        let holder = self.memory.as_ref().and_then(HeldMemory::watched);
        let holder_at = holder.map(|holder| {
            watched.push(PollFd::new(holder, PollFlags::POLLIN));
            watched.len() - 1
        });
        let stdin = io::stdin();
        if self.listens_to_orders {
            watched.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, timeout(deadline)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let held = holder_at
            .and_then(|at| watched.get(at))
            .and_then(PollFd::any)
            .unwrap_or(false);
        let ordered = self.listens_to_orders && watched.last().and_then(PollFd::any).unwrap_or(false);
        if ordered {
            self.order = Some(read_order()?);
        }
        if let Some(memory) = self.memory.as_mut().filter(|_| held) {
            memory.turn();
        }
        self.read_all();
        self.log.flush_due(Instant::now());
        self.reap()
    }

    /// Reads every pipe once; false if none had anything.
    fn read_all(&mut self) -> bool {
        let mut any = false;
        let mut sources = std::mem::take(&mut self.sources);
        sources.retain_mut(|source| match source.pipe.read(&mut self.buffer) {
            Ok(0) => false,
            Ok(length) => {
                any = true;
                self.take(source.stream, length);
                true
            }
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
            ),
        });
        self.sources = sources;
        any
    }

    fn take(&mut self, stream: Stream, length: usize) {
        let Some(bytes) = self.buffer.get(..length) else {
            return;
        };
        match &mut self.held {
            Some(held) => {
                held.push((stream, bytes.to_vec()));
                if held.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() > MAX_HELD_BYTES {
                    self.release();
                }
            }
            None => self.log.write(stream, bytes),
        }
    }

    fn reap(&mut self) -> io::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        loop {
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    self.ended.insert(pid.as_raw(), Ended::Exited(code));
                }

                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended.insert(pid.as_raw(), Ended::Killed(signal as i32));
                }
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// What is on standard input, which is known to be readable.
fn read_order() -> io::Result<Order> {
    let mut word = [0; START.len()];
    let length = rustix::io::read(io::stdin(), &mut word)?;
    Ok(if word.get(..length) == Some(START) {
        Order::Start
    } else {
        Order::Gone
    })
}

/// Rounded up, so that the deadline has passed when it is over.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}
