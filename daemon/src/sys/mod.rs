//! System calls the safe crates do not wrap, one family a file. The only place of this crate with `unsafe` in it.
#![allow(
    unsafe_code,
    reason = "each file wraps one family of system calls, with the invariants at each block"
)]

pub mod heap;
pub mod packet;
pub mod peer_groups;
pub mod tap;
