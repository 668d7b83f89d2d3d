//! Runs a program and notices its end at once.
//!
//! [`command::finish`](crate::command::finish) looks every few milliseconds, which is fine for tests; here the time
//! between the steps of the baseline would be counted against it.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::command::shown;

/// Runs a program to its end and answers what it printed; an exit status other than 0 is an error.
///
/// # Errors
/// It cannot be started, fails, or does not end in time; the message holds what it wrote to its standard error.
pub fn run(command: &mut Command, deadline: Duration) -> Result<String> {
    let mut stdout = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut stderr = tempfile::tempfile().context("cannot make a temporary file")?;
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pidfd_open(pid.context("a child has a pid")?, PidfdFlags::empty())?;
    let end = Instant::now() + deadline;
    let mut ended = false;
    while !ended && Instant::now() < end {
        let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(count) => ended = count > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a program"),
        }
    }
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let errors = contents(&mut stderr)?;
    if !ended {
        bail!("{} did not end within {deadline:?}: {errors}", shown(command));
    }
    if !status.success() {
        bail!("{} failed ({status}): {errors}", shown(command));
    }
    contents(&mut stdout)
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn output_comes_back_and_a_failure_says_why() {
        let minute = Duration::from_secs(60);
        assert_eq!(run(&mut command("echo", ["word"]), minute).unwrap(), "word");
        let error = run(&mut command("sh", ["-c", "echo why >&2; exit 4"]), minute).unwrap_err();
        assert!(format!("{error:#}").contains("why"));
    }

    #[test]
    fn a_program_past_its_deadline_is_ended() {
        let error = run(&mut command("sleep", ["60"]), Duration::from_millis(20)).unwrap_err();
        assert!(format!("{error:#}").contains("did not end within"));
    }
}
