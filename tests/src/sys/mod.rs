//! System calls that no safe crate wraps, for the programs that are moved. The only place of this crate with `unsafe` in it.

pub mod fork;
pub mod mapping;
