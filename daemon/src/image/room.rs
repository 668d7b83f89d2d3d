//! Room on the file system that is written to, looked at while it is written to.

use std::os::fd::OwnedFd;

use super::error::ExtractError;
use super::limits::{MAX_UNPACKED_BYTES, RESERVED_BYTES};

/// How much may be written between two looks: a fraction of what is reserved.
const LOOK_EVERY_BYTES: u64 = RESERVED_BYTES / 8;

/// Counts what is written, and ends it in time.
pub(super) struct Room {
    fd: OwnedFd,
    written: u64,
    next_look: u64,
}

impl Room {
    /// Room where that file or directory is.
    pub(super) fn of(fd: OwnedFd) -> Self {
        Self {
            fd,
            written: 0,
            next_look: 0,
        }
    }

    /// To be called before so many bytes are written.
    pub(super) fn take(&mut self, bytes: u64) -> Result<(), ExtractError> {
        self.written = self.written.saturating_add(bytes);
        if self.written > MAX_UNPACKED_BYTES {
            return Err(ExtractError::TooMuch {
                what: "unpacked bytes",
                limit: MAX_UNPACKED_BYTES,
            });
        }
        if self.written < self.next_look {
            return Ok(());
        }
        self.next_look = self.written.saturating_add(LOOK_EVERY_BYTES);
        let space =
            rustix::fs::fstatvfs(&self.fd).map_err(|error| ExtractError::Room { source: error.into() })?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        if free < RESERVED_BYTES.saturating_add(bytes) {
            return Err(ExtractError::NoRoom {
                free,
                reserved: RESERVED_BYTES,
            });
        }
        Ok(())
    }
}
