//! One host of a running testbed, or its client.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::holder::Holder;
use super::layout::Layout;
use crate::command::{self, Finished};

/// A host: a holder and the layout it belongs to.
#[derive(Clone, Debug)]
pub struct Host {
    /// The process that is the host.
    pub holder: Holder,
    /// The testbed's directories.
    pub layout: Layout,
}

impl Host {
    /// `a`, `b`, ... or `client`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.holder.name
    }

    /// A command that runs a program on this host. It is not started yet: add arguments, pipes, environment.
    pub fn command<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = self.holder.enter();
        command.arg(program).args(arguments);
        command
    }

    /// Runs a program on this host; an exit status other than 0 is an error.
    ///
    /// # Errors
    /// It cannot be started, fails, or does not end within [`command::SHORT`].
    pub fn run<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Finished> {
        command::succeed(&mut self.command(program, arguments), command::SHORT)
    }

    /// Runs a program on this host and answers whatever its exit status was.
    ///
    /// # Errors
    /// It cannot be started, or does not end within `deadline`.
    pub fn finish<S: AsRef<OsStr>>(
        &self,
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
        deadline: Duration,
    ) -> Result<Finished> {
        command::finish(&mut self.command(program, arguments), deadline)
    }

    /// A path of this host as the machine's own processes can reach it.
    #[must_use]
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.holder.path(inside.as_ref())
    }
}
