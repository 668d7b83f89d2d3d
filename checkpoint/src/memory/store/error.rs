//! Why pages cannot be kept.

use std::io;
use std::path::{Path, PathBuf};

/// Why pages were not kept, or cannot be found again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A run that no process can have.
    #[error("process {process} cannot have {pages} pages at {start:#x}; nothing of the batch was kept")]
    Run {
        /// The process, as CRIU names it.
        process: u32,
        /// Where the run would begin.
        start: u64,
        /// Its length.
        pages: u32,
    },
    /// A batch whose content is not that of its runs.
    #[error(
        "a batch of process {process} has {bytes} bytes where its runs have {expected_bytes}; nothing of it was kept"
    )]
    Length {
        /// The process, as CRIU names it.
        process: u32,
        /// Bytes of the runs that are not zero.
        expected_bytes: u64,
        /// Bytes that came.
        bytes: u64,
    },
    /// There is no room for more.
    #[error("the container's memory does not fit the {limit_bytes} bytes that were set aside for it")]
    Full {
        /// Most that the store may take.
        limit_bytes: u64,
    },
    /// The store is complete, and nothing can be put any more.
    #[error("the page store is sealed, so nothing more can be put into it")]
    Sealed,
    /// A file of the store.
    #[error("the page store in {} cannot be {action}: {source}", directory.display())]
    Files {
        /// Where the store is.
        directory: PathBuf,
        /// What was to be done.
        action: &'static str,
        /// Why it could not be.
        source: io::Error,
    },
}

impl StoreError {
    pub(super) fn files(directory: &Path, action: &'static str) -> impl Fn(io::Error) -> Self + use<> {
        let directory = directory.to_owned();
        move |source| Self::Files {
            directory: directory.clone(),
            action,
            source,
        }
    }
}
