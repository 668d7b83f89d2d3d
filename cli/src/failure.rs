//! What can go wrong, how it is told, and which exit code it is.

use std::io;

use tonic::{Code, Status};

/// Docker's exit code of `run` and `exec` when the daemon, not the command, failed.
pub const DAEMON_FAILED: u8 = 125;
/// Docker's exit code for a command that is there and cannot be run.
pub const CANNOT_RUN: u8 = 126;
/// Docker's exit code for a command that is not there.
pub const NOT_THERE: u8 = 127;

/// A verb that did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No daemon answers.
    #[error(
        "cannot reach transhipd at {address}: {cause}; nothing was done: start the daemon, or name another with \
         --host or TRANSHIP_HOST"
    )]
    Unreachable {
        /// As the user gave it.
        address: String,
        /// The innermost reason.
        cause: String,
    },
    /// The daemon said no.
    #[error("{}", .0.message())]
    Daemon(#[from] Box<Status>),
    /// Something on this machine.
    #[error("{what}: {source}")]
    Local {
        /// What was tried, with its path.
        what: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The words on the command line do not go together.
    #[error("{0}")]
    Usage(String),
    /// Some of several names failed; each has been told already.
    #[error("{failed} of {all} failed")]
    Some {
        /// How many failed.
        failed: usize,
        /// Of how many.
        all: usize,
    },
    /// One with an exit code of its own.
    #[error("{source}")]
    WithCode {
        /// The exit code.
        code: u8,
        /// What happened.
        source: Box<Failure>,
    },
}

impl Failure {
    /// A failure on this machine.
    pub fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Local { what, source }
    }

    /// The same failure with an exit code of its own.
    #[must_use]
    pub fn with_code(self, code: u8) -> Self {
        Self::WithCode {
            code,
            source: Box::new(self),
        }
    }

    /// Tells the user, unless that has happened.
    pub fn print(&self) {
        match self {
            Self::Some { .. } => {}
            Self::Local { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {}
            other => eprintln!("tranship: {other}"),
        }
    }

    /// The process's exit code.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::WithCode { code, .. } => *code,
            Self::Usage(_) => 2,
            _ => 1,
        }
    }

    /// The exit code under Docker's contract for `run` and `exec`.
    #[must_use]
    pub fn docker_code(&self) -> u8 {
        let Self::Daemon(status) = self else {
            return DAEMON_FAILED;
        };
        let text = status.message().to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        // The runtime reports these in words only, always beside the word exec.
        match text.contains("exec") {
            true if says(&["executable file not found", "no such file or directory"]) => NOT_THERE,
            true if says(&["permission denied", "is a directory", "exec format error"]) => CANNOT_RUN,
            _ => DAEMON_FAILED,
        }
    }

    /// The exit code of `migrate` when no outcome is known.
    #[must_use]
    pub fn migrate_code(&self) -> u8 {
        match self {
            Self::Daemon(status) => match status.code() {
                Code::NotFound => 3,
                Code::InvalidArgument => 2,
                Code::FailedPrecondition => 4,
                _ => 1,
            },
            other => other.exit_code(),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::Daemon(Box::new(status))
    }
}

/// Whether these words, of which some may be wrong, are a `run` or an `exec`.
pub fn is_run_or_exec(words: impl Iterator<Item = String>) -> bool {
    let mut words = words;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--host" | "--format" => drop(words.next()),
            "run" | "exec" => return true,
            word if word.starts_with('-') => {}
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: Code, text: &str) -> Failure {
        Status::new(code, text).into()
    }

    #[test]
    fn a_missing_command_is_127_and_one_that_cannot_run_126() {
        let missing = refusal(
            Code::FailedPrecondition,
            r#"exec: "nope": executable file not found in $PATH"#,
        );
        assert_eq!(missing.docker_code(), 127);
        let folder = refusal(Code::FailedPrecondition, r#"exec: "/etc": permission denied"#);
        assert_eq!(folder.docker_code(), 126);
        assert_eq!(
            refusal(Code::NotFound, "no image of the name x").docker_code(),
            125
        );
    }

    #[test]
    fn migrate_tells_no_such_object_from_a_refusal() {
        assert_eq!(refusal(Code::NotFound, "").migrate_code(), 3);
        assert_eq!(refusal(Code::FailedPrecondition, "").migrate_code(), 4);
        assert_eq!(refusal(Code::Unavailable, "").migrate_code(), 1);
    }

    #[test]
    fn run_is_recognised_behind_global_flags() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>().into_iter();
        assert!(is_run_or_exec(words("--host unix:///run -q run --bad")));
        assert!(!is_run_or_exec(words("ps run")));
    }
}
