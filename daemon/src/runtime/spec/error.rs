//! Why a container's configuration cannot be built.

use std::io;
use std::path::PathBuf;

/// What is wrong with what was asked for. Nothing has been made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the user nor the image names a program.
    #[error("there is no command to run: the image has neither entrypoint nor command, and none was given")]
    NoCommand,
    /// `--init` was asked for.
    #[error("--init is not supported yet: run a command that reaps its children, or leave it out")]
    InitUnsupported,
    /// An environment entry without a name.
    #[error("{0:?} is not an environment variable: it needs a name before the '='")]
    Environment(String),
    /// A path that must be absolute is not, or leaves its place.
    #[error("{what} must be an absolute path without '..', not {path:?}")]
    Path {
        /// What it was meant for.
        what: &'static str,
        /// What was given.
        path: String,
    },
    /// Something would be mounted where it must not.
    #[error("nothing can be mounted on {0}: the container's own file systems are there")]
    ReservedTarget(PathBuf),
    /// Two mounts want one place.
    #[error("two mounts have the target {0}")]
    DuplicateTarget(PathBuf),
    /// No such user in the container.
    #[error("user {0:?} is not in the container's /etc/passwd")]
    UnknownUser(String),
    /// No such group in the container.
    #[error("group {0:?} is not in the container's /etc/group")]
    UnknownGroup(String),
    /// An id that the container's user namespace does not have.
    #[error("id {id} is outside of the container's user namespace, which has 0 to {}", limit - 1)]
    IdOutOfRange {
        /// Which.
        id: u32,
        /// The first one that is not mapped.
        limit: u32,
    },
    /// The container's user database cannot be read.
    #[error("cannot read {path} in the container's root filesystem {rootfs}")]
    Database {
        /// Path inside.
        path: &'static str,
        /// Where inside is.
        rootfs: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No such capability.
    #[error("{0:?} is not a capability")]
    UnknownCapability(String),
    /// A limit nobody can live with.
    #[error("a limit of {given} {unit} is too low: the least is {least}")]
    LimitTooLow {
        /// What was asked for.
        given: u64,
        /// What it is counted in.
        unit: &'static str,
        /// What would do.
        least: u64,
    },
    /// A limit that no field holds.
    #[error("a limit of {given} {unit} is too high: the most is {most}")]
    LimitTooHigh {
        /// What was asked for.
        given: u64,
        /// What it is counted in.
        unit: &'static str,
        /// What would do.
        most: u64,
    },
    /// A host name that the kernel or a resolver would refuse.
    #[error("{0:?} is not a host name: letters, digits, '-' and '.', at most 63 bytes")]
    Hostname(String),
    /// A path of this host that JSON cannot hold.
    #[error("the path {0:?} is not UTF-8")]
    NotUtf8(PathBuf),
}
