//! From what a user asked for to the OCI runtime configuration that runc is given.
//!
//! Pure but for the container's user database, which is read from its root filesystem: the same request on two hosts gives
//! the same confinement. `process` is what runs, `mounts` what it sees, `limits` what it may use, `confinement` and
//! `seccomp` what it may do.

mod build;
mod confinement;
mod error;
mod exec;
mod limits;
mod mounts;
mod process;
mod seccomp;
mod syscalls;
mod user;

pub use build::{SpecRequest, build};
pub use error::SpecError;
pub(crate) use exec::{ExecProcess, exec_process};
pub use mounts::{MountSource, ResolvedMount};
pub use user::User;
