//! What `tranship-filler` does, from top to bottom.
//!
//! It is a process of its own, for three reasons: a daemon may end while a container's memory is being filled; it must not be
//! inside the container's cgroup, whose freezer or memory limit would stop it while its container waits for it; and what
//! it does wrong must not happen to other containers.

use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use serde::{Deserialize, Serialize};

use super::content::Content;
use super::crew::Crew;
use super::holder::{HolderLink, SOCKET_NAME};
use super::lazy::lazy_memory;
use super::mark::Mark;
use super::session::{Ended, Planned, Session};
use super::wire::{Figures, Progress, ToHolder};
use crate::cgroup;

/// What CRIU looks for in its working directory.
const LAZY_SOCKET_NAME: &str = "lazy-pages.socket";

/// Threads that fill beside the one that answers.
const WORKERS: usize = 3;

/// What a filler is told, as one line of JSON on its standard input. When that ends before CRIU has come, so does the filler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillJob {
    /// The sealed store.
    pub store_dir: PathBuf,
    /// CRIU's images.
    pub images_dir: PathBuf,
    /// Where CRIU works.
    pub work_dir: PathBuf,
    /// A file that exists as long as the memory is not complete.
    pub mark: PathBuf,
    /// The cgroup to live in, if any; that of the container's monitor.
    pub cgroup: Option<String>,
    /// Milliseconds until CRIU must have come.
    pub deadline_ms: u64,
}

/// Runs a filler: the job is on standard input, [`Progress`] goes to standard output.
#[must_use]
pub fn run() -> ExitCode {
    match fill() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&Progress::Failed(error.to_string()));
            ExitCode::FAILURE
        }
    }
}

fn fill() -> io::Result<()> {
    let job = read_job()?;
    // A session of its own: nothing that is sent to the daemon's reaches it.
    nix::unistd::setsid()?;
    let mark = Mark::make(&job.mark)?;
    let sockets = Sockets::listen(&job.work_dir)?;
    tell(&Progress::Listening);
    let Some((criu, holder)) = sockets.wait(Duration::from_millis(job.deadline_ms))? else {
        return Ok(());
    };
    drop(sockets);
    let mut holder = HolderLink::new(holder)?;
    if let Some(cgroup) = &job.cgroup {
        enter(cgroup);
    }
    let ended = serve(&job, criu, &mut holder);
    let (word, progress) = match &ended {
        Ok(Ended::Complete(figures)) => (ToHolder::Complete, Progress::Complete(*figures)),
        Ok(Ended::Aborted) => (ToHolder::Aborted, Progress::Aborted),
        Err(error) => {
            let reason = error.to_string();
            (ToHolder::Failed(reason.clone()), Progress::Failed(reason))
        }
    };
    // In this order: as long as the mark is there nobody dumps the container.
    holder.tell(&word, Vec::new())?;
    drop(mark);
    tell(&progress);
    ended.map(drop)
}

/// Loads what is to be filled, while CRIU is at work, and fills it.
fn serve(job: &FillJob, criu: OwnedFd, holder: &mut HolderLink) -> io::Result<Ended> {
    let begun = Instant::now();
    raise_descriptor_limit();
    let (crew, planned, woken) = load(job)?;
    let load_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS));
    let ended = std::thread::scope(|scope| {
        for worker in 0..workers {
            let (crew, early) = (&crew, worker < workers.div_ceil(2));
            scope.spawn(move || crew.work(early));
        }
        let ended = Session::new(&crew, planned, criu, holder, woken).run(|| tell(&Progress::Restored));
        crew.stop();
        ended
    })?;
    Ok(match ended {
        Ended::Complete(figures) => Ended::Complete(Figures { load_us, ..figures }),
        Ended::Aborted => Ended::Aborted,
    })
}

fn load(job: &FillJob) -> io::Result<(Crew, Planned, UnixStream)> {
    let content = Content::open(&job.store_dir)?;
    let mut planned = Planned::new();
    for memory in lazy_memory(&job.images_dir)? {
        let missing = content.missing_of(&memory).map_err(io::Error::other)?;
        content.keep(memory.process, &missing);
        planned.insert(memory.process, (missing, Arc::new(memory.not_inherited)));
    }
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    Ok((Crew::new(content, wake), planned, woken))
}

fn read_job() -> io::Result<FillJob> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

fn tell(progress: &Progress) {
    let line = serde_json::to_string(progress).unwrap_or_default();
    let mut out = io::stdout().lock();
    // A daemon that is gone finds the mark, or its absence, when it is back.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Where CRIU and the holder come to.
struct Sockets {
    criu: UnixListener,
    holder: OwnedFd,
}

impl Sockets {
    fn listen(work_dir: &Path) -> io::Result<Self> {
        let lazy = work_dir.join(LAZY_SOCKET_NAME);
        let holder = work_dir.join(SOCKET_NAME);
        for path in [&lazy, &holder] {
            remove_stale(path)?;
        }
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        bind(&socket, &SocketAddrUnix::new(&holder)?)?;
        listen(&socket, 1)?;
        Ok(Self {
            criu: UnixListener::bind(&lazy)?,
            holder: socket,
        })
    }

    /// Waits for both; nothing if they do not come, or are not wanted any more.
    fn wait(&self, limit: Duration) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
        let deadline = Instant::now() + limit;
        let (mut criu, mut holder): (Option<OwnedFd>, Option<OwnedFd>) = (None, None);
        while criu.is_none() || holder.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let stdin = io::stdin();
            // Each of the three is of interest as long as it can change anything.
            let mut watched = Vec::new();
            for (fd, open) in [
                (self.criu.as_fd(), criu.is_none()),
                (self.holder.as_fd(), holder.is_none()),
                (stdin.as_fd(), criu.is_none()),
            ] {
                watched.extend(open.then(|| PollFd::new(fd, PollFlags::POLLIN)));
            }
            match poll(
                &mut watched,
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            ) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let events: Vec<bool> = watched.iter().map(|fd| fd.any() == Some(true)).collect();
            let mut events = events.into_iter();
            let mut next = |open: bool| open && events.next() == Some(true);
            let [criu_came, holder_came, given_up] =
                [next(criu.is_none()), next(holder.is_none()), next(criu.is_none())];
            if criu_came {
                criu = Some(self.criu.accept()?.0.into());
            }
            if holder_came {
                holder = Some(accept_with(&self.holder, SocketFlags::CLOEXEC)?);
            }
            if given_up && criu.is_none() {
                return Ok(None);
            }
        }
        Ok(criu.zip(holder))
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Out of the daemon's cgroup, which a service manager may end as a whole. It only matters then, so a failure does not.
fn enter(cgroup: &str) {
    for directory in cgroup::all_directories(cgroup).unwrap_or_default() {
        let _ = std::fs::write(directory.join("cgroup.procs"), "0");
    }
}

/// A process of the container has one descriptor here; the usual limit is 1024.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where it cannot be raised, a container with more processes fails, and says so.
    let _ = setrlimit(Resource::Nofile, raised);
}
