//! The library that the relay puts into CRIU (`LD_PRELOAD`) for a dump. It stands before libc's `ptrace` and `wait4`, and
//! does two things.
//!
//! **It keeps what CRIU knows.** Before CRIU changes a thread's registers, signal mask or text it reads them. The library
//! writes what was read into a journal outside of CRIU, so that a CRIU that is killed takes nothing with it.
//!
//! **It keeps a thread alive that CRIU leaves behind.** CRIU has a thread make a system call, or run code of CRIU's, and
//! stops it with a breakpoint. Should CRIU be killed before it has seen that stop, the breakpoint's signal is delivered,
//! and kills the process. So the breakpoints become loops without an end, and the library stops the thread there itself:
//! behind a call with a stop at its entry and an interrupt, in CRIU's code by looking. CRIU is told of a breakpoint. A thread
//! that nobody stops then turns in its loop until it is put right.
//!
//! Built alone by `build.rs`, without the standard library; as a module of the crate it exists for the compiler's and
//! clippy's checks only.

#![cfg_attr(not(test), no_std)]
#![expect(unsafe_code, reason = "functions that C calls, before functions of C")]

#[cfg(not(test))]
mod layout;
#[cfg(test)]
use super::layout;

#[cfg(target_arch = "x86_64")]
#[path = "load.rs"]
mod load;
#[cfg(target_arch = "x86_64")]
#[path = "tracer.rs"]
mod tracer;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
