//! What the test workloads do with their own memory, by plain system calls.
#![expect(
    unsafe_code,
    reason = "a workload maps, moves and gives back memory under its own feet"
)]

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub const PAGE: usize = 4096;

/// A part of the address space that the workload does with as it likes. Never a reference into it is kept.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub start: usize,
    pub pages: usize,
}

fn check(result: i32) -> i32 {
    assert!(result >= 0, "{}", std::io::Error::last_os_error());
    result
}

/// Maps memory, with the flags given beside `MAP_PRIVATE`; of a file from its beginning if there is one.
pub fn map(pages: usize, protection: i32, flags: i32, file: Option<RawFd>) -> Memory {
    let anonymous = if file.is_none() { libc::MAP_ANONYMOUS } else { 0 };
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * PAGE,
            protection,
            libc::MAP_PRIVATE | anonymous | flags,
            file.unwrap_or(-1),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    Memory {
        start: start.expose_provenance(),
        pages,
    }
}

/// Readable and writable memory without a file.
pub fn anonymous(pages: usize) -> Memory {
    map(
        pages,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_NORESERVE,
        None,
    )
}

impl Memory {
    fn pointer(self, page: usize) -> *mut u8 {
        assert!(page < self.pages);
        std::ptr::with_exposed_provenance_mut(self.start + page * PAGE)
    }

    /// Writes eight bytes into a page.
    pub fn write(self, page: usize, place: usize, value: u64) {
        assert!(place * 8 < PAGE);
        // SAFETY: the page belongs to a mapping that this type describes, is writable by what the workload did before, and
        // no reference to it exists.
        unsafe { self.pointer(page).cast::<u64>().add(place).write_volatile(value) };
    }

    /// Reads eight bytes of a page.
    pub fn read(self, page: usize, place: usize) -> u64 {
        assert!(place * 8 < PAGE);
        // SAFETY: as in `write`, for reading.
        unsafe { self.pointer(page).cast::<u64>().add(place).read_volatile() }
    }

    pub fn advise(self, from: usize, pages: usize, advice: i32) {
        assert!(from + pages <= self.pages);
        // SAFETY: no reference to this memory exists whose content could change.
        check(unsafe { libc::madvise(self.pointer(from).cast(), pages * PAGE, advice) });
    }

    /// Lets the kernel take the content when it needs room. Refused for files.
    pub fn forget_lazily(self, from: usize, pages: usize) {
        assert!(from + pages <= self.pages);
        // SAFETY: no reference to this memory exists whose content could change.
        unsafe { libc::madvise(self.pointer(from).cast(), pages * PAGE, libc::MADV_FREE) };
    }

    pub fn protect(self, from: usize, pages: usize, protection: i32) {
        assert!(from + pages <= self.pages);
        // SAFETY: no reference to this memory exists; the workload does not write where it has just forbidden it.
        check(unsafe { libc::mprotect(self.pointer(from).cast(), pages * PAGE, protection) });
    }

    /// Reads pages of a file into pages of this memory.
    pub fn read_file(self, page: usize, pages: usize, file: &File, from: usize) {
        assert!(page + pages <= self.pages);
        let offset = i64::try_from(from * PAGE).unwrap();
        // SAFETY: the memory is writable, belongs to this mapping, and no reference to it exists.
        let read = unsafe { libc::pread(file.as_raw_fd(), self.pointer(page).cast(), pages * PAGE, offset) };
        assert_eq!(
            read,
            isize::try_from(pages * PAGE).unwrap(),
            "{}",
            std::io::Error::last_os_error()
        );
    }

    pub fn lock(self) {
        // SAFETY: locking changes no content.
        check(unsafe { libc::mlock(self.pointer(0).cast(), self.pages * PAGE) });
    }

    /// Gives it back to the kernel.
    pub fn unmap(self) {
        // SAFETY: no reference to this memory exists, and the value is consumed.
        check(unsafe { libc::munmap(self.pointer(0).cast(), self.pages * PAGE) });
    }

    /// Moves it elsewhere, with another size.
    pub fn remap(self, pages: usize) -> Self {
        // SAFETY: no reference to this memory exists, and the value is replaced by the new one.
        let start = unsafe {
            libc::mremap(
                self.pointer(0).cast(),
                self.pages * PAGE,
                pages * PAGE,
                libc::MREMAP_MAYMOVE,
            )
        };
        if start == libc::MAP_FAILED {
            // Refused for what lies in two areas, which registering it at the wrong moment can make of one. A program has
            // to live with that: the memory is as it was.
            assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
            return self;
        }
        Self {
            start: start.expose_provenance(),
            pages,
        }
    }
}

/// Opens a file so that reading it bypasses the page cache.
pub fn open_direct(path: &Path) -> File {
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

/// Forks; the child, in which only this thread goes on, does `child` and exits. Returns its number.
pub fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child only does plain arithmetic and system calls, takes no lock and leaves by _exit.
    match unsafe { libc::fork() } {
        0 => {
            child();
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => check(pid),
    }
}

/// Forks, and stands still until the child, which has memory of its own, has done `child` and ended. That wait is for nothing else, not even
/// a debugger.
pub fn vfork(child: impl FnOnce()) {
    let flags = libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: as in `fork`: without CLONE_VM and a stack this is one whose parent waits.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        0 => {
            child();
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => {
            reap(check(i32::try_from(pid).unwrap()));
        }
    }
}

/// Waits for a child to end.
pub fn reap(pid: i32) -> i32 {
    let mut status = 0;
    // SAFETY: the place for the answer is valid.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) });
    status
}

/// Refuses `userfaultfd` and every call that a filter could know it by, with `action`, for this thread and all of the
/// process's.
pub fn forbid_userfaultfd(action: u32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let number = u32::try_from(libc::SYS_userfaultfd).unwrap();
    let line = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        line(LOAD, 0, 0, 0),
        line(EQUAL, 0, 1, number),
        line(RETURN, 0, 0, action),
        line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: 4,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program lives until the calls are over, and the kernel copies it.
    unsafe {
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        check(libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
        ));
    }
}

/// What `userfaultfd` says to this process.
pub fn try_userfaultfd() -> i32 {
    // SAFETY: the call takes one integer.
    let result = unsafe { libc::syscall(libc::SYS_userfaultfd, 1) };
    if result >= 0 {
        return 0;
    }
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

/// Sleeps; the error and what was left, if it was cut short.
pub fn nanosleep(milliseconds: i64) -> i32 {
    let wanted = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    // SAFETY: the duration is valid, and what is left is not asked for.
    match unsafe { libc::nanosleep(&raw const wanted, std::ptr::null_mut()) } {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

/// Polls nothing for some time: how many descriptors were ready, or minus the error.
pub fn poll(milliseconds: i32) -> i32 {
    // SAFETY: there is no descriptor, so nothing is read or written.
    match unsafe { libc::poll(std::ptr::null_mut(), 0, milliseconds) } {
        -1 => -std::io::Error::last_os_error().raw_os_error().unwrap(),
        ready => ready,
    }
}

/// Waits on a futex that nobody wakes: the error.
pub fn futex(milliseconds: i64) -> i32 {
    let word = 7_u32;
    let wanted = libc::timespec {
        tv_sec: milliseconds / 1000,
        tv_nsec: milliseconds % 1000 * 1_000_000,
    };
    // SAFETY: the word and the duration live as long as the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            &raw const word,
            libc::FUTEX_WAIT,
            7,
            &raw const wanted,
        )
    };
    match result {
        0 => 0,
        _ => std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

/// Reads one byte from a descriptor: the byte, or minus the error, or -1000 at the end.
pub fn read_byte(fd: RawFd) -> i32 {
    let mut byte = 0_u8;
    // SAFETY: the place for the byte is valid.
    match unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } {
        1 => i32::from(byte),
        0 => -1000,
        _ => -std::io::Error::last_os_error().raw_os_error().unwrap(),
    }
}

/// How often SIGALRM came. The handler writes nothing else.
static ALARMS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

pub fn alarms() -> u64 {
    ALARMS.load(std::sync::atomic::Ordering::Relaxed)
}

extern "C" fn count_alarm(_signal: i32) {
    ALARMS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

/// Has SIGALRM come every so often, with a handler after which calls are restarted, or not.
pub fn alarm_every(microseconds: i64, restart: bool) {
    // SAFETY: an all-zero sigaction is valid; the handler only counts; the timer's value is valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_alarm as *const () as usize;
        action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
        check(libc::sigaction(
            libc::SIGALRM,
            &raw const action,
            std::ptr::null_mut(),
        ));
        let every = libc::timeval {
            tv_sec: 0,
            tv_usec: microseconds,
        };
        let timer = libc::itimerval {
            it_interval: every,
            it_value: every,
        };
        check(libc::setitimer(
            libc::ITIMER_REAL,
            &raw const timer,
            std::ptr::null_mut(),
        ));
    }
}
