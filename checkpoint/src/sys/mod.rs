//! The system calls that have no safe wrapper, one family a file.

pub mod clock;
pub mod inherited;
#[allow(dead_code, reason = "what reads the memory of processes is built on it")]
pub mod pagemap;
pub mod tcp;
pub mod view;
#[allow(dead_code, reason = "what reads the memory of processes is built on it")]
pub mod vm;
