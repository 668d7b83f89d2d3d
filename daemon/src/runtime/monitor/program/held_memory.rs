//! The memory of a container that was restored without it: held until it is complete, or the end of the container.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use tranship_checkpoint::memory::fill::{Holder, Memory};

use super::super::super::cgroup::Cgroup;
use super::complain;

/// What this monitor holds for a filler.
pub(super) struct HeldMemory {
    holder: Holder,
    cgroup: Cgroup,
}

impl HeldMemory {
    /// Connects to the filler that works in `directory`.
    pub(super) fn of(directory: &Path, cgroup: &str) -> io::Result<Self> {
        Ok(Self {
            holder: Holder::connect(directory)?,
            cgroup: Cgroup::at(cgroup),
        })
    }

    /// What to wait for; nothing once all is decided.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        (*self.holder.memory() == Memory::Filling).then(|| self.holder.as_fd())
    }

    /// Takes what the filler says. The descriptors of a memory that is lost are kept: without them the container's last
    /// instructions would run on zeros.
    pub(super) fn turn(&mut self) {
        if let Memory::Lost(reason) = self.holder.turn() {
            let reason = io::Error::other(reason.clone());
            complain(
                "complete the memory of the container, which is killed",
                Err(reason),
            );
            let killed = self.cgroup.kill_all().map_err(|(_, error)| error);
            complain("kill the container", killed);
        }
    }

    /// Whether it cannot be completed.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.holder.memory(), Memory::Lost(_))
    }
}
