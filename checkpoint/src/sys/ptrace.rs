//! Stops a task for a moment and has it do one system call, as a debugger does.
//!
//! A tracee belongs to the thread that seized it: every call here must come from that thread, and when it ends the
//! kernel lets its tracees go as they stand.
#![expect(unsafe_code, reason = "ptrace has no safe wrapper for all that is needed")]

use std::io;
use std::mem::size_of;
use std::ptr;
use std::time::{Duration, Instant};

/// Switches seccomp filters off for as long as the task is traced. Needs CAP_SYS_ADMIN, and a tracer without a filter.
const OPTION_SUSPEND_SECCOMP: usize = 1 << 21;
/// System call stops can be told from a SIGTRAP.
const OPTION_TRACESYSGOOD: usize = 1;
const EVENT_STOP: i32 = 128;
const GETSIGMASK: u32 = 0x420a;
const SETSIGMASK: u32 = 0x420b;
const GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;
/// Bytes of the kernel's signal set.
const SIGSET_BYTES: usize = 8;
/// A stop takes microseconds: this long the waiter looks again at once, and afterwards it sleeps in between.
const AT_ONCE: Duration = Duration::from_micros(300);
const LOOK: Duration = Duration::from_micros(100);

/// The registers of a stopped task.
pub type Registers = libc::user_regs_struct;

/// Why a task has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Where it was asked to, on its way out of the kernel; or with the rest of its process, by a stop signal.
    Asked,
    /// At the entry to a system call or at its end.
    SystemCall,
    /// A signal is about to be delivered; it is gone unless it is given to [`Tracee::resume`].
    Signal(i32),
}

/// How a stopped task goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until something stops it.
    Stopped,
    /// Until the entry or the end of a system call, too.
    SystemCall,
}

/// The restartable sequence that a thread is in, and where it goes when it is disturbed there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct RseqConfiguration {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct DispatchConfiguration {
    mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

/// A thread that this thread traces. `ESRCH` from any call: it is gone, or does not stand still.
#[derive(Debug)]
pub struct Tracee {
    task: i32,
}

impl Tracee {
    /// Begins to trace a thread, without stopping it.
    pub fn seize(task: i32, suspend_seccomp: bool) -> io::Result<Self> {
        let filter = if suspend_seccomp {
            OPTION_SUSPEND_SECCOMP
        } else {
            0
        };
        let tracee = Self { task };
        tracee.request(libc::PTRACE_SEIZE, 0, filter | OPTION_TRACESYSGOOD)?;
        Ok(tracee)
    }

    /// Asks it to stop with [`Stop::Asked`] on its way out of the kernel; one that has stopped already does so after it
    /// is resumed, before it executes anything of its own.
    pub fn interrupt(&self) -> io::Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0)
    }

    /// Lets it go on, with the signal delivered that it was stopped for, or 0.
    pub fn resume(&self, until: Until, signal: i32) -> io::Result<()> {
        let request = match until {
            Until::Stopped => libc::PTRACE_CONT,
            Until::SystemCall => libc::PTRACE_SYSCALL,
        };
        self.request(request, 0, usize::try_from(signal).unwrap_or(0))
    }

    /// Lets it go for good, as it stands. It must have stopped.
    pub fn detach(self) -> io::Result<()> {
        self.request(libc::PTRACE_DETACH, 0, 0)
    }

    /// Waits for the next stop, until `deadline`; without one for as long as the task lives. None when the deadline has
    /// passed, `ESRCH` when the task has ended.
    pub fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Stop>> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.status()? {
                return stop(status).map(Some);
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            if now - start < AT_ONCE {
                std::thread::yield_now();
            } else {
                std::thread::sleep(LOOK);
            }
        }
    }

    fn status(&self) -> io::Result<Option<i32>> {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
        // SAFETY: `status` is a valid place for the answer.
        let task = unsafe { libc::waitpid(self.task, &raw mut status, flags) };
        match task {
            0 => Ok(None),
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::EINTR) => Ok(None),
                error if error.raw_os_error() == Some(libc::ECHILD) => Err(gone()),
                error => Err(error),
            },
            _ => Ok(Some(status)),
        }
    }

    /// Its registers. Of a task in a system call that can be restarted they say so (`orig_rax` and `rax`), and written
    /// back at the same kind of stop they make the kernel restart it.
    pub fn registers(&self) -> io::Result<Registers> {
        // SAFETY: all registers are integers, for which zeros are valid.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        self.request_into(libc::PTRACE_GETREGS, 0, &raw mut registers)?;
        Ok(registers)
    }

    /// Writes its registers.
    pub fn set_registers(&self, registers: &Registers) -> io::Result<()> {
        self.request_into(libc::PTRACE_SETREGS, 0, ptr::from_ref(registers).cast_mut())
    }

    /// The signals that it blocks, one bit each; those that it will block once a call that changes them for its
    /// duration is over.
    pub fn signal_mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        self.request_into(GETSIGMASK, SIGSET_BYTES, &raw mut mask)?;
        Ok(mask)
    }

    /// Sets the signals that it blocks. SIGKILL and SIGSTOP cannot be.
    pub fn set_signal_mask(&self, mask: u64) -> io::Result<()> {
        let mut mask = mask;
        self.request_into(SETSIGMASK, SIGSET_BYTES, &raw mut mask)
    }

    /// Where it has its record of the restartable sequence it is in; None where it has no such record.
    pub fn restartable_sequence(&self) -> io::Result<Option<u64>> {
        let mut answer = RseqConfiguration::default();
        let size = size_of::<RseqConfiguration>();
        match self.request_into(GET_RSEQ_CONFIGURATION, size, &raw mut answer) {
            Ok(()) => Ok(Some(answer.pointer).filter(|pointer| *pointer != 0)),
            // A kernel without the request, or without such sequences.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether its system calls go to a handler of its own.
    pub fn dispatches_system_calls(&self) -> io::Result<bool> {
        let mut answer = DispatchConfiguration::default();
        let size = size_of::<DispatchConfiguration>();
        match self.request_into(GET_SYSCALL_USER_DISPATCH_CONFIG, size, &raw mut answer) {
            Ok(()) => Ok(answer.mode != 0),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends it a signal as if its own process had.
    pub fn signal(&self, process: i32, signal: i32) -> io::Result<()> {
        // SAFETY: the call takes three integers.
        match unsafe { libc::syscall(libc::SYS_tgkill, process, self.task, signal) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> io::Result<()> {
        self.raw(request, address, ptr::without_provenance_mut(data))
    }

    /// A request that reads or writes a `T` of this process: the kernel must know the size of `T` from the request or
    /// from `address`.
    fn request_into<T>(&self, request: libc::c_uint, address: usize, data: *mut T) -> io::Result<()> {
        self.raw(request, address, data.cast())
    }

    fn raw(&self, request: libc::c_uint, address: usize, data: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: `data` is an integer in the shape of a pointer, or points to a value of exactly the type and size
        // that this request takes, which the callers above see to; it is valid for the length of the call. What the
        // request does to the other process is what this module is for, and harms no memory of this one.
        let result = unsafe {
            libc::ptrace(
                request,
                self.task,
                ptr::without_provenance_mut::<libc::c_void>(address),
                data,
            )
        };
        if result == -1 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn stop(status: i32) -> io::Result<Stop> {
    if !libc::WIFSTOPPED(status) {
        return Err(gone());
    }
    let signal = libc::WSTOPSIG(status);
    Ok(match status >> 16 {
        EVENT_STOP => Stop::Asked,
        _ if signal == libc::SIGTRAP | 0x80 => Stop::SystemCall,
        _ => Stop::Signal(signal),
    })
}

fn gone() -> io::Error {
    io::Error::from_raw_os_error(libc::ESRCH)
}

/// Whether two processes have one address space, as after `vfork` until the child executes a program.
pub fn share_memory(one: i32, other: i32) -> io::Result<bool> {
    const KCMP_VM: i32 = 1;
    // SAFETY: the call takes integers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_VM, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        order => Ok(order == 0),
    }
}
