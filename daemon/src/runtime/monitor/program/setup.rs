//! From a child of the daemon to a process of its own.

use std::fs::{self, File};
use std::io::{self, BufRead, Read};

use super::super::super::cgroup::Cgroup;
use super::super::job::{Job, MAX_JOB_BYTES};
use super::super::record::ProcessId;
use super::complain;

/// Why there is nothing to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    /// The job cannot be read.
    #[error("cannot read the job from standard input")]
    Read(#[from] io::Error),
    /// It is not a job.
    #[error("what is on standard input is not a job: this program is started by transhipd")]
    Form(#[source] serde_json::Error),
}

/// The job on standard input. What follows it there is said later, after the first report.
pub(super) fn job() -> Result<Job, SetupError> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_JOB_BYTES)
        .read_until(b'\n', &mut text)?;
    serde_json::from_slice(&text).map_err(SetupError::Form)
}

/// A session of its own, so that no terminal's signals reach it; the reaper of whatever runc leaves behind; a cgroup of
/// its own, so that a service manager which ends the daemon's does not end it.
pub(super) fn detach(job: &Job) -> io::Result<ProcessId> {
    nix::unistd::setsid()?;
    nix::sys::prctl::set_child_subreaper(true)?;
    complain(
        "enter a cgroup of its own",
        Cgroup::at(&job.monitor_cgroup).enter(),
    );
    ProcessId::of(nix::unistd::getpid().as_raw())
}

/// Closes the pipe to the daemon: everything has been said.
pub(super) fn stop_reporting() {
    let done = File::options().write(true).open("/dev/null").and_then(|null| {
        nix::unistd::dup2_stdout(&null)?;
        Ok(())
    });
    complain("close the pipe to the daemon", done);
}

/// Our children, those included that became ours when their parent ended.
pub(super) fn children() -> io::Result<Vec<i32>> {
    let me = nix::unistd::getpid();
    let text = match fs::read_to_string(format!("/proc/{me}/task/{me}/children")) {
        // A kernel without this file has no CRIU either, which is what could leave some.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        read => read?,
    };
    Ok(text
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect())
}
