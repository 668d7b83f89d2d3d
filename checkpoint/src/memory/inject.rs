//! Takes a userfaultfd out of a process that knows nothing of it.
//!
//! A userfaultfd belongs to the address space of whoever makes it, so the process has to make it itself: one of its
//! threads is stopped, made to call `userfaultfd` at a system call instruction that it has anyway, the descriptor is
//! copied out, and the thread made to close its own. It then stands where it stood: its registers and its signal mask
//! are put back at the same kind of stop at which they were read, so a system call that was interrupted goes on or is
//! restarted by the kernel's own rules, and signals that came meanwhile are delivered then.
//!
//! ```text
//! seize -> interrupt -> [stopped] registers, mask; block signals
//!   -> userfaultfd -> [end of call] pidfd_getfd -> close -> [end of call]
//!   -> interrupt -> [stopped] mask, registers -> detach
//! ```
//! From the first change of a register on, the work is never given up while the thread lives. If the tracer ended meanwhile, the
//! thread would run on with registers that are not its own; so this is done by a process that does nothing else and outlives the
//! daemon ([`super::injector`]).

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::slice;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

use super::areas::{self, Area, Kind};
use crate::sys::ptrace::{Registers, Stop, Tracee, Until};
use crate::sys::{userfaultfd, vm};

/// A thread that does not come to a stop in this time is let go: it sleeps uninterruptibly, or is frozen.
const STOP: Duration = Duration::from_millis(100);
/// The two bytes of the instruction `syscall`.
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];
/// How much of an executable area is searched for it.
const SEARCHED: u64 = 1 << 20;
const PAGE: u64 = super::PAGE_BYTES;
/// The code segment of a task that runs 64-bit code.
const CODE_64_BIT: u64 = 0x33;
/// Signals that a fault of the injected call itself would bring.
const FAULTS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGSYS,
];

/// Why a process gave no userfaultfd. It runs on undisturbed; its memory is read when it is frozen.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum InjectError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// It did not stop in time.
    #[error(
        "process {pid} does not stop for a debugger within {waited_ms} ms; it sleeps in the kernel or is frozen"
    )]
    Busy {
        /// The process.
        pid: i32,
        /// How long it was waited for.
        waited_ms: u128,
    },
    /// It is of a kind that this cannot be done to.
    #[error("process {pid} {what}, which cannot be tracked")]
    Kind {
        /// The process.
        pid: i32,
        /// What it is or does.
        what: Cow<'static, str>,
    },
    /// It was refused the descriptor.
    #[error("process {pid} is refused a userfaultfd: {source}")]
    Refused {
        /// The process.
        pid: i32,
        /// What the kernel told it.
        #[serde(with = "number")]
        source: io::Error,
    },
    /// It cannot be traced.
    #[error("process {pid} cannot be traced ({step}): {source}")]
    Trace {
        /// The process.
        pid: i32,
        /// What failed.
        step: Cow<'static, str>,
        /// Why.
        #[serde(with = "number")]
        source: io::Error,
    },
}

/// What came out of a process, and for how long it stood still for it.
#[derive(Debug)]
pub struct Taken {
    /// The descriptor, fresh from the call. The process itself has none any more.
    pub fd: OwnedFd,
    /// From the request to stop to the moment the thread was let go.
    pub stalled: Duration,
}

/// An error of the kernel on its way to another process.
mod number {
    use std::io;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(error: &io::Error, to: S) -> Result<S::Ok, S::Error> {
        error.raw_os_error().unwrap_or(libc::EIO).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<io::Error, D::Error> {
        i32::deserialize(from).map(io::Error::from_raw_os_error)
    }
}

/// What `step` has failed with: where the process has ended, that.
fn trace(pid: i32, step: &'static str, source: io::Error) -> InjectError {
    if source.raw_os_error() == Some(libc::ESRCH) || source.kind() == io::ErrorKind::NotFound {
        InjectError::Gone { pid }
    } else {
        InjectError::Trace {
            pid,
            step: step.into(),
            source,
        }
    }
}

/// Takes a userfaultfd out of the process `pid`; `seccomp` says whether it has a filter. Blocks for 0.1 to 0.4 ms where nothing is
/// in the way, and else for as long as a thread takes that was made to do a call.
///
/// # Errors
/// There is none. The process runs on undisturbed.
pub fn take_userfaultfd(pid: i32, seccomp: bool) -> Result<Taken, InjectError> {
    let step = |step| move |source: io::Error| trace(pid, step, source);
    // Everything that can be done while it still runs.
    let instruction = find_instruction(pid)?;
    let process = Pid::from_raw(pid).ok_or(InjectError::Gone { pid })?;
    let process =
        pidfd_open(process, PidfdFlags::empty()).map_err(|error| trace(pid, "pidfd_open", error.into()))?;
    let task = living_thread(pid).map_err(step("its threads"))?;
    let tracee = Tracee::seize(task, seccomp).map_err(step("seize"))?;
    let start = Instant::now();
    stop(pid, &tracee)?;
    let held = Held::new(pid, tracee, instruction)?;
    let (fd, held) = held.run(&process);
    held.release()?;
    Ok(Taken {
        fd: fd?,
        stalled: start.elapsed(),
    })
}

/// Where the process has a system call instruction: in the vdso in nearly every case, else anywhere in its code.
fn find_instruction(pid: i32) -> Result<u64, InjectError> {
    let maps = fs::read(format!("/proc/{pid}/maps")).map_err(|source| trace(pid, "its areas", source))?;
    let executable = |area: &Area| area.executable && area.kind != Kind::Kernel;
    let mut candidates: Vec<Area> = areas::private(&maps).filter(executable).collect();
    candidates.sort_by_key(|area| area.kind != Kind::Vdso);
    let found = candidates
        .iter()
        .find_map(|area| search(pid, area).transpose())
        .transpose();
    found
        .map_err(|source| trace(pid, "its code", source))?
        .ok_or(InjectError::Kind {
            pid,
            what: "has no readable code with a system call in it".into(),
        })
}

fn search(pid: i32, area: &Area) -> io::Result<Option<u64>> {
    let start = area.range.start;
    let end = area.range.end.min(start + SEARCHED);
    let mut code = vec![0; usize::try_from(end - start).unwrap_or(0)];
    vm::read(pid, slice::from_ref(&(start..end)), &mut code, &mut Vec::new())?;
    let place = code.windows(2).position(|bytes| bytes == INSTRUCTION);
    Ok(place.map(|place| start + place as u64))
}

/// A thread that can be made to do something: the first one, unless it has ended before the others or sleeps in a way
/// that cannot be interrupted, as while a child of `vfork` runs.
fn living_thread(pid: i32) -> io::Result<i32> {
    let mut tasks = vec![pid];
    for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        tasks.extend(
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    let state = |task: &i32| -> Option<char> {
        let status = fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).ok()?;
        let state = status.lines().find_map(|line| line.strip_prefix("State:"))?;
        state.trim_start().chars().next()
    };
    let not_in =
        |states: &'static str| move |task: &&i32| state(task).is_some_and(|state| !states.contains(state));
    let found = tasks
        .iter()
        .find(not_in("DZX"))
        .or_else(|| tasks.iter().find(not_in("ZX")));
    found
        .copied()
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
}

/// Brings the thread to the stop at which its registers can be read and written back. Signals that it was about to get
/// it still gets.
fn stop(pid: i32, tracee: &Tracee) -> Result<(), InjectError> {
    let step = |source| trace(pid, "stop", source);
    let deadline = Instant::now() + STOP;
    tracee.interrupt().map_err(step)?;
    loop {
        // Giving up here is safe: the end of this thread lets go of one that has not stopped.
        match tracee.wait(Some(deadline)).map_err(step)? {
            Some(Stop::Asked) => return Ok(()),
            Some(Stop::Signal(signal)) => tracee.resume(Until::Stopped, signal).map_err(step)?,
            Some(Stop::SystemCall) => tracee.resume(Until::Stopped, 0).map_err(step)?,
            None => {
                return Err(InjectError::Busy {
                    pid,
                    waited_ms: STOP.as_millis(),
                });
            }
        }
    }
}

/// A thread that stands still, with all that is needed to let it go as it was.
struct Held {
    pid: i32,
    tracee: Tracee,
    registers: Registers,
    mask: u64,
    instruction: u64,
    /// Signals taken back from delivery, which it gets when it is let go.
    signals: Vec<i32>,
}

impl Held {
    /// Looks at the thread and changes nothing of it but its signal mask.
    fn new(pid: i32, tracee: Tracee, instruction: u64) -> Result<Self, InjectError> {
        match Self::examine(pid, &tracee, instruction) {
            Ok((registers, mask)) => Ok(Self {
                pid,
                tracee,
                registers,
                mask,
                instruction,
                signals: Vec::new(),
            }),
            Err(error) => {
                // It stands as it stood; should this fail, it has ended, or the end of this thread lets it go.
                let _ = tracee.detach();
                Err(error)
            }
        }
    }

    fn examine(pid: i32, tracee: &Tracee, instruction: u64) -> Result<(Registers, u64), InjectError> {
        let step = |step| move |source: io::Error| trace(pid, step, source);
        let mut registers = tracee.registers().map_err(step("registers"))?;
        let kind = |what: &'static str| {
            Err(InjectError::Kind {
                pid,
                what: what.into(),
            })
        };
        if registers.cs != CODE_64_BIT {
            return kind("runs 32-bit code");
        }
        if tracee.dispatches_system_calls().map_err(step("its kind"))? {
            return kind("handles its system calls itself");
        }
        let page = instruction / PAGE * PAGE;
        // The instruction may lie across the end of a page.
        let mut code = [0; 2 * PAGE as usize];
        let pages = page..page + if instruction % PAGE == PAGE - 1 { 2 } else { 1 } * PAGE;
        let length = usize::try_from(pages.end - pages.start).unwrap_or(0);
        vm::read(pid, &[pages], &mut code[..length], &mut Vec::new()).map_err(step("its code"))?;
        let place = usize::try_from(instruction - page).unwrap_or(0);
        if code.get(place..place + 2) != Some(&INSTRUCTION) {
            return kind("has just changed its code");
        }
        leave_sequence(pid, tracee, &mut registers).map_err(step("its restartable sequence"))?;
        let mask = tracee.signal_mask().map_err(step("signal mask"))?;
        tracee.set_signal_mask(u64::MAX).map_err(step("signal mask"))?;
        Ok((registers, mask))
    }

    /// The calls themselves. From here on there is no way back but [`Self::release`].
    fn run(mut self, process: &OwnedFd) -> (Result<OwnedFd, InjectError>, Self) {
        let flags = u64::from(userfaultfd::FLAGS.cast_unsigned());
        let number = match self.call(libc::SYS_userfaultfd, flags) {
            Ok(number) => number,
            Err(error) => return (Err(error), self),
        };
        let copy = pidfd_getfd(process, number, PidfdGetfdFlags::empty());
        let copy = copy.map_err(|error| trace(self.pid, "pidfd_getfd", error.into()));
        let closed = self.call(libc::SYS_close, u64::from(number.cast_unsigned()));
        (closed.and(copy), self)
    }

    /// Has the thread do one system call with one argument.
    fn call(&mut self, number: i64, argument: u64) -> Result<i32, InjectError> {
        let pid = self.pid;
        let step = |source| trace(pid, "system call", source);
        let registers = Registers {
            rip: self.instruction,
            rax: number.cast_unsigned(),
            rdi: argument,
            // Not in a system call: nothing for the kernel to restart.
            orig_rax: u64::MAX,
            ..self.registers
        };
        self.tracee.set_registers(&registers).map_err(step)?;
        for _entry_and_end in 0..2 {
            self.tracee.resume(Until::SystemCall, 0).map_err(step)?;
            self.until_system_call()?;
        }
        let result = self.tracee.registers().map_err(step)?.rax.cast_signed();
        match i32::try_from(result) {
            Ok(result) if result >= 0 => Ok(result),
            result => Err(InjectError::Refused {
                pid,
                source: io::Error::from_raw_os_error(result.map_or(libc::EINVAL, |errno| -errno)),
            }),
        }
    }

    fn until_system_call(&mut self) -> Result<(), InjectError> {
        let pid = self.pid;
        let step = |source| trace(pid, "system call", source);
        loop {
            match self.tracee.wait(None).map_err(step)? {
                None | Some(Stop::SystemCall) => return Ok(()),
                Some(Stop::Signal(signal)) if FAULTS.contains(&signal) => {
                    return Err(InjectError::Kind {
                        pid,
                        what: "faults in a system call that it is made to do".into(),
                    });
                }
                Some(Stop::Signal(signal)) => self.signals.push(signal),
                Some(Stop::Asked) => {}
            }
            self.tracee.resume(Until::SystemCall, 0).map_err(step)?;
        }
    }

    /// Lets the thread go as it was. The registers are written where they were read: on the way out of the kernel,
    /// before it looks whether a system call is to be restarted.
    fn release(mut self) -> Result<(), InjectError> {
        let pid = self.pid;
        let step = |source| trace(pid, "release", source);
        self.tracee.interrupt().map_err(step)?;
        loop {
            self.tracee.resume(Until::Stopped, 0).map_err(step)?;
            match self.tracee.wait(None).map_err(step)? {
                Some(Stop::Signal(signal)) if !FAULTS.contains(&signal) => self.signals.push(signal),
                Some(Stop::Asked) => break,
                Some(Stop::Signal(_) | Stop::SystemCall) | None => {}
            }
        }
        self.tracee.set_registers(&self.registers).map_err(step)?;
        self.tracee.set_signal_mask(self.mask).map_err(step)?;
        for signal in &self.signals {
            self.tracee.signal(pid, *signal).map_err(step)?;
        }
        self.tracee.detach().map_err(step)
    }
}

/// A thread that stands in a restartable sequence is sent to where such a sequence goes when it is disturbed, as the
/// kernel would have done had it not been stopped for a call.
fn leave_sequence(pid: i32, tracee: &Tracee, registers: &mut Registers) -> io::Result<()> {
    let Some(record) = tracee.restartable_sequence()? else {
        return Ok(());
    };
    let sequence = word(pid, record + 8)?;
    if sequence == 0 {
        return Ok(());
    }
    // struct rseq_cs: version and flags, start, length, and where to go.
    let start = word(pid, sequence + 8)?;
    let length = word(pid, sequence + 16)?;
    if registers.rip.wrapping_sub(start) < length {
        registers.rip = word(pid, sequence + 24)?;
    }
    Ok(())
}

/// Eight bytes of the process's memory, aligned to eight.
fn word(pid: i32, address: u64) -> io::Result<u64> {
    let page = address / PAGE * PAGE;
    let mut bytes = [0; PAGE as usize];
    vm::read(
        pid,
        slice::from_ref(&(page..page + PAGE)),
        &mut bytes,
        &mut Vec::new(),
    )?;
    let place = usize::try_from(address - page).unwrap_or(0);
    let word = bytes.get(place..place + 8).and_then(|word| word.try_into().ok());
    Ok(u64::from_le_bytes(word.unwrap_or_default()))
}
