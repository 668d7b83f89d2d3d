//! Waiting for a process that is not our child.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;

use super::monitor::ProcessId;
use super::sys;

/// Returns when the process has ended; at once if it has already. Cancel-safe. It has no deadline of its own: a process lives as
/// long as it likes, and the caller knows how long he waits.
pub(crate) async fn ended(process: &ProcessId) -> io::Result<()> {
    let Some(pidfd) = open(process)? else {
        return Ok(());
    };
    let watched = sys::watch(pidfd, Interest::READABLE)?;
    watched.readable().await.map(drop)
}

/// A descriptor of the process, none if it has ended.
fn open(process: &ProcessId) -> io::Result<Option<OwnedFd>> {
    let pid = Pid::from_raw(process.pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Opened first and looked at afterwards, so that it cannot be a later process of the same number.
    Ok(process.is_alive().then_some(pidfd))
}
