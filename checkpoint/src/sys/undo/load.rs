//! What happens when the library is loaded: where the program is CRIU, its breakpoints become loops and the journal is
//! mapped.

use core::ffi::{c_char, c_int, c_long, c_void};
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use super::layout::{Journal, VARIABLE};

const PRCTL: c_long = 157;

const O_RDWR_CLOEXEC: c_int = 0o2 | 0o2_000_000;
const PROT_READ_WRITE: c_int = 3;
const PROT_READ: c_int = 1;
const MAP_SHARED: c_int = 1;
const SIGCHLD: c_int = 17;
/// `SA_NOCLDSTOP`.
const NO_STOPS: c_int = 1;
const PAGE: usize = 4096;

/// The end of the beginning of CRIU's code: where the service has returned nothing to go on with, a jump ahead to a
/// breakpoint. Before it there is the five bytes' call of the service.
const RETURN: [u8; 18] = [
    0x48, 0x83, 0xf8, 0x00, 0x7e, 0x0c, 0x48, 0x89, 0xc4, 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f,
    0x05,
];
/// Where in [`RETURN`] the jump's distance is.
const JUMP_DISTANCE: usize = 5;
/// Back to the jump itself.
const TO_ITSELF: u8 = 0xfe;
const CALL_OPCODE: u8 = 0xe8;

/// `PR_SET_TIMERSLACK`: sleeps are to be as short as they are asked to be.
const TIMER_SLACK: c_long = 29;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn unsetenv(name: *const c_char) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(descriptor: c_int) -> c_int;
    fn mmap(
        at: *mut c_void,
        size: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        from: i64,
    ) -> *mut c_void;
    fn mprotect(at: *mut c_void, size: usize, protection: c_int) -> c_int;
    fn memmem(hay: *const c_void, hay_bytes: usize, needle: *const c_void, bytes: usize) -> *mut c_void;
    fn dl_iterate_phdr(
        each: extern "C" fn(*mut Object, usize, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn sigaction(signal: c_int, action: *const Action, old: *mut Action) -> c_int;
}

/// libc's `struct dl_phdr_info`, as far as it is used.
#[repr(C)]
struct Object {
    base: usize,
    name: *const c_char,
    segments: *const Segment,
    count: u16,
}

/// `Elf64_Phdr`.
#[repr(C)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

/// libc's `struct sigaction`.
#[repr(C)]
struct Action {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

/// The journal; null where there is none, and then nothing is done differently.
pub static JOURNAL: AtomicPtr<Journal> = AtomicPtr::new(ptr::null_mut());

/// Whether the breakpoint of CRIU's code is a loop.
static LOOPS: AtomicBool = AtomicBool::new(false);

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Maps the journal where this program is CRIU. What CRIU starts is not to load this library; what starts CRIU is.
extern "C" fn start() {
    // SAFETY: every name ends with a zero byte; the path is the environment's own and is used before it is changed; a
    // mapping is only taken for the journal when the kernel has made it, and is never undone. libc is there: this
    // library is linked to it, so it has been started first, and no other thread is.
    unsafe {
        let path = getenv(VARIABLE.as_ptr());
        if path.is_null() {
            return;
        }
        dl_iterate_phdr(turn_into_loops, ptr::null_mut());
        if !LOOPS.load(Ordering::Relaxed) {
            return;
        }
        let file = open(path, O_RDWR_CLOEXEC);
        unsetenv(VARIABLE.as_ptr());
        unsetenv(c"LD_PRELOAD".as_ptr());
        if file < 0 {
            return;
        }
        let place = mmap(
            ptr::null_mut(),
            size_of::<Journal>(),
            PROT_READ_WRITE,
            MAP_SHARED,
            file,
            0,
        );
        close(file);
        if place.addr() == usize::MAX {
            return;
        }
        JOURNAL.store(place.cast(), Ordering::Release);
        // CRIU ignores the signal of a task that has stopped; but a CRIU that is traced is stopped for it.
        let quiet = Action {
            handler: 0,
            mask: [0; 16],
            flags: NO_STOPS,
            restorer: 0,
        };
        sigaction(SIGCHLD, &raw const quiet, ptr::null_mut());
        let nanosecond: c_long = 1;
        syscall(PRCTL, TIMER_SLACK, nanosecond);
    }
}

/// Makes loops of the breakpoints in the program's own copies of the code that CRIU puts into tasks; ends the iteration,
/// whose first object is the program.
extern "C" fn turn_into_loops(object: *mut Object, _: usize, _: *mut c_void) -> c_int {
    const LOAD: u32 = 1;
    // SAFETY: the loader gives its own structure and program headers; a segment that is loaded is mapped with at least
    // the bytes of its file, which are searched. What is changed is a byte in a page of such a segment.
    unsafe {
        let object = &*object;
        for index in 0..usize::from(object.count) {
            let segment = &*object.segments.add(index);
            // Read-only data and nothing else.
            if segment.kind != LOAD || segment.flags != 4 {
                continue;
            }
            let mut at = object.base + segment.address as usize;
            let end = at + segment.file_bytes as usize;
            loop {
                let found = memmem(
                    at as *const c_void,
                    end - at,
                    RETURN.as_ptr().cast(),
                    RETURN.len(),
                );
                if found.is_null() {
                    break;
                }
                let found: *mut u8 = found.cast();
                at = found.addr() + RETURN.len();
                if *found.sub(5) != CALL_OPCODE {
                    continue;
                }
                let byte = found.add(JUMP_DISTANCE);
                let page = (byte.addr() & !(PAGE - 1)) as *mut c_void;
                if mprotect(page, PAGE, PROT_READ_WRITE) == 0 {
                    *byte = TO_ITSELF;
                    mprotect(page, PAGE, PROT_READ);
                    LOOPS.store(true, Ordering::Relaxed);
                }
            }
        }
    }
    1
}
