//! A child with a terminal of its own.

use std::os::fd::{AsFd, OwnedFd};

use tokio::process::Command;

/// Has the command's child lead a session whose controlling terminal is `terminal`, so that a change of size reaches it as
/// SIGWINCH, and a hang-up as SIGHUP. The command keeps the descriptor; the child does not inherit it.
pub(in super::super) fn with_controlling_terminal(command: &mut Command, terminal: OwnedFd) {
    let attach = move || {
        rustix::process::setsid()?;
        rustix::process::ioctl_tiocsctty(terminal.as_fd())?;
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes two system calls on a
    // descriptor that it owns, allocates nothing and takes no lock.
    unsafe { command.pre_exec(attach) };
}
