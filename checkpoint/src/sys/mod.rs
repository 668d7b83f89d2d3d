//! The system calls that have no safe wrapper, one family a file.

pub mod clock;
pub mod inherited;
pub mod tcp;
pub mod view;
