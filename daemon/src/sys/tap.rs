//! Tap devices: links whose far end is a file.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// Where the kernel gives them out.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// `_IOW('T', 202, int)`, as linux/if_tun.h has it.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;

/// Whole Ethernet frames, nothing in front of them, and only if there is no such link yet.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x8000;

/// `struct ifreq`, with the one member of its union that counts here.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(mem::size_of::<Request>() == 40, "as linux/if.h has it");

/// A tap device, gone with this value. It has no offloads: the kernel cuts long frames and completes checksums before it
/// hands them over, so what is read is what a wire would have carried.
#[derive(Debug)]
pub struct Tap {
    file: OwnedFd,
}

impl Tap {
    /// Makes a link of that name in the calling thread's network namespace. It is down.
    ///
    /// # Errors
    /// The name is taken or too long, this kernel has no tap devices, or without CAP_NET_ADMIN.
    pub fn make(name: &str) -> io::Result<Self> {
        let file = rustix::fs::open(
            CLONE_DEVICE,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let mut request = Request {
            name: [0; libc::IFNAMSIZ],
            flags: FLAGS,
            rest: [0; 22],
        };
        // The last byte stays zero.
        let room = request
            .name
            .get_mut(..name.len())
            .filter(|room| room.len() < libc::IFNAMSIZ)
            .ok_or(io::ErrorKind::InvalidInput)?;
        room.copy_from_slice(name.as_bytes());
        // SAFETY: the request is a live, initialised `ifreq` of the size the kernel reads and writes, and the name in it
        // ends with a zero.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { file })
    }

    /// The frame that has waited longest, cut to the buffer's length; none when none waits.
    ///
    /// # Errors
    /// The link is down.
    pub fn next<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        loop {
            match rustix::io::read(&self.file, &mut *buffer) {
                Ok(length) => return Ok(buffer.get(..length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_refused_before_the_kernel_sees_it() {
        let error = Tap::make("sixteen-letters-").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
