//! Trees over a bulk stream: [`send`] reads a tree and writes frames, [`receive`] reads frames and writes a tree. Memory
//! has streams of its own: [`pages`].
//!
//! On each side a blocking thread does the disk's work and the hashing, an async task the network's, and a short
//! channel between them keeps memory bounded: [`CHUNKS_IN_FLIGHT`] chunks of at most [`CHUNK_BYTES`] plus one frame.

mod pages;
mod receive;
mod send;

use std::io;

use tranship_proto::frame::{FrameError, FrameKind};
use tranship_proto::pages::PagesError;
use tranship_storage_drivers::tree::TreeError;

use crate::error::HostError;
use crate::trees::UnknownTree;

pub use pages::{Pace, PageKeeper, PageSenders, PagesReport, RoundSink, receive_pages};
pub use receive::{TreeSink, receive_trees};
pub use send::{send_end, send_hello, send_tree};

/// Frames are handed to the network in pieces of at least this size: fewer TLS records and system calls.
pub const CHUNK_BYTES: usize = 256 << 10;

/// Chunks between disk and network. Four keep both busy; more only hold memory.
pub const CHUNKS_IN_FLIGHT: usize = 4;

/// Why a tree did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The network, or TLS beneath it.
    #[error("the data stream failed")]
    Io(#[source] io::Error),
    /// It could not be had in the first place.
    #[error(transparent)]
    Unopened(HostError),
    /// The peer stopped in the middle.
    #[error("the data stream ended in the middle of {0}")]
    Cut(&'static str),
    /// Nothing moved for too long.
    #[error("the data stream stood still for {0} s")]
    Stalled(u64),
    /// Sixteen bytes that are no header.
    #[error("a malformed frame")]
    Frame(#[from] FrameError),
    /// A frame of pages with something that no sender sends.
    #[error("a malformed frame of pages")]
    Pages(#[from] PagesError),
    /// A frame whose payload is not the message it should be.
    #[error("a malformed message in a frame of kind {0:?}")]
    Message(FrameKind, #[source] prost::DecodeError),
    /// A frame at a place where it does not belong.
    #[error("a frame of kind {got:?} where {wanted} was due")]
    Order {
        /// What was due.
        wanted: &'static str,
        /// What came.
        got: FrameKind,
    },
    /// A tree that belongs to no migration.
    #[error(transparent)]
    UnknownTree(#[from] UnknownTree),
    /// Reading or writing files.
    #[error("tree {tree}")]
    Tree {
        /// Which tree.
        tree: String,
        /// The path and the reason.
        #[source]
        source: TreeError,
    },
    /// The host refused a place for a tree.
    #[error("tree {tree}")]
    Place {
        /// Which tree.
        tree: String,
        /// The reason.
        #[source]
        source: HostError,
    },
    /// Sender and receiver have counted or hashed different things.
    #[error("tree {tree} did not arrive as it was sent: its {what} differ")]
    Mismatch {
        /// Which tree.
        tree: String,
        /// `entries`, `bytes` or `digests`.
        what: &'static str,
    },
    /// More streams of memory than a migration may have.
    #[error("{0} streams of memory are more than a migration may have")]
    TooManyStreams(u32),
    /// A stream that was not announced, or comes twice.
    #[error("stream {0} of memory was not due")]
    Stream(u32),
    /// More trees than a stream may have.
    #[error("too many trees on one stream")]
    TooManyTrees,
    /// A worker thread ended without a result.
    #[error("a worker thread ended early")]
    Worker,
}

impl From<io::Error> for TransportError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut("a frame"),
            _ => Self::Io(error),
        }
    }
}
