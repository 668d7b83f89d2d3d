//! What the journal says of one thread, and putting that back.
#![expect(unsafe_code, reason = "a slot is read as plain memory")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layout::{
    FOREIGN_MASK, FOREIGN_REGISTERS, HAS_EXTENDED, HAS_MASK, HAS_REGISTERS, LOOP, RIP, Slot,
};
use super::thread::Tracee;

/// A call that CRIU puts into a task, with its arguments, has fewer bytes than this.
const CALL_SITE_BYTES: u64 = 16;

/// The kernel leaves these out of every mask: SIGKILL and SIGSTOP.
const NEVER_BLOCKED: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// A thread before CRIU changed it.
#[derive(Debug)]
pub struct Before {
    /// The thread, as the host sees it.
    pub thread: i32,
    slot: Box<Slot>,
}

/// What of a thread was foreign and is its own again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutBack {
    /// Its registers.
    pub registers: bool,
    /// Its signal mask.
    pub mask: bool,
}

impl Before {
    pub(super) fn new(thread: i32, slot: Box<Slot>) -> Self {
        Self { thread, slot }
    }

    /// Whether its registers or its mask may be CRIU's.
    #[must_use]
    pub fn may_be_astray(&self) -> bool {
        self.slot.flags & (FOREIGN_REGISTERS | FOREIGN_MASK) != 0
    }

    /// Writes back what CRIU has changed in the memory of the thread's process.
    ///
    /// # Errors
    /// The memory cannot be written. A process that is gone is fine.
    pub fn put_memory_back(&self) -> io::Result<()> {
        let path = format!("/proc/{}/mem", self.thread);
        let memory = match File::options().write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            memory => memory?,
        };
        for word in self.slot.words.iter().filter(|word| word.foreign != 0) {
            memory.write_all_at(&word.was.to_ne_bytes(), word.at)?;
        }
        Ok(())
    }

    /// Whether a stopped thread is in CRIU's code, and not yet at its end.
    ///
    /// # Errors
    /// What ptrace says.
    pub fn is_on_its_way(&self, tracee: &Tracee, in_parasite: impl Fn(u64) -> bool) -> io::Result<bool> {
        let at = tracee.registers()?[RIP];
        Ok(in_parasite(at) && at != self.slot.sent_to + LOOP)
    }

    /// Puts back what of a stopped thread is still CRIU's: its registers where `in_parasite` says so of the place where
    /// it stands, or where that is CRIU's call; its mask where it is the one that CRIU has set.
    ///
    /// # Errors
    /// What ptrace says; or the journal does not know the registers.
    pub fn put_back(&self, tracee: &Tracee, in_parasite: impl Fn(u64) -> bool) -> io::Result<PutBack> {
        let slot = &*self.slot;
        let at = tracee.registers()?[RIP];
        let calls = slot.call_site..slot.call_site + CALL_SITE_BYTES;
        let mut done = PutBack::default();
        if in_parasite(at) || (slot.call_site != 0 && calls.contains(&at)) {
            if slot.flags & HAS_REGISTERS == 0 {
                return Err(io::Error::other("the registers it had are not known"));
            }
            tracee.set_registers(&slot.registers)?;
            if let (true, Some(extended)) = (
                slot.flags & HAS_EXTENDED != 0,
                slot.extended.get(..slot.extended_bytes as usize),
            ) {
                tracee.set_extended(extended)?;
            }
            done.registers = true;
        }
        if slot.flags & (FOREIGN_MASK | HAS_MASK) == FOREIGN_MASK | HAS_MASK
            && tracee.mask()? == slot.mask_given & !NEVER_BLOCKED
        {
            tracee.set_mask(slot.mask)?;
            done.mask = true;
        }
        Ok(done)
    }
}

/// Whether there is anything to put back.
pub(super) fn is_changed(slot: &Slot) -> bool {
    slot.flags & (FOREIGN_REGISTERS | FOREIGN_MASK) != 0 || slot.words.iter().any(|word| word.foreign != 0)
}

/// A slot from the bytes of its file; none where they are too few.
pub(super) fn of_bytes(bytes: &[u8]) -> Option<Box<Slot>> {
    if bytes.len() < size_of::<Slot>() {
        return None;
    }
    let mut slot = Box::<Slot>::new_uninit();
    // SAFETY: there are as many bytes as a slot has, every value of each of its fields is valid, and the two do not
    // overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), slot.as_mut_ptr().cast(), size_of::<Slot>());
        Some(slot.assume_init())
    }
}
