//! `fork` as the workloads use it: the child goes on with a copy of everything.
#![expect(unsafe_code, reason = "fork is unsafe where there are threads")]

use std::io;

use anyhow::{Context, Result, ensure};

/// Who one is after a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    /// The new process.
    Child,
    /// The old one; the pid of the other.
    Parent(i32),
}

/// Makes a copy of the calling process.
///
/// # Errors
/// The process has more than one thread, or the kernel refuses.
pub fn fork() -> Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").context("cannot count the threads")?;
    ensure!(
        threads.count() == 1,
        "only a process with one thread may be forked"
    );
    // SAFETY: no other thread exists whose locks or half-done work the child could inherit.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()).context("cannot fork"),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent(pid)),
    }
}
