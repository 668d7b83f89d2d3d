//! `ptrace` and `wait4` as CRIU sees them.

use core::ffi::{c_int, c_long, c_void};
use core::ptr;
use core::sync::atomic::Ordering;

use super::layout::{
    EXTENDED_BYTES, FOREIGN_MASK, FOREIGN_REGISTERS, HAS_EXTENDED, HAS_MASK, HAS_REGISTERS, LOOP, RIP, SLOTS,
    Slot, WORDS,
};
use super::load::JOURNAL;

const PTRACE: c_long = 101;
const WAIT4: c_long = 61;
const NANOSLEEP: c_long = 35;

const PEEKTEXT: c_long = 1;
const PEEKDATA: c_long = 2;
const PEEKUSER: c_long = 3;
const POKEDATA: c_long = 5;
const POKEUSER: c_long = 6;
const CONT: c_long = 7;
const GETREGS: c_long = 12;
const DETACH: c_long = 17;
const SYSCALL: c_long = 24;
const GETSIGINFO: c_long = 0x4202;
const GETREGSET: c_long = 0x4204;
const SETREGSET: c_long = 0x4205;
const SEIZE: c_long = 0x4206;
const INTERRUPT: c_long = 0x4207;
const GETSIGMASK: c_long = 0x420a;
const SETSIGMASK: c_long = 0x420b;

const PRSTATUS: usize = 1;
const XSTATE: usize = 0x202;

/// Where the debug registers are in `struct user`.
const DEBUG_REGISTERS: core::ops::Range<usize> = 848..912;

const EINTR: c_int = 4;

/// What CRIU puts where a thread is to make a call: the call, then breakpoints.
const CALL: u64 = 0xcccc_cccc_cccc_050f;
/// The call, then a jump to itself, then breakpoints.
const CALL_AND_LOOP: u64 = 0xcccc_cccc_feeb_050f;

/// [`Slot::course`]: CRIU waits for nothing that is the library's business.
const NONE: u32 = 0;
/// It makes a call.
const IN_CALL: u32 = 1;
/// It runs CRIU's code.
const IN_CODE: u32 = 2;
/// It is about to leave CRIU's code, which CRIU wants to see by a breakpoint; it sees it by the system call instead.
const LEAVING: u32 = 3;

/// Stopped at a breakpoint, as `wait4` tells.
const AT_BREAKPOINT: c_int = 0x057f;
/// Stopped at a system call.
const AT_CALL: c_int = 0x857f;
/// Stopped by an interrupt: SIGTRAP, and PTRACE_EVENT_STOP above it.
const INTERRUPTED: c_int = 0x80_057f;

/// How long a thread in CRIU's code, which needs some microseconds, is let run before the first look at it; then twice as
/// long each time, for it may have had no processor.
const FIRST_LOOK_NS: i64 = 15_000;
const RAREST_LOOK_NS: i64 = 4_000_000;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn __errno_location() -> *mut c_int;
}

/// The kernel's `struct iovec`.
#[repr(C)]
struct Buffer {
    at: *mut u8,
    bytes: usize,
}

/// `siginfo_t`, as far as it is used.
#[repr(C)]
struct SignalInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    rest: [c_int; 29],
}

/// The thread's slot, if it has one.
fn slot_of(thread: c_int) -> Option<&'static mut Slot> {
    // SAFETY: the mapping stays and has `SLOTS` slots. CRIU has one thread, and no function of this library holds a slot
    // while it calls another that looks for one.
    unsafe {
        let journal = JOURNAL.load(Ordering::Acquire).as_mut()?;
        let used = (journal.count.load(Ordering::Relaxed) as usize).min(SLOTS);
        let wanted = u32::try_from(thread).ok()?;
        let index = journal
            .threads
            .get(..used)?
            .iter()
            .position(|known| known.load(Ordering::Relaxed) == wanted)?;
        journal.slots.as_mut_ptr().add(index).as_mut()
    }
}

/// A slot for a thread that CRIU has just seized.
fn begin(thread: c_int) {
    if let Some(slot) = slot_of(thread) {
        slot.flags = 0;
        slot.course = NONE;
        slot.shown = 0;
        slot.call_site = 0;
        slot.words.iter_mut().for_each(|word| word.foreign = 0);
        return;
    }
    let journal = JOURNAL.load(Ordering::Acquire);
    // SAFETY: the mapping stays; only this thread writes to it.
    let Some(journal) = (unsafe { journal.as_ref() }) else {
        return;
    };
    let used = journal.count.load(Ordering::Relaxed);
    if let (Some(place), Ok(thread)) = (journal.threads.get(used as usize), u32::try_from(thread)) {
        place.store(thread, Ordering::Relaxed);
        journal.count.store(used + 1, Ordering::Release);
    }
}

/// The call itself, as the kernel takes it.
unsafe fn raw(request: c_long, thread: c_int, at: usize, data: *mut c_void) -> c_long {
    // SAFETY: as the caller's.
    unsafe { syscall(PTRACE, request, c_long::from(thread), at, data) }
}

unsafe fn raw_wait(thread: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    loop {
        // SAFETY: as the caller's.
        let result = unsafe { syscall(WAIT4, c_long::from(thread), status, c_long::from(options), usage) };
        // SAFETY: libc's own place for the error of this thread.
        if result >= 0 || unsafe { *__errno_location() } != EINTR {
            return result as c_int;
        }
    }
}

/// Stands before libc's function of the same name, which takes its arguments as variable ones; the calling convention
/// passes those as it does others.
///
/// # Safety
/// As libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ptrace(request: c_long, thread: c_int, at: usize, data: *mut c_void) -> c_long {
    // libc declares it as an int.
    let request = c_long::from(request as c_int);
    if matches!(request, PEEKTEXT | PEEKDATA | PEEKUSER) {
        // SAFETY: the kernel writes one word.
        return unsafe { peek(request, thread, at) };
    }
    if request == SEIZE {
        // SAFETY: the caller's own arguments.
        let result = unsafe { raw(request, thread, at, data) };
        if result == 0 {
            begin(thread);
        }
        return result;
    }
    let Some(slot) = slot_of(thread) else {
        // SAFETY: the caller's own arguments.
        return unsafe { raw(request, thread, at, data) };
    };
    // SAFETY: the caller's own arguments, to requests that say what they are.
    unsafe {
        match request {
            GETREGSET => get_registers(slot, thread, at, data),
            SETREGSET if at == PRSTATUS => set_registers(slot, thread, data),
            GETSIGMASK => {
                let result = raw(request, thread, at, data);
                if result == 0 && slot.flags & HAS_MASK == 0 {
                    slot.mask = *data.cast();
                    slot.flags |= HAS_MASK;
                }
                result
            }
            SETSIGMASK => set_mask(slot, thread, at, data),
            POKEDATA => poke(slot, thread, at, data),
            POKEUSER if DEBUG_REGISTERS.contains(&at) => {
                slot.course = if slot.course == LEAVING || data.is_null() {
                    slot.course
                } else {
                    LEAVING
                };
                0
            }
            CONT => go_on(slot, thread, at, data),
            GETSIGINFO if slot.shown == 1 => {
                const BREAKPOINT: c_int = 0x80;
                *data.cast() = SignalInfo {
                    signal: 5,
                    errno: 0,
                    code: BREAKPOINT,
                    rest: [0; 29],
                };
                0
            }
            INTERRUPT => {
                slot.course = NONE;
                raw(request, thread, at, data)
            }
            SYSCALL => {
                slot.shown = 0;
                raw(request, thread, at, data)
            }
            DETACH => {
                let result = raw(request, thread, at, data);
                if result == 0 {
                    slot.flags = 0;
                    slot.course = NONE;
                    slot.shown = 0;
                }
                result
            }
            _ => raw(request, thread, at, data),
        }
    }
}

/// A word, as libc gives it: as the result, with the error beside it.
unsafe fn peek(request: c_long, thread: c_int, at: usize) -> c_long {
    let mut word: c_long = 0;
    // SAFETY: the kernel writes one word.
    let result = unsafe { raw(request, thread, at, (&raw mut word).cast()) };
    if result < 0 {
        return result;
    }
    // SAFETY: libc's own place for the error of this thread.
    unsafe { *__errno_location() = 0 };
    word
}

unsafe fn get_registers(slot: &mut Slot, thread: c_int, kind: usize, data: *mut c_void) -> c_long {
    // SAFETY: the caller gives a buffer, which the kernel has filled as far as its length says afterwards.
    unsafe {
        let result = raw(GETREGSET, thread, kind, data);
        if result != 0 {
            return result;
        }
        let buffer = &*data.cast::<Buffer>();
        if kind == PRSTATUS && slot.flags & HAS_REGISTERS == 0 && buffer.bytes == size_of_val(&slot.registers)
        {
            ptr::copy_nonoverlapping(buffer.at, slot.registers.as_mut_ptr().cast(), buffer.bytes);
            slot.flags |= HAS_REGISTERS;
        }
        if kind == XSTATE && slot.flags & HAS_EXTENDED == 0 && buffer.bytes <= EXTENDED_BYTES {
            ptr::copy_nonoverlapping(buffer.at, slot.extended.as_mut_ptr(), buffer.bytes);
            slot.extended_bytes = buffer.bytes as u32;
            slot.flags |= HAS_EXTENDED;
        }
        result
    }
}

unsafe fn set_registers(slot: &mut Slot, thread: c_int, data: *mut c_void) -> c_long {
    // SAFETY: the caller gives a buffer with a thread's registers; it is looked at only where it has their size.
    unsafe {
        let buffer = &*data.cast::<Buffer>();
        let registers = buffer.at.cast::<u64>();
        let whole = buffer.bytes == size_of_val(&slot.registers);
        let own = whole
            && (0..slot.registers.len()).all(|index| registers.add(index).read() == slot.registers[index]);
        if whole {
            slot.sent_to = registers.add(RIP).read();
        }
        if !own {
            slot.flags |= FOREIGN_REGISTERS;
        }
        let result = raw(SETREGSET, thread, PRSTATUS, data);
        if own && result == 0 {
            slot.flags &= !FOREIGN_REGISTERS;
        }
        result
    }
}

unsafe fn set_mask(slot: &mut Slot, thread: c_int, size: usize, data: *mut c_void) -> c_long {
    // SAFETY: the caller gives a mask of eight bytes, the only size there is.
    unsafe {
        let mask: u64 = *data.cast();
        let own = slot.flags & HAS_MASK != 0 && mask == slot.mask;
        if !own {
            slot.mask_given = mask;
            slot.flags |= FOREIGN_MASK;
        }
        let result = raw(SETSIGMASK, thread, size, data);
        if own && result == 0 {
            slot.flags &= !FOREIGN_MASK;
        }
        result
    }
}

/// Writes a word of a thread's memory, and keeps what was there.
unsafe fn poke(slot: &mut Slot, thread: c_int, at: usize, data: *mut c_void) -> c_long {
    let mut value = data.addr() as u64;
    if value == CALL {
        value = CALL_AND_LOOP;
        slot.call_site = at as u64;
    }
    let known = slot
        .words
        .iter()
        .position(|word| word.at == at as u64 && word.foreign == 1);
    let free = || slot.words.iter().position(|word| word.foreign == 0);
    // SAFETY: reads and writes words of the thread's memory, as the caller asks.
    unsafe {
        if let Some(index) = known.or_else(free).filter(|index| *index < WORDS) {
            let word = &mut slot.words[index];
            if known.is_none() {
                word.at = at as u64;
                word.was = peek(PEEKDATA, thread, at) as u64;
                word.foreign = 1;
            }
            let result = raw(POKEDATA, thread, at, ptr::without_provenance_mut(value as usize));
            if result == 0 && value == word.was {
                word.foreign = 0;
            }
            return result;
        }
        raw(POKEDATA, thread, at, ptr::without_provenance_mut(value as usize))
    }
}

/// Lets a thread run, to a call's end, in CRIU's code, or out of it.
unsafe fn go_on(slot: &mut Slot, thread: c_int, at: usize, data: *mut c_void) -> c_long {
    slot.shown = 0;
    let foreign = slot.flags & FOREIGN_REGISTERS != 0;
    // SAFETY: the caller's own arguments, to a request that takes the same.
    unsafe {
        if slot.course == LEAVING {
            slot.course = NONE;
            return raw(SYSCALL, thread, at, data);
        }
        if foreign && slot.call_site != 0 && slot.sent_to == slot.call_site {
            slot.course = IN_CALL;
            return raw(SYSCALL, thread, at, data);
        }
        slot.course = if foreign { IN_CODE } else { NONE };
        raw(CONT, thread, at, data)
    }
}

/// Stands before libc's function of the same name.
///
/// # Safety
/// As libc's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn wait4(
    thread: c_int,
    status: *mut c_int,
    options: c_int,
    usage: *mut c_void,
) -> c_int {
    const NO_HANG: c_int = 1;
    let course = slot_of(thread).map_or(NONE, |slot| slot.course);
    // SAFETY: the caller's own arguments.
    unsafe {
        if status.is_null() || options & NO_HANG != 0 || course == NONE || course == LEAVING {
            return syscall(WAIT4, c_long::from(thread), status, c_long::from(options), usage) as c_int;
        }
        let result = if course == IN_CALL {
            behind_call(thread, status, options, usage)
        } else {
            in_loop(thread, status, options, usage)
        };
        if let Some(slot) = slot_of(thread) {
            slot.course = NONE;
            if result == thread && *status == INTERRUPTED {
                *status = AT_BREAKPOINT;
                slot.shown = 1;
            }
        }
        result
    }
}

/// Waits for a thread at the entry of its call, and then behind it: with an interrupt waiting, it goes no further.
unsafe fn behind_call(thread: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    // SAFETY: the caller's own arguments; the requests take none.
    unsafe {
        let result = raw_wait(thread, status, options, usage);
        if result != thread || *status != AT_CALL {
            return result;
        }
        raw(INTERRUPT, thread, 0, ptr::null_mut());
        raw(CONT, thread, 0, ptr::null_mut());
        raw_wait(thread, status, options, usage)
    }
}

/// Waits for a thread in CRIU's code until it turns in the loop behind it, with extended registers that are its own: that
/// code may have used them.
unsafe fn in_loop(thread: c_int, status: *mut c_int, options: c_int, usage: *mut c_void) -> c_int {
    let mut pause_ns = FIRST_LOOK_NS;
    loop {
        let pause = [0, pause_ns];
        // SAFETY: the kernel reads seconds and nanoseconds. A sleep that a signal ends early is no harm.
        unsafe { syscall(NANOSLEEP, pause.as_ptr(), ptr::null::<i64>()) };
        pause_ns = (pause_ns * 2).min(RAREST_LOOK_NS);
        let mut registers = [0_u64; 27];
        // SAFETY: the caller's own arguments; the kernel writes 27 words.
        unsafe {
            raw(INTERRUPT, thread, 0, ptr::null_mut());
            let result = raw_wait(thread, status, options, usage);
            if result != thread || *status != INTERRUPTED {
                return result;
            }
            raw(GETREGS, thread, 0, registers.as_mut_ptr().cast());
        }
        let Some(slot) = slot_of(thread) else {
            return thread;
        };
        // SAFETY: the journal's bytes are the thread's own registers, as the kernel gave them.
        unsafe {
            if registers[RIP] == slot.sent_to + LOOP {
                if slot.flags & HAS_EXTENDED != 0 {
                    let mut buffer = Buffer {
                        at: slot.extended.as_mut_ptr(),
                        bytes: slot.extended_bytes as usize,
                    };
                    raw(SETREGSET, thread, XSTATE, (&raw mut buffer).cast());
                }
                return thread;
            }
            raw(CONT, thread, 0, ptr::null_mut());
        }
    }
}
