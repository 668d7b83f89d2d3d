//! The library that the relay puts into CRIU (`LD_PRELOAD`): it stands before functions of libc.
//!
//! - `ioctl`: where CRIU asks a page map for memory that has content, it answers that there is none. CRIU then writes a
//!   process's state without its memory.
//! - `socket`: see [`tracking`].
//! - `execvp`: where a process of CRIU's would become tar, see [`tmpfs`].
//! - `openat`: where CRIU asks for the areas of a process that the relay's daemon has written down.
//!
//! Built alone by `build.rs`, without the standard library; as a module of the crate it exists for the compiler's and
//! clippy's checks only.

#![cfg_attr(not(test), no_std)]
#![expect(unsafe_code, reason = "a function that C calls, before functions of C")]

#[cfg(not(test))]
mod archive;
#[cfg(not(test))]
mod board;
#[cfg(not(test))]
mod paths;
#[cfg(not(test))]
mod scan;
#[cfg(not(test))]
mod tmpfs;
#[cfg(not(test))]
mod tracking;
#[cfg(test)]
use super::{board, paths, scan, tmpfs, tracking};

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use board::{Board, HIDE_PAGES, SKIP_TRACKING, SMALL_ARCHIVES};
use paths::Path;
use scan::{REQUEST, ScanArgument};

/// More than CRIU gives to tar.
const MOST_ARGUMENTS: usize = 24;

const O_RDWR_CLOEXEC: c_int = 0o2 | 0o2_000_000;
const O_RDONLY_CLOEXEC: c_int = 0o2_000_000;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;

#[cfg(target_arch = "x86_64")]
const IOCTL: c_long = 16;
#[cfg(target_arch = "x86_64")]
const SOCKET: c_long = 41;
#[cfg(target_arch = "x86_64")]
const OPENAT: c_long = 257;
#[cfg(target_arch = "aarch64")]
const IOCTL: c_long = 29;
#[cfg(target_arch = "aarch64")]
const SOCKET: c_long = 198;
#[cfg(target_arch = "aarch64")]
const OPENAT: c_long = 56;

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
    fn getenv(name: *const c_char) -> *const c_char;
    fn unsetenv(name: *const c_char) -> c_int;
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn close(descriptor: c_int) -> c_int;
    fn execvpe(
        file: *const c_char,
        arguments: *const *const c_char,
        environment: *const *const c_char,
    ) -> c_int;
    fn _exit(status: c_int) -> !;
    static environ: *const *const c_char;
    fn readlink(path: *const c_char, into: *mut c_char, size: usize) -> isize;
    fn mmap(
        at: *mut c_void,
        size: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        from: i64,
    ) -> *mut c_void;
}

/// The relay's board; null where there is none, and then nothing is answered differently.
static PLACE: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());

#[cfg(not(test))]
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;

/// Where the areas are; written once, before anything can read it.
struct Directory(UnsafeCell<Path>);

// SAFETY: it is written by `start` alone, which the loader calls before there is a second thread.
unsafe impl Sync for Directory {}

static DIRECTORY: Directory = Directory(UnsafeCell::new(Path::new()));

/// # Safety
/// To be called by [`start`] alone.
unsafe fn keep_directory(path: &[u8]) {
    // SAFETY: nobody else reads or writes it yet.
    unsafe { *DIRECTORY.0.get() = Path::new().with(path) };
}

/// What CRIU's program is called. Whatever starts it, such as a shell, passes the variables on to it.
const PROGRAM: &[u8] = b"/criu";

/// Whether this program is CRIU.
fn is_criu() -> bool {
    let mut path = [0u8; 4096];
    // SAFETY: the name ends with a zero byte, and no more is written than there is room for.
    let length = unsafe { readlink(c"/proc/self/exe".as_ptr(), path.as_mut_ptr().cast(), path.len()) };
    usize::try_from(length)
        .ok()
        .and_then(|length| path.get(..length))
        .is_some_and(|path| path.ends_with(PROGRAM))
}

/// Finds the board, and takes the variables away: what CRIU starts is not to load this library.
#[cfg_attr(test, expect(dead_code, reason = "the loader calls it"))]
extern "C" fn start() {
    let name = board::VARIABLE.as_ptr().cast();
    // SAFETY: every name ends with a zero byte; the path is the environment's own and is used before it is changed; a
    // mapping is only taken for the board when the kernel has made it, and is never undone. libc is there: this
    // library is linked to it, so it has been started first, and no other thread is.
    unsafe {
        let path = getenv(name);
        if path.is_null() || !is_criu() {
            return;
        }
        let file = open(path, O_RDWR_CLOEXEC);
        unsetenv(name);
        unsetenv(c"LD_PRELOAD".as_ptr());
        if file < 0 {
            return;
        }
        let place = mmap(
            ptr::null_mut(),
            size_of::<Board>(),
            PROT_READ_WRITE,
            MAP_SHARED,
            file,
            0,
        );
        close(file);
        if place.addr() == usize::MAX {
            return;
        }
        let areas = getenv(board::AREAS.as_ptr().cast());
        if !areas.is_null() {
            keep_directory(CStr::from_ptr(areas).to_bytes());
            unsetenv(board::AREAS.as_ptr().cast());
        }
        let board: *mut Board = place.cast();
        (*board).loaded.store(1, Ordering::Release);
        PLACE.store(board, Ordering::Release);
    }
}

/// The board, where there is one and the relay has asked for this.
fn asked(bit: u32) -> Option<&'static Board> {
    // SAFETY: null, or a mapping that stays.
    let board = unsafe { PLACE.load(Ordering::Acquire).as_ref() }?;
    (board.asked.load(Ordering::Acquire) & bit != 0).then_some(board)
}

/// Stands before libc's function of the same name.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub extern "C" fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    if tracking::is_asked_for(domain, protocol)
        && asked(SKIP_TRACKING).is_some()
        && tracking::is_empty()
        && let Some(silent) = tracking::silent()
    {
        return silent;
    }
    // SAFETY: the call takes three numbers.
    let result = unsafe { syscall(SOCKET, domain, kind, protocol) };
    // A descriptor is an int; this is libc's own conversion.
    result as c_int
}

/// Stands before libc's function of the same name.
///
/// # Safety
/// As libc's: `arguments` is a list of C strings that ends with a null pointer.
#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, expect(dead_code, reason = "CRIU calls it"))]
pub unsafe extern "C" fn execvp(file: *const c_char, arguments: *const *const c_char) -> c_int {
    // SAFETY: the caller promises the list. A process that has done its work ends as the program would.
    unsafe {
        if asked(SMALL_ARCHIVES).is_some() && tar(arguments) {
            _exit(0);
        }
        execvpe(file, arguments, environ)
    }
}

/// Does what tar is told, where that is little; false where it has not been done.
///
/// # Safety
/// `arguments` is a list of C strings that ends with a null pointer.
unsafe fn tar(arguments: *const *const c_char) -> bool {
    let mut said = [c""; MOST_ARGUMENTS];
    let mut count = 0;
    for place in &mut said {
        // SAFETY: the caller promises the list, and it is read up to its end only.
        let argument = unsafe { *arguments.add(count) };
        if argument.is_null() {
            break;
        }
        // SAFETY: as above.
        *place = unsafe { CStr::from_ptr(argument) };
        count += 1;
    }
    let Some(said) = said.get(..count).filter(|_| count < MOST_ARGUMENTS) else {
        return false;
    };
    match said {
        [tar, create, .., place, here] if *tar == c"tar" && *create == c"--create" => {
            *place == c"/proc/self/fd/0" && *here == c"." && tmpfs::save(0, 1)
        }
        [tar, extract, .., directory, path]
            if *tar == c"tar" && *extract == c"--extract" && *directory == c"--directory" =>
        {
            // SAFETY: the path is one of the caller's strings.
            unsafe { tmpfs::load(0, path.as_ptr()) }
        }
        _ => false,
    }
}

/// Stands before libc's function of the same name. That one takes its third argument as a variable one, which the
/// calling conventions of both architectures pass as a third argument.
///
/// # Safety
/// As libc's: for the request of this library, `argument` is a `struct pm_scan_arg` or null.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(descriptor: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // The kernel, too, looks at the low half alone.
    if request as u32 == REQUEST
        && let Some(board) = asked(HIDE_PAGES)
        && !argument.is_null()
    {
        // SAFETY: the caller promises the structure.
        let question = unsafe { &mut *argument.cast::<ScanArgument>() };
        if question.asks_for_content() && !hides_guards(descriptor, question) {
            question.answer_nothing();
            board.hidden.fetch_add(1, Ordering::AcqRel);
            return 0;
        }
    }
    // SAFETY: the caller's own arguments, passed on to the call they are for.
    let result = unsafe { syscall(IOCTL, descriptor, request, argument) };
    // An ioctl's result is an int; this is libc's own conversion.
    result as c_int
}

/// Whether an answer of nothing would keep guard regions from a CRIU that does not know of them.
fn hides_guards(descriptor: c_int, question: &ScanArgument) -> bool {
    let mut region = [0_u64; 3];
    let guards = question.for_guards(region.as_mut_ptr().addr() as u64);
    guards.is_some_and(|mut guards| {
        // SAFETY: the question is the request's structure, and has room for the one region it asks for.
        let found = unsafe { syscall(IOCTL, descriptor, c_ulong::from(REQUEST), &raw mut guards) };
        found > 0
    })
}

/// Stands before libc's function of the same name, as [`ioctl`] does.
///
/// # Safety
/// As libc's: `path` ends with a zero byte.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn openat64(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    mode: c_uint,
) -> c_int {
    let board = PLACE.load(Ordering::Acquire);
    // SAFETY: the caller promises a string; the board is a mapping that stays.
    unsafe {
        if !board.is_null() && !path.is_null() && CStr::from_ptr(path) == c"smaps" {
            let areas = open_areas(directory);
            if areas >= 0 {
                (*board).areas.fetch_add(1, Ordering::AcqRel);
                return areas;
            }
        }
        // The caller's own arguments, passed on to the call they are for; a descriptor is an int.
        syscall(OPENAT, directory, path, flags, mode) as c_int
    }
}

/// Opens what has been written down of the process whose directory in `/proc` this is; negative where nothing was.
fn open_areas(directory: c_int) -> c_int {
    let link = Path::new().with(b"/proc/self/fd/").with_number(directory);
    let mut target = [0_u8; 32];
    // SAFETY: the directory's name is not written to any more; paths end with a zero byte; `target` is as long as is
    // said, and no longer name is used.
    unsafe {
        let length = readlink(link.as_ptr(), target.as_mut_ptr().cast(), target.len());
        let name = usize::try_from(length)
            .ok()
            .and_then(|length| target.get(..length));
        let Some(pid) = name.and_then(|name| name.strip_prefix(b"/proc/")) else {
            return -1;
        };
        let file = (*DIRECTORY.0.get()).with(b"/").with(pid);
        if file.is_whole() && paths::is_number(pid) {
            open(file.as_ptr(), O_RDONLY_CLOEXEC)
        } else {
            -1
        }
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(test)]
mod tests {
    use super::{Board, PLACE, ScanArgument, ioctl};
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::sync::atomic::Ordering;

    #[test]
    fn pages_are_there_until_there_is_a_board() {
        const GUARD_INSTALL: i32 = 102;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut content = vec![7_u8; 64 * 4096];
        let first = content.as_ptr().addr() as u64 / 4096 * 4096;
        let mut regions = [[0_u64; 3]; 8];
        let mut scan = |any_of, told| {
            let mut argument = ScanArgument {
                size: 96,
                start: first,
                end: first + 63 * 4096,
                regions: regions.as_mut_ptr().addr() as u64,
                regions_max: 8,
                any_of,
                told,
                ..ScanArgument::default()
            };
            // SAFETY: the argument is the structure of the request, and so is what its pointer says.
            let found = unsafe {
                ioctl(
                    pagemap.as_raw_fd(),
                    super::REQUEST.into(),
                    (&raw mut argument).cast(),
                )
            };
            assert_eq!(argument.walk_end, argument.end);
            found
        };
        assert!(scan(1 << 3 | 1 << 4, 1 << 3) > 0);
        let board: &'static Board = Box::leak(Box::new(Board {
            loaded: 1.into(),
            hidden: 0.into(),
            asked: super::HIDE_PAGES.into(),
            areas: 0.into(),
        }));
        PLACE.store(std::ptr::from_ref(board).cast_mut(), Ordering::Release);
        assert_eq!(scan(1 << 3 | 1 << 4, 1 << 3), 0);
        assert!(scan(1 << 3, 1 << 3) > 0, "another question was answered");
        assert_eq!(board.hidden.load(Ordering::Acquire), 1);
        // A CRIU that does not ask for guards must run into them; one that does has asked for them before.
        let guard = (content.as_mut_ptr().addr() / 4096 + 9) * 4096;
        let guard = content.as_mut_ptr().with_addr(guard).cast();
        // SAFETY: a page within the vector, which nobody reads again before the guard is removed.
        let advise = |advice| unsafe { libc::madvise(guard, 4096, advice) };
        assert_eq!(advise(GUARD_INSTALL), 0, "this kernel has no guard pages");
        assert!(scan(1 << 3 | 1 << 4, 1 << 3) > 0);
        assert_eq!(scan(1 << 3 | 1 << 4, 1 << 3 | 1 << 8), 0);
        assert_eq!(advise(GUARD_INSTALL + 1), 0);
        assert_eq!(scan(1 << 3 | 1 << 4, 1 << 3), 0);
        assert_eq!(board.hidden.load(Ordering::Acquire), 3);
        areas_come_from_the_directory(board);
    }

    fn areas_come_from_the_directory(board: &Board) {
        let own = format!("/proc/{}", std::process::id());
        let own = File::open(own).unwrap();
        let read = |name: &std::ffi::CStr| {
            // SAFETY: a string of C.
            let file = unsafe { super::openat64(own.as_raw_fd(), name.as_ptr(), 0, 0) };
            assert!(file >= 0, "{name:?}");
            // SAFETY: it has just been opened, for nobody else.
            let file = unsafe { OwnedFd::from_raw_fd(file) };
            std::io::read_to_string(File::from(file)).unwrap()
        };
        assert!(read(c"smaps").contains("Rss:"), "there is no directory yet");
        let directory = tempfile::TempDir::new().unwrap();
        std::fs::write(directory.path().join(std::process::id().to_string()), "areas").unwrap();
        // SAFETY: no other test reads it.
        unsafe { super::keep_directory(directory.path().as_os_str().as_encoded_bytes()) };
        assert_eq!(read(c"smaps"), "areas");
        assert!(read(c"maps").contains("r-xp"));
        assert_eq!(board.areas.load(Ordering::Acquire), 1);
    }
}
