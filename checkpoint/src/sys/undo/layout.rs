//! The journal that the library in CRIU writes: what each thread was before CRIU changed it. Plain data, without the
//! standard library; the file is the memory of a [`Journal`], zeros at first and sparse.

use core::sync::atomic::AtomicU32;

/// The variable that names the journal's file to the library.
pub const VARIABLE: &core::ffi::CStr = c"TRANSHIP_UNDO";

/// As many threads as can be put right: twice what a container may have by default.
pub const SLOTS: usize = 8192;

/// Words of a process's text that CRIU changes: four at once, with the library's own.
pub const WORDS: usize = 8;

/// Room for a thread's extended registers; the largest there are today take 11 KiB.
pub const EXTENDED_BYTES: usize = 12 * 1024;

/// Number of the instruction pointer in [`Slot::registers`].
pub const RIP: usize = 16;

/// The loop at the end of CRIU's code, from the code's beginning: behind a call and a comparison.
pub const LOOP: u64 = 9;

/// [`Slot::registers`] is known.
pub const HAS_REGISTERS: u32 = 1;
/// [`Slot::mask`] is known.
pub const HAS_MASK: u32 = 2;
/// [`Slot::extended`] is known.
pub const HAS_EXTENDED: u32 = 4;
/// The thread may have registers that are not its own.
pub const FOREIGN_REGISTERS: u32 = 8;
/// The thread may have a signal mask that is not its own.
pub const FOREIGN_MASK: u32 = 16;

/// A word of a process's memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Word {
    /// Where; 0 for none.
    pub at: u64,
    /// What was there.
    pub was: u64,
    /// 1 while something else may be there.
    pub foreign: u64,
}

/// One thread.
#[repr(C, align(4096))]
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// See the constants.
    pub flags: u32,
    /// What the library waits for; its own business.
    pub course: u32,
    /// 1 while the library shows its stop as a trap.
    pub shown: u32,
    /// Bytes of `extended`.
    pub extended_bytes: u32,
    /// Signals it blocked.
    pub mask: u64,
    /// Signals CRIU has let it block.
    pub mask_given: u64,
    /// Where CRIU has last set it to.
    pub sent_to: u64,
    /// Where CRIU has it make system calls; 0 before that.
    pub call_site: u64,
    /// `struct user_regs_struct`.
    pub registers: [u64; 27],
    /// What CRIU has changed in its process's memory.
    pub words: [Word; WORDS],
    /// As `PTRACE_GETREGSET` gives them for `NT_X86_XSTATE`.
    pub extended: [u8; EXTENDED_BYTES],
}

/// All threads.
#[repr(C)]
pub struct Journal {
    /// How many slots are in use.
    pub count: AtomicU32,
    /// Whose slot it is, by number.
    pub threads: [AtomicU32; SLOTS],
    /// The slots.
    pub slots: [Slot; SLOTS],
}
