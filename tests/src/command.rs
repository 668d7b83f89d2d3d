//! Runs a program to its end, with a deadline, and turns a failure into an error that says what the program said.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// For programs that only talk to the kernel.
pub const SHORT: Duration = Duration::from_secs(20);

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// Standard output as text, without the white space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, without the white space around it.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

/// A command with its arguments.
pub fn command<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = S>,
) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// Runs a command to its end and answers whatever its exit status was.
///
/// Its output goes through unnamed files, so that a program that writes much cannot stall, and one that leaves a child
/// behind cannot hold us. Past the deadline it is killed.
///
/// # Errors
/// The program cannot be started, or does not end in time.
pub fn finish(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let mut stdout = tempfile::tempfile().context("cannot make a temporary file")?;
    let mut stderr = tempfile::tempfile().context("cannot make a temporary file")?;
    command
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .stdin(Stdio::null());
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_micros(500);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            let said = String::from_utf8_lossy(&contents(&mut stderr)?).trim().to_owned();
            bail!("{} did not end within {deadline:?}: {said}", shown(command));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    Ok(Finished {
        status,
        stdout: contents(&mut stdout)?,
        stderr: contents(&mut stderr)?,
    })
}

/// As [`finish`], but an exit status other than 0 is an error.
///
/// # Errors
/// As [`finish`]; also a program that fails, with what it wrote to its standard error.
pub fn succeed(command: &mut Command, deadline: Duration) -> Result<Finished> {
    let finished = finish(command, deadline)?;
    if !finished.status.success() {
        bail!(
            "{} failed ({}): {}",
            shown(command),
            finished.status,
            finished.errors()
        );
    }
    Ok(finished)
}

/// The command as one could type it, for messages.
#[must_use]
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn contents(file: &mut File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_the_program_said() {
        let error = succeed(&mut command("sh", ["-c", "echo no such luck >&2; exit 3"]), SHORT).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("no such luck") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let begun = Instant::now();
        let error = finish(&mut command("sleep", ["60"]), Duration::from_millis(50)).unwrap_err();
        assert!(format!("{error:#}").contains("did not end within"));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn much_output_does_not_stall() {
        let done = finish(&mut command("head", ["-c", "4000000", "/dev/zero"]), SHORT).unwrap();
        assert_eq!(done.stdout.len(), 4_000_000);
    }
}
