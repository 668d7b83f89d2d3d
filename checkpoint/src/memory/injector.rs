//! The process that takes userfaultfds out of others, and who asks it to.
//!
//! A thread that has been made to do a call stands there with registers that are not its own. Should its tracer end then, the
//! kernel lets it run with those, and its process is lost. A daemon may be killed at any time; so the tracer is a program of its
//! own, which ends when it has nothing begun and its daemon is gone. It is asked for one process after the other, on a socket that is
//! its standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde::{Deserialize, Serialize};

use super::inject::{InjectError, Taken, take_userfaultfd};
use crate::packet::{self, Packet};

/// How long an answer is waited for. What was asked is done all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a service manager or a terminal sends to all processes of a service.
const NOT_FOR_IT: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    pid: i32,
    /// It has a filter of system calls.
    seccomp: bool,
}

/// For how long the process stood still; the descriptor is with it.
type Answer = Result<Duration, InjectError>;

/// Has userfaultfds taken out of processes by the program `tranship-injector`, which is started when it is needed.
#[derive(Debug)]
pub struct Injector {
    program: PathBuf,
    connection: Option<OwnedFd>,
}

impl Injector {
    /// By this program.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            connection: None,
        }
    }

    /// Takes a userfaultfd out of the process `pid`; `seccomp` says whether it has a filter. Blocks up to some seconds, 0.2 to
    /// 0.5 ms where nothing is in the way and the program runs already.
    pub(super) fn take(&mut self, pid: i32, seccomp: bool) -> Result<Taken, InjectError> {
        let failed = |source| InjectError::Trace {
            pid,
            step: "the program that does it".into(),
            source,
        };
        // Put back where the next answer will be to the next question.
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => start(&self.program).map_err(failed)?,
        };
        let packet = match ask(&connection, &Request { pid, seccomp }) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(InjectError::Busy {
                    pid,
                    waited_ms: PATIENCE.as_millis(),
                });
            }
            other => other.map_err(failed)?,
        };
        self.connection = Some(connection);
        let answer: Answer = serde_json::from_slice(&packet.bytes).map_err(|error| failed(error.into()))?;
        let stalled = answer?;
        let fd = packet.fds.into_iter().next();
        let fd = fd.ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        Ok(Taken { fd, stalled })
    }
}

fn start(program: &Path) -> io::Result<OwnedFd> {
    let (ours, its) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    set_socket_timeout(&ours, Timeout::Recv, Some(PATIENCE))?;
    let mut child = Command::new(program)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(its))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    std::thread::Builder::new()
        .name("injector".to_owned())
        .spawn(move || child.wait())?;
    Ok(ours)
}

fn ask(connection: &OwnedFd, request: &Request) -> io::Result<Packet> {
    let question = Packet {
        bytes: serde_json::to_vec(request)?,
        fds: Vec::new(),
    };
    packet::send(connection, &question)?;
    packet::receive(connection)?.ok_or_else(|| io::ErrorKind::ConnectionAborted.into())
}

/// What the program does, to its end.
#[must_use]
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        // Silent on purpose: whoever would hear of it is gone.
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    // Whoever ends this program in the middle ends a process of a container, too.
    nix::unistd::setsid()?;
    SigSet::from_iter(NOT_FOR_IT).thread_block()?;
    // Without the right to say so it is as likely to be ended as the daemon when memory runs out.
    std::fs::write("/proc/self/oom_score_adj", "-1000").ok();
    let daemon = io::stdin();
    let daemon = daemon.as_fd();
    while let Some(question) = packet::receive(daemon)? {
        let request: Request = serde_json::from_slice(&question.bytes)?;
        let (answer, fds): (Answer, _) = match take_alone(&request) {
            Ok(taken) => (Ok(taken.stalled), vec![taken.fd]),
            Err(error) => (Err(error), Vec::new()),
        };
        let bytes = serde_json::to_vec(&answer)?;
        packet::send(daemon, &Packet { bytes, fds })?;
    }
    Ok(())
}

/// On a thread of its own, whose end lets go of whatever it still traces. A task that did not stop in time would stop later, for as long
/// as this program lives; and one that ended meanwhile would be kept from its parent, and CRIU from the container.
fn take_alone(request: &Request) -> Result<Taken, InjectError> {
    let failed = |source| InjectError::Trace {
        pid: request.pid,
        step: "a thread that does it".into(),
        source,
    };
    std::thread::scope(|scope| {
        let taking = std::thread::Builder::new()
            .spawn_scoped(scope, || take_userfaultfd(request.pid, request.seccomp));
        let taken = taking.map_err(failed)?.join();
        taken.unwrap_or_else(|_| Err(failed(io::Error::other("it has panicked"))))
    })
}
