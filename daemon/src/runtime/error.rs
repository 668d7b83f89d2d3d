//! What can go wrong with a container's run time, one enum per operation.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tranship_proto::ids::ContainerId;

/// Why a container did not start, or a restore did not begin or end.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The monitor program did not run. Nothing was started.
    #[error("cannot run the monitor {program}; nothing was started")]
    Spawn {
        /// What was to be run.
        program: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
    /// A file or directory of the container could not be prepared. Nothing was started.
    #[error("cannot prepare {path}; nothing was started")]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The runtime refused. What it had made is gone again.
    #[error("runc {stage} failed: {detail}")]
    Runtime {
        /// `create`, `start` or `restore`.
        stage: String,
        /// What runc said.
        detail: String,
    },
    /// The monitor ended without a word.
    #[error("the monitor of container {id} ended before it said whether the container runs; look into {log}")]
    Silent {
        /// Whose monitor.
        id: ContainerId,
        /// Where it writes what goes wrong.
        log: PathBuf,
    },
    /// The monitor did not answer in time. It gives up by itself soon after, or the container runs and `find` says so.
    #[error("the monitor of container {id} did not answer within {} s; ask for the container's state", waited.as_secs())]
    Deadline {
        /// Whose monitor.
        id: ContainerId,
        /// How long it had.
        waited: Duration,
    },
    /// The monitor said something that is not of its protocol.
    #[error("the monitor of container {id} said something unknown: {text:?}")]
    Garbage {
        /// Whose monitor.
        id: ContainerId,
        /// The beginning of it.
        text: String,
    },
}

/// Why a call of runc failed. The container is as it was, unless the message says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum RuncError {
    /// It could not be run.
    #[error("cannot run {program}")]
    Spawn {
        /// What was to be run.
        program: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
    /// It did not end in time, and was killed.
    #[error("runc {command} took more than {} s and was ended", deadline.as_secs())]
    Deadline {
        /// Subcommand.
        command: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// It said no.
    #[error("runc {command} failed: {detail}")]
    Failed {
        /// Subcommand.
        command: &'static str,
        /// What it said.
        detail: String,
    },
    /// It answered in a form nobody knows.
    #[error("the answer of runc {command} is not of the known form")]
    Answer {
        /// Subcommand.
        command: &'static str,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file of a cgroup could not be read or written.
    #[error("cannot use the cgroup file {path}")]
    Cgroup {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Processes did not go away.
    #[error("{left} processes of cgroup {cgroup} did not end within {} s of SIGKILL", deadline.as_secs())]
    Undead {
        /// Whose.
        cgroup: String,
        /// How many are left.
        left: usize,
        /// How long they had.
        deadline: Duration,
    },
}

/// Why the end of a container cannot be waited for.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The record of how it ended cannot be read.
    #[error("cannot read how container {id} ended, from {path}")]
    Record {
        /// Whose.
        id: ContainerId,
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A process could not be watched.
    #[error("cannot watch process {pid} of container {id}")]
    Watch {
        /// Whose.
        id: ContainerId,
        /// Which.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened or read.
    #[error("cannot read the log {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file cannot be watched for more.
    #[error("cannot watch {path} for changes")]
    Watch {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a command was not run inside a container.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// No command was given.
    #[error("there is no command to run")]
    NoCommand,
    /// The container does not run.
    #[error("container {id} does not run")]
    NotRunning {
        /// Which.
        id: ContainerId,
    },
    /// The configuration the container was started with cannot be read.
    #[error("cannot read {path}, which says how container {id} is confined")]
    Config {
        /// Which container.
        id: ContainerId,
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The user or working directory cannot be used.
    #[error(transparent)]
    Process(#[from] super::spec::SpecError),
    /// A pipe, terminal or file could not be made.
    #[error("cannot {what} for the command")]
    Plumbing {
        /// What was to be done.
        what: &'static str,
        /// Why it was not.
        source: io::Error,
    },
    /// runc could not be run.
    #[error("cannot run {program}")]
    Spawn {
        /// What was to be run.
        program: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
}
