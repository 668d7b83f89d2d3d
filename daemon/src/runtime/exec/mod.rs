//! A further process inside a running container, for as long as the client that asked for it listens.
//!
//! ```text
//!   client -- ExecInput -->  session task  -- pipes, or a pty --> runc exec -- its own pty --> the process
//!   client <-- ExecOutput --
//! ```
//!
//! `runc exec` stays for the process's life, relays its terminal and answers its exit code. When the client goes away,
//! the process is killed first, by a descriptor that cannot mean another one, and runc with it. `command` makes the call,
//! `session` is the task in between.

mod command;
mod session;

use bytes::Bytes;
use tokio::sync::mpsc;
use tranship_proto::v1::TerminalSize;

/// What is to be run inside a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExecRequest {
    /// Program and arguments; looked up in the PATH of its environment.
    pub command: Vec<String>,
    /// `KEY=VALUE`, on top of the container's.
    pub env: Vec<String>,
    /// `USER[:GROUP]`; empty is the container's.
    pub user: String,
    /// Empty is the container's.
    pub workdir: String,
    /// Whether standard input is passed on; without, it is empty.
    pub interactive: bool,
    /// Whether it gets a terminal. Standard error is then part of standard output.
    pub tty: bool,
    /// The terminal's first size.
    pub size: Option<TerminalSize>,
}

/// What a client sends to a process.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecInput {
    /// Bytes for its standard input.
    Stdin(Bytes),
    /// No more of those.
    StdinEnd,
    /// Its terminal has another size; ignored without one.
    Resize(TerminalSize),
}

/// What a process sends to its client.
#[derive(Clone, Debug, PartialEq)]
pub enum ExecOutput {
    /// Bytes of its standard output, or of its terminal.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It has ended: exit code, or 128 + signal; 126 and 127 for a program that could not be run or found. The last one.
    Exit(i32),
}

/// A process inside a container.
#[derive(Debug)]
pub struct ExecSession {
    /// To the process. Dropping it ends standard input, but not that of a terminal: only [`ExecInput::StdinEnd`] does.
    pub input: mpsc::Sender<ExecInput>,
    /// From the process; closed after [`ExecOutput::Exit`]. Dropping it kills the process.
    pub output: mpsc::Receiver<ExecOutput>,
}
