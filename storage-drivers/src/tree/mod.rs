//! A directory tree as a stream of parts, both ways.
//!
//! ```text
//!   directory -> TreeReader -> TreePart, TreePart, ... -> TreeWriter -> directory
//!                (any number of threads or hosts in between)
//! ```
//!
//! A stream is the root's entry (whose path is empty), then every other entry after the directory it lies in; the data
//! of a file follow its entry in ascending order, holes left out. Neither end holds a whole file or a whole tree in
//! memory: the reader keeps the names of the directories it is in and the first name of each file that has several,
//! the writer at most [`MAX_OPEN_DIRECTORIES`] directories.
//!
//! The reader reads what the host's own administrator named; the writer writes what a peer sent, and trusts nothing of
//! it: see [`writer`].

pub mod error;
pub mod path;
pub mod reader;
pub mod writer;
pub mod xattr;

mod attributes;
mod file;

use tranship_proto::v1::TreeEntry;

pub use error::{Refusal, TreeError};
pub use reader::TreeReader;
pub use writer::TreeWriter;

pub(crate) use attributes::copy_attributes;

/// Directories that a reader or a writer holds open at once. Deeper trees work, at the price of opening anew.
pub const MAX_OPEN_DIRECTORIES: usize = 64;

/// One part of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum TreePart {
    /// A file, directory, link or node. Its path is relative to the root.
    Entry(TreeEntry),
    /// Content of the file whose entry came last.
    Data {
        /// Where in the file the bytes belong.
        offset: u64,
        /// At least one byte, at most [`tranship_proto::limits::MAX_DATA_BYTES`].
        bytes: Vec<u8>,
    },
}

/// What went through a finished stream; the numbers of `TreeEnd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeSummary {
    /// Entries, the root's included.
    pub entries: u64,
    /// Bytes of content; holes do not count.
    pub bytes: u64,
}
