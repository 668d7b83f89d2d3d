//! Why an archive does not become an image.

use std::io;
use std::path::PathBuf;

use tranship_storage_drivers::driver::DriverError;

use super::changes::ChangeError;

/// Why an archive does not become an image. No image has been made then; layers that were complete stay for the next try.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The stream broke off, or its compression is damaged.
    #[error("the archive cannot be read to its end")]
    Read {
        /// What is wrong with it.
        source: io::Error,
    },
    /// Not a tar archive, or a damaged one.
    #[error("the archive is no tar archive, or is damaged")]
    Damaged {
        /// What is wrong with it.
        source: io::Error,
    },
    /// The end of an archive is missing.
    #[error("the archive ends without its end mark: it was cut off, or more was to come")]
    Cut,
    /// A compression that is not supported.
    #[error("the archive is compressed with {0}: use gzip, zstd or none")]
    Compression(&'static str),
    /// The archive could not be written down.
    #[error("cannot spool the archive in {}", directory.display())]
    Spool {
        /// Where it was tried.
        directory: PathBuf,
        /// Why not.
        source: ExtractError,
    },
    /// The archive is not laid out as any image is.
    #[error("this is no image archive: {0}")]
    Layout(String),
    /// A document of the image is not what it should be.
    #[error("{name} of the image archive cannot be understood")]
    Document {
        /// Its name in the archive.
        name: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Something the archive mentions is not in it.
    #[error("the image archive mentions {0} and does not have it")]
    Missing(String),
    /// Something is more than an image ever has.
    #[error("the image archive has more than {limit} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// Content that is not what its name says: damaged, or not what somebody meant to send.
    #[error("{what} is {found}, but the image archive calls it {expected}")]
    Digest {
        /// Which part.
        what: String,
        /// What it is called.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An archive of several images, of which none can be told to be the one.
    #[error("the archive holds {} images ({}): import one at a time", found.len(), found.join(", "))]
    Several {
        /// Their names or platforms.
        found: Vec<String>,
    },
    /// `--change` for an image that has its own configuration.
    #[error("an image archive brings its configuration: changes are for root file systems only")]
    Changes,
    /// A change that cannot be made.
    #[error("a change cannot be made")]
    Change(#[from] ChangeError),
    /// A name in the archive that is none.
    #[error("the archive names its image {name:?}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        source: super::reference::ReferenceError,
    },
    /// A layer that cannot be made a directory.
    #[error("layer {number} ({digest}) cannot be extracted")]
    Layer {
        /// Counted from 1, the lowest.
        number: usize,
        /// What it is called.
        digest: String,
        /// Why not.
        source: ExtractError,
    },
    /// The storage driver refused.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// Why an archive does not become a directory.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// Not a tar archive, damaged, or cut off.
    #[error("the tar archive is damaged or cut off")]
    Damaged {
        /// What is wrong with it.
        source: io::Error,
    },
    /// The stream ended in the middle of a file.
    #[error("the tar archive ends within {path:?}")]
    Cut {
        /// The file.
        path: String,
    },
    /// The stream ended after an entry, without the mark of an archive's end.
    #[error("the tar archive ends without its end mark: it was cut off, or more was to come")]
    NoEnd,
    /// A path that leads out of the directory, or nowhere.
    #[error("the tar archive has the path {path:?}, which {why}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A kind of entry that no file system has.
    #[error("{path:?} in the tar archive is of a kind ({kind:?}) that is not supported")]
    Kind {
        /// The path.
        path: String,
        /// The letter in the archive.
        kind: char,
    },
    /// Something about an entry is not what it should be.
    #[error("{path:?} in the tar archive has {what}")]
    Entry {
        /// The path.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Something is more than a layer ever has.
    #[error("the tar archive has more than {limit} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// The file system is nearly full.
    #[error("{free} bytes are free and {reserved} must stay so: make room and try again")]
    NoRoom {
        /// What is free.
        free: u64,
        /// What is kept for the daemon.
        reserved: u64,
    },
    /// The file system does not say how full it is.
    #[error("cannot ask how much room there is")]
    Room {
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("cannot {action} {path:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what, within the layer.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl ExtractError {
    /// Wraps an answer of the kernel.
    pub(super) fn file<E: Into<io::Error>>(action: &'static str, path: &[u8]) -> impl FnOnce(E) -> Self {
        let path = String::from_utf8_lossy(path).into_owned();
        move |error| Self::File {
            action,
            path,
            source: error.into(),
        }
    }
}
