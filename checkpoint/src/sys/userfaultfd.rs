//! userfaultfd, only as far as it tells which pages were written: write protection that the kernel lifts by itself.
#![expect(unsafe_code, reason = "its ioctls have no safe wrappers")]

use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What the call is given: close on exec, never block, and no faults of the kernel itself, which would need a privilege
/// that a task in a container does not have.
pub const FLAGS: i32 = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;

const USER_MODE_ONLY: i32 = 1;
const API: u64 = 0xAA;
/// Huge pages of hugetlbfs and shared memory can be protected too.
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// Pages that nobody has touched can be protected too. Asynchronous protection wants it.
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// A write to a protected page lifts the protection in the kernel; nobody is asked.
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;

const UFFDIO_API: libc::Ioctl = 0xC018_AA3F_u32 as libc::Ioctl;
const UFFDIO_REGISTER: libc::Ioctl = 0xC020_AA00_u32 as libc::Ioctl;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct RangeArgument {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: RangeArgument,
    mode: u64,
    ioctls: u64,
}

const _: () = assert!(size_of::<ApiArgument>() == 24);
const _: () = assert!(size_of::<RangeArgument>() == 16);
const _: () = assert!(size_of::<RegisterArgument>() == 32);

/// What this kernel can do, of what is needed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    wanted: u64,
}

impl Features {
    /// Asks the kernel, with a descriptor of this process's own. None where it has no asynchronous write protection.
    pub fn of_kernel() -> io::Result<Option<Self>> {
        // SAFETY: the call takes one integer and returns a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, FLAGS) };
        let fd = i32::try_from(fd)
            .ok()
            .filter(|fd| *fd >= 0)
            .ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows its number.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let offered = agree(&fd, 0)?;
        let needed = FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED;
        let wanted = offered & (needed | FEATURE_WP_HUGETLBFS_SHMEM);
        Ok((wanted & needed == needed).then_some(Self { wanted }))
    }
}

/// The first call on a descriptor: says which features are wanted, and hears which there are.
fn agree(fd: &OwnedFd, features: u64) -> io::Result<u64> {
    let mut argument = ApiArgument {
        api: API,
        features,
        ioctls: 0,
    };
    // SAFETY: the descriptor is open, and `argument` is writable and of the layout that the kernel expects.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, &raw mut argument) };
    done(result).map(|()| argument.features)
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A userfaultfd of some process's address space, which it stays with when the process executes another program.
/// Closing it lifts all protection and ends all registrations: 20 ms for each GiB that is registered and touched.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
}

impl Userfaultfd {
    /// Makes a descriptor that is fresh from the call into one for asynchronous write protection.
    pub fn new(fd: OwnedFd, features: Features) -> io::Result<Self> {
        agree(&fd, features.wanted)?;
        Ok(Self { fd })
    }

    /// Lets the pages of an area be protected, those that nobody has touched yet included. Nothing is protected by this
    /// alone, and registering again what is registered does nothing.
    ///
    /// `EBUSY`: another userfaultfd has it. `EINVAL` or `EPERM`: not this kind of memory. `ESRCH`: the address space is
    /// gone. `EINVAL` also where nothing is mapped.
    pub fn register(&self, area: &Range<u64>) -> io::Result<()> {
        let mut argument = RegisterArgument {
            range: RangeArgument {
                start: area.start,
                len: area.end - area.start,
            },
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        // SAFETY: the descriptor is open, and `argument` is writable and of the layout that the kernel expects. The
        // addresses are of the descriptor's own address space, where asynchronous protection changes no content.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &raw mut argument) };
        done(result)
    }
}
