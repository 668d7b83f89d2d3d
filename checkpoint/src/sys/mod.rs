//! The system calls that have no safe wrapper, one family a file.

pub mod bpf;
pub mod clock;
pub mod filling;
pub mod inherited;
pub mod maps;
pub mod pagemap;
pub mod ptrace;
pub mod tcp;
pub mod undo;
pub mod userfaultfd;
pub mod view;
pub mod vm;
