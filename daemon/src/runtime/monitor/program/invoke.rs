//! Calls of runc by the monitor. Their ends arrive as events, so a child is known by its pid here, and reaped there.

use std::fs;
use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::job::{Job, MAX_DETAIL_BYTES};
use super::events::Ended;
use super::stdio::set_nonblocking;

/// How long `runc delete` may take.
pub(super) const DELETE_DEADLINE: Duration = Duration::from_secs(30);

/// What went wrong with a call of runc, in words for the daemon.
#[derive(Debug)]
pub(super) struct RuncFailed(pub(super) String);

impl RuncFailed {
    /// For errors of our own around a call.
    pub(super) fn because(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self(format!("cannot {what}: {error}"))
    }
}

/// A call of runc that is about to be made.
pub(super) struct Invocation<'a> {
    job: &'a Job,
    command: &'static str,
}

impl<'a> Invocation<'a> {
    pub(super) fn of(job: &'a Job, command: &'static str) -> Self {
        Self { job, command }
    }

    /// Starts `runc create` or `runc restore` with these as the container's standard output and error. The container inherits
    /// them, so what runc itself says comes through the second as well. Standard input is /dev/null, which runc opens anew
    /// inside the container, where a dump finds it.
    pub(super) fn bring_up(self, arguments: &[String], stdio: [OwnedFd; 2]) -> Result<i32, RuncFailed> {
        let [stdout, stderr] = stdio;
        let pid_file = pid_file(self.job);
        // One of an earlier life must not be taken for this one's.
        fs::remove_file(&pid_file)
            .or_else(ignore_missing)
            .map_err(RuncFailed::because("remove the old pid file"))?;
        let mut runc = self.base();
        if self.command == "restore" {
            runc.arg("--detach");
        }
        runc.arg("--bundle")
            .arg(&self.job.bundle)
            .arg("--pid-file")
            .arg(&pid_file);
        runc.args(arguments).arg(self.job.id.as_str());
        runc.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        spawn(&mut runc)
    }

    /// Starts another command, and gives what it says.
    pub(super) fn spawn(self) -> Result<(i32, Said), RuncFailed> {
        let (reader, writer) = io::pipe().map_err(RuncFailed::because("make a pipe"))?;
        set_nonblocking(&reader).map_err(RuncFailed::because("use a pipe"))?;
        let mut runc = self.base();
        if self.command == "delete" {
            runc.arg("--force");
        }
        runc.arg(self.job.id.as_str());
        runc.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer);
        Ok((spawn(&mut runc)?, Said(reader)))
    }

    fn base(&self) -> Command {
        let mut runc = Command::new(&self.job.runc);
        runc.arg("--root").arg(&self.job.runc_root);
        // What it warns of must not become output of the container; why it fails is said on standard error as well.
        runc.arg("--log")
            .arg(self.job.bundle.join("runc.log"))
            .arg(self.command);
        runc
    }
}

/// The standard error of a program that has ended. It is read afterwards: what fits into a pipe is more than is shown.
pub(super) struct Said(PipeReader);

impl Said {
    /// What is in the pipe.
    pub(super) fn read(&mut self) -> Vec<u8> {
        let mut text = vec![0; MAX_DETAIL_BYTES];
        let length = self.0.read(&mut text).unwrap_or(0);
        text.truncate(length);
        text
    }
}

/// The error of a call that ended badly, or not in time: then it is ended here.
pub(super) fn failure(child: i32, ended: Option<Ended>, said: &[u8]) -> RuncFailed {
    let how = match ended {
        None => {
            kill(Pid::from_raw(child), Signal::SIGKILL).ok();
            "it did not end in time".to_owned()
        }
        Some(Ended::Exited(code)) => format!("exit code {code}"),
        Some(Ended::Killed(signal)) => format!("killed by signal {signal}"),
    };
    let from = said.len().saturating_sub(MAX_DETAIL_BYTES);
    let text = String::from_utf8_lossy(&said[from..]);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        RuncFailed(how)
    } else {
        RuncFailed(format!("{} ({how})", lines.join("; ")))
    }
}

/// The pid that runc has written.
pub(super) fn read_pid(job: &Job) -> Result<i32, RuncFailed> {
    let path = pid_file(job);
    let text = fs::read_to_string(&path).map_err(RuncFailed::because("read the pid file"))?;
    fs::remove_file(&path).map_err(RuncFailed::because("remove the pid file"))?;
    text.trim()
        .parse()
        .map_err(|_| RuncFailed(format!("runc wrote {text:?} for a pid")))
}

fn pid_file(job: &Job) -> PathBuf {
    job.run.join("init.pid")
}

fn spawn(command: &mut Command) -> Result<i32, RuncFailed> {
    let child = command.spawn().map_err(|error| {
        RuncFailed(format!(
            "cannot run {}: {error}",
            command.get_program().to_string_lossy()
        ))
    })?;
    i32::try_from(child.id()).map_err(|_| RuncFailed("the kernel gave a pid that is none".to_owned()))
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound {
        Ok(())
    } else {
        Err(error)
    }
}
