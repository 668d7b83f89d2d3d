//! A thread that is stopped to be put right: ptrace.
#![expect(unsafe_code, reason = "ptrace has no safe wrapper for what is needed here")]

use std::io;
use std::ptr;
use std::time::{Duration, Instant};

const PRSTATUS: usize = 1;
const XSTATE: usize = 0x202;
const MASK_BYTES: usize = size_of::<u64>();

/// Pause between two looks at a thread that is to stop.
const LOOK: Duration = Duration::from_micros(100);

/// A thread that this one traces. Dropped, it goes on.
#[derive(Debug)]
pub struct Tracee(libc::pid_t);

impl Tracee {
    /// Seizes a thread and asks it to stop; a frozen one does when it is thawed, before anything else. None where it is
    /// gone.
    pub fn seize(thread: i32) -> io::Result<Option<Self>> {
        match request(libc::PTRACE_SEIZE, thread, 0, ptr::null_mut()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            done => done?,
        }
        let tracee = Self(thread);
        request(libc::PTRACE_INTERRUPT, thread, 0, ptr::null_mut())?;
        Ok(Some(tracee))
    }

    /// Waits until it has stopped; false where it has ended instead. A signal on its way to it stays on its way.
    pub fn wait_stopped(&self, deadline: Instant) -> io::Result<bool> {
        let mut stopped_by = 0;
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            let result = unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL | libc::WNOHANG) };
            match result {
                -1 => return Err(io::Error::last_os_error()),
                0 if Instant::now() >= deadline => return Err(io::ErrorKind::TimedOut.into()),
                0 => std::thread::sleep(LOOK),
                _ if !libc::WIFSTOPPED(status) => return Ok(false),
                _ if status >> 16 == libc::PTRACE_EVENT_STOP => {
                    self.send_again(stopped_by);
                    return Ok(true);
                }
                _ => {
                    // A breakpoint of CRIU's, which is nobody's any more, or a signal that comes again below.
                    let signal = libc::WSTOPSIG(status);
                    if signal != libc::SIGTRAP {
                        stopped_by = signal;
                    }
                    request(libc::PTRACE_CONT, self.0, 0, ptr::null_mut())?;
                }
            }
        }
    }

    /// Lets it run.
    pub fn go_on(&self) -> io::Result<()> {
        unless_killed(request(libc::PTRACE_CONT, self.0, 0, ptr::null_mut()))
    }

    /// Asks it to stop.
    pub fn interrupt(&self) -> io::Result<()> {
        unless_killed(request(libc::PTRACE_INTERRUPT, self.0, 0, ptr::null_mut()))
    }

    fn send_again(&self, signal: libc::c_int) {
        if signal != 0 {
            // SAFETY: takes numbers. A thread that has ended meanwhile needs no signal.
            unsafe { libc::syscall(libc::SYS_tkill, self.0, signal) };
        }
    }

    /// Its general registers, as `struct user_regs_struct`.
    pub fn registers(&self) -> io::Result<[u64; 27]> {
        let mut registers = [0; 27];
        let mut buffer = buffer(registers.as_mut_ptr().cast(), size_of_val(&registers));
        request(libc::PTRACE_GETREGSET, self.0, PRSTATUS, (&raw mut buffer).cast())?;
        Ok(registers)
    }

    /// Sets them.
    pub fn set_registers(&self, registers: &[u64; 27]) -> io::Result<()> {
        let mut buffer = buffer(registers.as_ptr().cast_mut().cast(), size_of_val(registers));
        request(libc::PTRACE_SETREGSET, self.0, PRSTATUS, (&raw mut buffer).cast())
    }

    /// Sets its extended registers, as they were read.
    pub fn set_extended(&self, extended: &[u8]) -> io::Result<()> {
        let mut buffer = buffer(extended.as_ptr().cast_mut().cast(), extended.len());
        request(libc::PTRACE_SETREGSET, self.0, XSTATE, (&raw mut buffer).cast())
    }

    /// The signals it blocks.
    pub fn mask(&self) -> io::Result<u64> {
        let mut mask = 0_u64;
        request(
            libc::PTRACE_GETSIGMASK,
            self.0,
            MASK_BYTES,
            (&raw mut mask).cast(),
        )?;
        Ok(mask)
    }

    /// Sets them.
    pub fn set_mask(&self, mask: u64) -> io::Result<()> {
        let mut mask = mask;
        request(
            libc::PTRACE_SETSIGMASK,
            self.0,
            MASK_BYTES,
            (&raw mut mask).cast(),
        )
    }
}

/// What a traced process that is only watched for its end has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It has ended, with this status of `wait`.
    Ended(i32),
    /// It has begun to end, and still has everything.
    Ending,
    /// It is about to get a signal.
    Signal(i32),
    /// It was stopped by a signal for that.
    Stopped,
}

/// A child that this thread traces for its end. Dropped, nothing happens: the tracing ends with the thread.
#[derive(Debug)]
pub struct Tracer(libc::pid_t);

impl Tracer {
    /// Traces a child. It runs on.
    pub fn of_end(child: i32) -> io::Result<Self> {
        let options = ptr::without_provenance_mut(libc::PTRACE_O_TRACEEXIT as usize);
        request(libc::PTRACE_SEIZE, child, 0, options)?;
        Ok(Self(child))
    }

    /// The task that is traced.
    pub fn task(&self) -> i32 {
        self.0
    }

    /// Waits until something happens to it.
    pub fn wait(&self) -> io::Result<Stop> {
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        while unsafe { libc::waitpid(self.0, &raw mut status, libc::__WALL) } == -1 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        if !libc::WIFSTOPPED(status) {
            return Ok(Stop::Ended(status));
        }
        let signal = libc::WSTOPSIG(status);
        Ok(match status >> 16 {
            libc::PTRACE_EVENT_EXIT => Stop::Ending,
            libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Stop::Signal(0),
            libc::PTRACE_EVENT_STOP => Stop::Stopped,
            _ => Stop::Signal(signal),
        })
    }

    /// Whether it has been killed since it stopped: then it stands where it ends, or will in a moment.
    pub fn was_killed(&self) -> io::Result<bool> {
        // SAFETY: zeroes are a value of this structure.
        let mut stop: libc::siginfo_t = unsafe { std::mem::zeroed() };
        match request(libc::PTRACE_GETSIGINFO, self.0, 0, (&raw mut stop).cast()) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(true),
            asked => asked.map(|()| stop.si_code >> 8 == libc::PTRACE_EVENT_EXIT),
        }
    }

    /// Lets it run, with a signal or 0. One that was killed meanwhile needs nothing.
    pub fn go_on(&self, signal: i32) -> io::Result<()> {
        let signal = ptr::without_provenance_mut(usize::try_from(signal).unwrap_or_default());
        unless_killed(request(libc::PTRACE_CONT, self.0, 0, signal))
    }

    /// Lets it stay stopped until it is continued.
    pub fn stay(&self) -> io::Result<()> {
        unless_killed(request(libc::PTRACE_LISTEN, self.0, 0, ptr::null_mut()))
    }
}

fn unless_killed(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        done => done,
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // One that is gone needs nothing; one that has not stopped yet is let go when this thread ends.
        let _ = request(libc::PTRACE_DETACH, self.0, 0, ptr::null_mut());
    }
}

fn buffer(at: *mut libc::c_void, bytes: usize) -> libc::iovec {
    libc::iovec {
        iov_base: at,
        iov_len: bytes,
    }
}

fn request(request: libc::c_uint, thread: i32, at: usize, data: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: every caller passes, for its request, an object of the size that the request reads or writes, which lives
    // for the length of the call; those that only read it are given it as mutable because C has one type for both.
    let result = unsafe { libc::ptrace(request, thread, at, data) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
