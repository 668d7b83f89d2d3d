//! The pipes between a container and its monitor. They exist as long as the container does: a freeze changes nothing, and
//! a restored container gets new ones in place of the dumped.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};

use super::invoke::RuncFailed;

/// Both pipes, both ends.
pub(super) struct Stdio {
    /// Standard output and error, to be read.
    pub(super) ours: [PipeReader; 2],
    theirs: [PipeWriter; 2],
}

impl Stdio {
    /// Two new pipes; our ends do not block.
    pub(super) fn new() -> io::Result<Self> {
        let (stdout, stdout_writer) = io::pipe()?;
        let (stderr, stderr_writer) = io::pipe()?;
        for ours in [&stdout, &stderr] {
            set_nonblocking(ours)?;
        }
        Ok(Self {
            ours: [stdout, stderr],
            theirs: [stdout_writer, stderr_writer],
        })
    }

    /// The writing ends for a child. Ours are closed when this value is taken apart, so that the end of the last writer is
    /// seen.
    pub(super) fn for_child(&self) -> Result<[OwnedFd; 2], RuncFailed> {
        let [stdout, stderr] = &self.theirs;
        let copy = |end: &PipeWriter| {
            end.as_fd()
                .try_clone_to_owned()
                .map_err(RuncFailed::because("copy a pipe"))
        };
        Ok([copy(stdout)?, copy(stderr)?])
    }
}

/// Makes reads return at once. Only the reading end: the container's writes block when the pipe is full, as they should.
pub(super) fn set_nonblocking(end: &impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(end)?;
    rustix::fs::fcntl_setfl(end, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}
