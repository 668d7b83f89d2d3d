//! How the allocator keeps what is freed: a daemon that moves gigabytes should not look as if it held them.

use std::ffi::c_int;

/// Arenas of the allocator. It makes eight for each core otherwise, and each keeps the buffers that passed through it.
const ARENAS: c_int = 2;

/// Sets the allocator up, before there is a second thread. Where it has no such setting it does as it likes.
pub fn limit() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; a setting that is refused changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Gives freed memory back to the system. Takes a millisecond or so.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers; it only touches what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}
