//! Memory that moves while its owner runs: found and read at the source, kept and filled in at the destination.

mod pages;

pub use pages::{PageBatch, PageSink, SinkClosed};
pub use tranship_proto::pages::{PAGE_BYTES, PageRun};
