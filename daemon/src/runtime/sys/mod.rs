//! What the run time asks of the kernel beyond what safe crates offer. All `unsafe` of this crate's run time is here.

#![allow(unsafe_code, reason = "system calls; every block says why it is sound")]

mod readiness;
mod terminal;

pub(super) use readiness::watch;
pub(super) use terminal::with_controlling_terminal;
