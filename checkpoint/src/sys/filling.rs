//! userfaultfd from the side of the one who fills: events, and pages put into another process.
#![expect(unsafe_code, reason = "userfaultfd's ioctls have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

const UFFDIO_WAKE: libc::Ioctl = 0x8010_aa02;
const UFFDIO_COPY: libc::Ioctl = 0xc028_aa03;
const UFFDIO_ZEROPAGE: libc::Ioctl = 0xc020_aa04;

/// Bytes of one message.
const MESSAGE_BYTES: usize = 32;

/// Messages that are taken at once.
const MESSAGES: usize = 16;

/// What happened in a process whose areas are registered. Addresses are the process's own.
#[derive(Debug)]
pub enum Event {
    /// A thread waits for the page at this address.
    Fault {
        /// Where.
        address: u64,
    },
    /// The process has forked.
    Fork {
        /// The child's descriptor: what is missing in the parent is missing in it.
        child: OwnedFd,
    },
    /// A part of its memory lies elsewhere now.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// Its bytes.
        length: u64,
    },
    /// The content of a part was given up; it reads as zeros now.
    Remove {
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
    },
    /// A part does not exist any more.
    Unmap {
        /// First byte.
        start: u64,
        /// Byte behind the last.
        end: u64,
    },
}

#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    length: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    start: u64,
    length: u64,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
struct Range {
    start: u64,
    length: u64,
}

const _: () = assert!(size_of::<Copy>() == 40 && size_of::<Zero>() == 32 && size_of::<Range>() == 16);

/// Reads what has happened; nothing if nothing has. The descriptor does not block. Whoever waits in an event of another kind than
/// a fault goes on once it has been read.
pub fn events(uffd: impl AsFd) -> io::Result<Vec<Event>> {
    let mut bytes = [0_u8; MESSAGE_BYTES * MESSAGES];
    let length = match rustix::io::retry_on_intr(|| rustix::io::read(&uffd, &mut bytes)) {
        Ok(length) => length,
        Err(rustix::io::Errno::AGAIN) => 0,
        Err(errno) => return Err(errno.into()),
    };
    bytes[..length].chunks_exact(MESSAGE_BYTES).map(event).collect()
}

fn event(message: &[u8]) -> io::Result<Event> {
    let word = |number: usize| {
        let at = 8 + number * 8;
        let bytes = message.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        u64::from_ne_bytes(bytes.unwrap_or_default())
    };
    Ok(match message.first() {
        Some(0x12) => Event::Fault { address: word(1) },
        Some(0x13) => {
            let number = i32::try_from(word(0) & 0xffff_ffff)
                .map_err(|_| io::Error::other("a fork without a descriptor"))?;
            // SAFETY: the kernel has just put the child's descriptor into this process's table under this number, for
            // whoever reads the message; it was read once, here, so nobody else owns it.
            let child = unsafe { OwnedFd::from_raw_fd(number) };
            Event::Fork { child }
        }
        Some(0x14) => Event::Remap {
            from: word(0),
            to: word(1),
            length: word(2),
        },
        Some(0x15) => Event::Remove {
            start: word(0),
            end: word(1),
        },
        Some(0x16) => Event::Unmap {
            start: word(0),
            end: word(1),
        },
        other => return Err(io::Error::other(format!("an unknown event {other:?}"))),
    })
}

/// How much of a range was filled, and why not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Bytes from its start.
    pub bytes: u64,
    /// What is in the way of the rest.
    pub obstacle: Option<rustix::io::Errno>,
}

/// Puts `content` at `to` in the process, and wakes who waits there.
pub fn copy(uffd: impl AsFd, to: u64, content: &[u8]) -> Filled {
    let mut copy = Copy {
        to,
        from: content.as_ptr() as u64,
        length: content.len() as u64,
        mode: 0,
        copied: 0,
    };
    // SAFETY: `copy` is valid for reading and writing for the length of the call and has the layout of `struct
    // uffdio_copy` (asserted above). The kernel reads `length` bytes at `from`, which are `content`; it writes only to the
    // process of the descriptor.
    let result = unsafe { libc::ioctl(raw(&uffd), UFFDIO_COPY, &raw mut copy) };
    outcome(result, copy.copied)
}

/// Puts zeros there, and wakes who waits there.
pub fn zero(uffd: impl AsFd, start: u64, length: u64) -> Filled {
    let mut zero = Zero {
        start,
        length,
        mode: 0,
        zeroed: 0,
    };
    // SAFETY: `zero` is valid for reading and writing for the length of the call and has the layout of `struct
    // uffdio_zeropage` (asserted above). Memory of this process is not touched otherwise.
    let result = unsafe { libc::ioctl(raw(&uffd), UFFDIO_ZEROPAGE, &raw mut zero) };
    outcome(result, zero.zeroed)
}

/// Wakes who waits in the range, because it is filled.
pub fn wake(uffd: impl AsFd, start: u64, length: u64) -> io::Result<()> {
    let range = Range { start, length };
    // SAFETY: `range` is valid for reading for the length of the call and has the layout of `struct uffdio_range`
    // (asserted above).
    match unsafe { libc::ioctl(raw(&uffd), UFFDIO_WAKE, &raw const range) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn raw(uffd: &impl AsFd) -> RawFd {
    uffd.as_fd().as_raw_fd()
}

/// The kernel counts what it has done, or gives the error where it has done nothing.
fn outcome(result: libc::c_int, done: i64) -> Filled {
    if result == 0 {
        return Filled {
            bytes: u64::try_from(done).unwrap_or(0),
            obstacle: None,
        };
    }
    let obstacle = rustix::io::Errno::from_io_error(&io::Error::last_os_error());
    Filled {
        bytes: u64::try_from(done).unwrap_or(0),
        obstacle: Some(obstacle.unwrap_or(rustix::io::Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, MESSAGE_BYTES, event};

    fn message(kind: u8, words: [u64; 3]) -> [u8; MESSAGE_BYTES] {
        let mut message = [0; MESSAGE_BYTES];
        message[0] = kind;
        for (number, word) in words.into_iter().enumerate() {
            message[8 + number * 8..16 + number * 8].copy_from_slice(&word.to_ne_bytes());
        }
        message
    }

    #[test]
    fn messages_are_read_as_the_kernel_writes_them() {
        let fault = event(&message(0x12, [0, 0x7000, 0])).unwrap();
        assert!(matches!(fault, Event::Fault { address: 0x7000 }), "{fault:?}");
        let moved = event(&message(0x14, [1, 2, 3])).unwrap();
        assert!(
            matches!(
                moved,
                Event::Remap {
                    from: 1,
                    to: 2,
                    length: 3
                }
            ),
            "{moved:?}"
        );
        let gone = event(&message(0x16, [4, 5, 0])).unwrap();
        assert!(matches!(gone, Event::Unmap { start: 4, end: 5 }), "{gone:?}");
        assert!(event(&message(0x42, [0; 3])).is_err());
    }
}
