//! Programs that run in the kernel and walk its tables: loaded, attached to an iterator, read like a file.
#![expect(unsafe_code, reason = "bpf has no safe wrapper")]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const ITER_CREATE: libc::c_long = 33;

const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;

/// One instruction, as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What to do.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Distance in memory, or of a jump.
    pub offset: i16,
    /// The constant.
    pub constant: i32,
}

const _: () = assert!(size_of::<Instruction>() == 8);

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    types: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_type_id: u32,
}

const _: () = assert!(std::mem::offset_of!(Load, attach_type_id) == 108);

#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_size: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Default)]
struct OfTask {
    thread: u32,
    process: u32,
    descriptor: u32,
    padding: u32,
}

#[repr(C)]
struct Iter {
    link: u32,
    flags: u32,
}

/// A program that the kernel has found harmless.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads a program for the iterator whose function has the number `iterator` among the kernel's types.
    pub fn load(instructions: &[Instruction], license: &CStr, iterator: u32) -> io::Result<Self> {
        let arguments = Load {
            kind: PROG_TYPE_TRACING,
            count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
            instructions: instructions.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            attach_type: TRACE_ITER,
            attach_type_id: iterator,
            ..Load::default()
        };
        // SAFETY: the pointers are to a slice and a string that live through the call, the count is the slice's.
        unsafe { bpf(PROG_LOAD, &arguments) }.map(Self)
    }

    /// What the program writes about one task, to be read to its end.
    pub fn of_task(&self, pid: u32) -> io::Result<File> {
        let task = OfTask {
            thread: pid,
            ..OfTask::default()
        };
        let arguments = Link {
            program: number(&self.0),
            attach_type: TRACE_ITER,
            info: (&raw const task).addr() as u64,
            info_size: size_of::<OfTask>() as u32,
            ..Link::default()
        };
        // SAFETY: the pointer is to a structure of the size beside it, which lives through the call.
        let link = unsafe { bpf(LINK_CREATE, &arguments) }?;
        let arguments = Iter {
            link: number(&link),
            flags: 0,
        };
        // SAFETY: this call's arguments have no pointers.
        unsafe { bpf(ITER_CREATE, &arguments) }.map(File::from)
    }
}

fn number(descriptor: &OwnedFd) -> u32 {
    descriptor.as_raw_fd().unsigned_abs()
}

/// # Safety
/// `arguments` is laid out as the kernel expects for `command`, and what it points to lives through the call.
unsafe fn bpf<T>(command: libc::c_long, arguments: &T) -> io::Result<OwnedFd> {
    // SAFETY: by the contract of this function; the size is that of the arguments.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *arguments, size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: each of the commands used here returns a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
