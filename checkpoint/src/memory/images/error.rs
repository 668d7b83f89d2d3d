//! What is wrong with images of memory.

use std::io;
use std::path::PathBuf;

/// Why images of memory cannot be read, or would not be whole.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file cannot be read.
    #[error("the image {} cannot be read: {source}", path.display())]
    Read {
        /// The file, or the directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("the image {} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("the image {} is not one of CRIU's: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file is larger than any process could make it.
    #[error("the image {} has {bytes} bytes, over the limit of {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The list of resident pages is not in ascending order.
    #[error("the resident pages of process {process} are not in ascending order at {address:#x}")]
    Unordered {
        /// The process.
        process: u32,
        /// The page.
        address: u64,
    },
    /// A page is in no area that CRIU knows: the process has run, or is another one.
    #[error("page {address:#x} of process {process} is in no area of CRIU's image of it")]
    Outside {
        /// The process.
        process: u32,
        /// The page.
        address: u64,
    },
    /// CRIU has dumped a process of whose pages there is no list.
    #[error("process {process} was dumped without its memory, and its pages are not known")]
    Unlisted {
        /// The process.
        process: u32,
    },
    /// A page that the images promise has not arrived.
    #[error("page {address:#x} of process {process} has not arrived")]
    Missing {
        /// The process.
        process: u32,
        /// The page.
        address: u64,
    },
    /// A page could not be taken from where it is kept.
    #[error("page {address:#x} of process {process} cannot be taken from the store: {source}")]
    Store {
        /// The process.
        process: u32,
        /// The page.
        address: u64,
        /// Why.
        source: io::Error,
    },
    /// The pages that CRIU is to read itself are too many.
    #[error("the pages to restore before the start take {bytes} bytes, over the limit of {limit}")]
    TooManyPresent {
        /// Their bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
}
