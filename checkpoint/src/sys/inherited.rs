//! Descriptors that a process is born with, known by their number alone.
#![expect(
    unsafe_code,
    reason = "a descriptor number given on the command line has no owner until it is taken"
)]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Takes ownership of the open descriptor `number` that this process inherited, and marks it close-on-exec.
///
/// Call it once per number, before anything else in the process can have opened descriptors of its own. Standard
/// streams (0 to 2) are refused: the standard library owns them.
pub fn take(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the number is not negative; a closed one makes the fcntl below fail with EBADF and nothing is owned then.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = fcntl_getfd(borrowed)?;
    fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open (checked above), was inherited, and by this function's contract nobody else in
    // the process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::take;

    #[test]
    fn standard_streams_and_closed_numbers_are_refused() {
        assert!(take(1).is_err());
        assert!(take(-1).is_err());
        assert!(take(1_000_000).is_err());
    }
}
