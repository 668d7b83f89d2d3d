//! The task between a client and its process.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::termios::tcsetwinsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::process::ChildStdin;
use tokio::sync::mpsc;
use tranship_proto::v1::TerminalSize;

use super::super::sys;
use super::command::{Running, winsize};
use super::{ExecInput, ExecOutput, ExecSession};

/// Messages that wait for either side; with [`READ_BYTES`] each they are 1 MiB.
const WAITING_MESSAGES: usize = 32;

/// Largest piece of output.
const READ_BYTES: usize = 32 << 10;

/// How long output may still arrive when the process has ended: something it left behind may hold the pipes open.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Between two tries to find a process that runc is about to start, while its client is gone already.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How long runc may take from its start to that of a process, and from the end of that to its own.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// What shells answer for a program that cannot be run, and for one that is not there.
const CANNOT_RUN: i32 = 126;
const NOT_FOUND: i32 = 127;

/// Our end of a terminal.
#[derive(Debug)]
pub(super) struct Pty(AsyncFd<OwnedFd>);

impl Pty {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        sys::watch(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Nothing is the end: every process has closed the other side, which the kernel says with EIO.
    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Ok(0),
                Ok(read) => return read,
                Err(_) => {}
            }
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                bytes = bytes.get(written?..).unwrap_or_default();
            }
        }
        Ok(())
    }

    fn resize(&self, size: TerminalSize) {
        // A terminal that has gone has no size, and its end is seen elsewhere.
        tcsetwinsize(self.0.get_ref(), winsize(size)).ok();
    }
}

/// A session over pipes.
pub(super) fn with_pipes(mut running: Running) -> ExecSession {
    let (session, input, output) = channels();
    let stdin = running.child.stdin.take();
    let stdout = running.child.stdout.take();
    let stderr = running.child.stderr.take();
    tokio::spawn(async move {
        let plumbing = async {
            tokio::join!(
                copy_out(stdout, ExecOutput::Stdout, &output),
                copy_stderr(stderr, &output),
            )
        };
        // What is written after the process has closed its input is nobody's error.
        let feed = feed_pipe(stdin, input);
        let said = supervise(running, plumbing, feed, &output).await;
        output.send(ExecOutput::Exit(said)).await.ok();
    });
    session
}

/// A session over a terminal.
pub(super) fn with_pty(running: Running, pty: Pty) -> ExecSession {
    let (session, input, output) = channels();
    tokio::spawn(async move {
        let plumbing = async { ((), copy_terminal(&pty, &output).await) };
        let feed = feed_terminal(&pty, input);
        let said = supervise(running, plumbing, feed, &output).await;
        output.send(ExecOutput::Exit(said)).await.ok();
    });
    session
}

fn channels() -> (ExecSession, mpsc::Receiver<ExecInput>, mpsc::Sender<ExecOutput>) {
    let (input_sender, input) = mpsc::channel(WAITING_MESSAGES);
    let (output, output_receiver) = mpsc::channel(WAITING_MESSAGES);
    (
        ExecSession {
            input: input_sender,
            output: output_receiver,
        },
        input,
        output,
    )
}

/// Until the process has ended and its output has arrived, or the client has gone. Gives the exit code; `plumbing` gives
/// the end of what was said last, in which runc's own complaint is found.
async fn supervise(
    mut running: Running,
    plumbing: impl Future<Output = ((), Vec<u8>)>,
    feed: impl Future<Output = ()>,
    output: &mpsc::Sender<ExecOutput>,
) -> i32 {
    tokio::pin!(plumbing, feed);
    let mut said = None;
    let mut feeding = true;
    let ended = loop {
        tokio::select! {
            ended = running.child.wait() => break ended,
            ((), last) = &mut plumbing, if said.is_none() => said = Some(last),
            () = &mut feed, if feeding => feeding = false,
            () = output.closed() => {
                end(&mut running).await;
                return CANNOT_RUN;
            }
        }
    };
    if said.is_none() {
        said = tokio::time::timeout(DRAIN_DEADLINE, plumbing)
            .await
            .ok()
            .map(|((), last)| last);
    }
    let started = running.pid_file().exists();
    ended.map_or(CANNOT_RUN, |status| {
        exit_code(status, started, &said.unwrap_or_default())
    })
}

/// The code of the process; if there never was one, the one a shell has for the reason.
fn exit_code(status: ExitStatus, started: bool, said: &[u8]) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    if started || status.success() {
        return status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    }
    let said = String::from_utf8_lossy(said);
    let missing = ["executable file not found", "no such file or directory"]
        .iter()
        .any(|text| said.contains(text));
    if missing { NOT_FOUND } else { CANNOT_RUN }
}

/// Kills the process, then runc.
async fn end(running: &mut Running) {
    let pid_file = running.pid_file();
    let runc = running.child.id();
    let kill = async {
        // runc may be on its way to start it: then it is waited for, since a killed runc would leave it behind.
        while running.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if runc.is_some_and(|runc| kill_child_of(runc, &pid_file)) {
                break;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        running.child.wait().await
    };
    if tokio::time::timeout(KILL_DEADLINE, kill).await.is_err() {
        running.child.kill().await.ok();
    }
}

/// Kills the process whose pid is in the file, if it is a child of `parent`. As long as its parent has not reaped it,
/// which is a process of ours that we have not reaped, the number is its own.
fn kill_child_of(parent: u32, pid_file: &Path) -> bool {
    let killed = || -> Option<()> {
        let pid: i32 = std::fs::read_to_string(pid_file).ok()?.trim().parse().ok()?;
        let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let its_parent: u32 = fields.split_ascii_whitespace().nth(1)?.parse().ok()?;
        if its_parent != parent {
            return None;
        }
        pidfd_send_signal(&pidfd, Signal::KILL).ok()
    };
    killed().is_some()
}

async fn copy_out(
    from: Option<impl AsyncRead + Unpin>,
    wrap: fn(Bytes) -> ExecOutput,
    to: &mpsc::Sender<ExecOutput>,
) {
    copy(from, wrap, to).await;
}

async fn copy_stderr(from: Option<impl AsyncRead + Unpin>, to: &mpsc::Sender<ExecOutput>) -> Vec<u8> {
    copy(from, ExecOutput::Stderr, to).await
}

/// Passes everything on, and gives the last piece.
async fn copy(
    from: Option<impl AsyncRead + Unpin>,
    wrap: fn(Bytes) -> ExecOutput,
    to: &mpsc::Sender<ExecOutput>,
) -> Vec<u8> {
    let Some(mut from) = from else { return Vec::new() };
    let mut buffer = vec![0; READ_BYTES];
    let mut last = Vec::new();
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        last = buffer[..length].to_vec();
        if to.send(wrap(Bytes::copy_from_slice(&last))).await.is_err() {
            break;
        }
    }
    last
}

async fn copy_terminal(pty: &Pty, to: &mpsc::Sender<ExecOutput>) -> Vec<u8> {
    let mut buffer = vec![0; READ_BYTES];
    let mut last = Vec::new();
    while let Ok(length @ 1..) = pty.read(&mut buffer).await {
        last = buffer[..length].to_vec();
        if to
            .send(ExecOutput::Stdout(Bytes::copy_from_slice(&last)))
            .await
            .is_err()
        {
            break;
        }
    }
    last
}

async fn feed_pipe(mut stdin: Option<ChildStdin>, mut from: mpsc::Receiver<ExecInput>) {
    while let Some(input) = from.recv().await {
        match (input, &mut stdin) {
            (ExecInput::Stdin(bytes), Some(pipe)) => {
                if pipe.write_all(&bytes).await.is_err() {
                    stdin = None;
                }
            }
            (ExecInput::StdinEnd, _) => stdin = None,
            (ExecInput::Stdin(_), None) | (ExecInput::Resize(_), _) => {}
        }
    }
}

/// The end of input is what a user would type for it: the terminal itself stays open for what is still to come out of it.
async fn feed_terminal(pty: &Pty, mut from: mpsc::Receiver<ExecInput>) {
    const END_OF_TRANSMISSION: &[u8] = b"\x04";
    while let Some(input) = from.recv().await {
        let written = match input {
            ExecInput::Stdin(bytes) => pty.write_all(&bytes).await,
            ExecInput::StdinEnd => pty.write_all(END_OF_TRANSMISSION).await,
            ExecInput::Resize(size) => {
                pty.resize(size);
                Ok(())
            }
        };
        if written.is_err() {
            return;
        }
    }
}
