//! Why a tree could not be read or written.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// What stopped a reader or a writer. After an error the stream is over: a half-written tree is to be discarded.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The kernel refused something.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Relative to the root of the tree; `.` is the root itself.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Something wrote to the tree while it was read.
    #[error("{path:?} changed while it was read; stop what writes to it and try again")]
    Changed {
        /// Relative to the root of the tree.
        path: PathBuf,
    },
    /// A mount point inside the tree: what is mounted there is not part of it, and what is below cannot be seen.
    #[error("{path:?} lies on another file system than the tree's root; unmount it first")]
    OtherFileSystem {
        /// Relative to the root of the tree.
        path: PathBuf,
    },
    /// A path longer than a stream can carry.
    #[error("the path of {path:?} is longer than {max} bytes")]
    PathTooLong {
        /// Relative to the root of the tree.
        path: PathBuf,
        /// Longest path in bytes.
        max: usize,
    },
    /// More extended attributes than fit a message.
    #[error(
        "the entry of {path:?} takes {bytes} bytes with its extended attributes, more than the {max} of a message"
    )]
    EntryTooLarge {
        /// Relative to the root of the tree.
        path: PathBuf,
        /// Size of the encoded entry.
        bytes: usize,
        /// Largest message.
        max: u32,
    },
    /// A part that no correct sender sends. Nothing outside the root was touched.
    #[error("refused {path:?}")]
    Refused {
        /// As the sender gave it, relative to the root of the tree.
        path: PathBuf,
        /// What is wrong with it.
        source: Refusal,
    },
    /// The writer met an error before; it takes no further parts.
    #[error("an earlier part of this tree failed; discard it and begin anew")]
    Failed,
}

/// What is wrong with a part that a peer sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Starts with `/`.
    #[error("the path is absolute")]
    Absolute,
    /// Two `/` in a row, or one at the end.
    #[error("the path has an empty component")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("the path has a '.' or '..' in it")]
    DotComponent,
    /// A NUL byte in a path, link target or attribute name.
    #[error("there is a NUL byte in a name")]
    Nul,
    /// A component or path longer than Linux takes.
    #[error("the name or path is too long")]
    TooLong,
    /// No kind, or one this version does not know.
    #[error("unknown kind of entry {0}")]
    Kind(i32),
    /// The directory it should lie in was not sent before, or is no directory.
    #[error("its parent directory has not been sent")]
    NoParent,
    /// The same path was sent before.
    #[error("the path was sent before")]
    Duplicate,
    /// The root's entry is not the first, or comes twice.
    #[error("the root's entry is not the first")]
    RootNotFirst,
    /// The root must be a directory.
    #[error("the root is not a directory")]
    RootNotDirectory,
    /// Bits beyond permissions, set-id and sticky.
    #[error("mode {0:o} has bits beyond 7777")]
    Mode(u32),
    /// The id that means "leave as it is".
    #[error("owner or group 4294967295")]
    Owner,
    /// Not a fraction of a second.
    #[error("{0} nanoseconds are more than a second")]
    Time(u32),
    /// A device number Linux does not have.
    #[error("no such device number: {major}:{minor}")]
    Device {
        /// As sent.
        major: u32,
        /// As sent.
        minor: u32,
    },
    /// A size, target or device number on a kind that has none.
    #[error("a field is set that this kind of entry does not have")]
    StrayField,
    /// A symlink without a target, or one longer than Linux takes.
    #[error("the target of the symlink is empty or too long")]
    SymlinkTarget,
    /// The target of a hard link was not sent before, or is a directory.
    #[error("the target of the hard link has not been sent, or is a directory")]
    LinkTarget,
    /// An attribute outside the name spaces that travel, or larger than Linux takes.
    #[error("an extended attribute that does not travel, or is too large")]
    Xattr,
    /// More entries than a tree may have.
    #[error("the tree has too many entries")]
    TooManyEntries,
    /// Larger than a file may be.
    #[error("a file of {0} bytes is beyond the limit")]
    FileSize(u64),
    /// Data, but the last entry is not a file.
    #[error("data that belong to no file")]
    DataWithoutFile,
    /// No bytes, or more than a frame carries.
    #[error("a piece of data of {0} bytes")]
    DataLength(usize),
    /// Data that start before the end of what came before.
    #[error("data at offset {0} go backwards")]
    DataOrder(u64),
    /// Data past the size that the entry gave.
    #[error("data up to offset {end} in a file of {size} bytes")]
    DataBeyondEnd {
        /// Where the data would end.
        end: u64,
        /// What the entry said.
        size: u64,
    },
}

/// A path of the tree for people: `.` for the root.
pub(crate) fn shown(path: &[u8]) -> PathBuf {
    let bytes = if path.is_empty() { b"." } else { path };
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

impl TreeError {
    pub(crate) fn refused(path: &[u8], source: Refusal) -> Self {
        Self::Refused {
            path: shown(path),
            source,
        }
    }
}

/// Says what was tried on which path when the kernel refuses.
pub(crate) trait Context<T> {
    fn context(self, action: &'static str, path: &[u8]) -> Result<T, TreeError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, action: &'static str, path: &[u8]) -> Result<T, TreeError> {
        self.map_err(|error| TreeError::Io {
            action,
            path: shown(path),
            source: error.into(),
        })
    }
}
