//! TCP connections that a dump has left silent.
//!
//! CRIU reads connections in repair and lets them speak again when it leaves. A CRIU that is killed in between leaves
//! them in repair for ever: the workload runs, its clients hang.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::sys::tcp;

/// Does `each` with every socket of a process that is in repair; returns how many there were. A process or descriptor
/// that is gone has none.
pub fn in_repair(pid: i32, mut each: impl FnMut(i32, &OwnedFd) -> io::Result<()>) -> io::Result<usize> {
    let Some(process) = Pid::from_raw(pid) else {
        return Ok(0);
    };
    let (Ok(process), Ok(descriptors)) = (
        pidfd_open(process, PidfdFlags::empty()),
        fs::read_dir(format!("/proc/{pid}/fd")),
    ) else {
        return Ok(0);
    };
    let mut found = 0;
    for descriptor in descriptors.flatten() {
        let is_socket = fs::read_link(descriptor.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"));
        let number = descriptor.file_name().to_str().and_then(|name| name.parse().ok());
        let (true, Some(number)) = (is_socket, number) else {
            continue;
        };
        let Ok(socket) = pidfd_getfd(process.as_fd(), number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        if tcp::is_in_repair(&socket)? {
            each(number, &socket)?;
            found += 1;
        }
    }
    Ok(found)
}

/// Lets the connections of a process speak again; returns how many were silent.
pub fn release(pid: i32) -> io::Result<usize> {
    in_repair(pid, |_, socket| tcp::leave_repair(socket))
}
