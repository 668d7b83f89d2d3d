//! Memory that moves while its owner runs: found and read at the source, kept and filled in at the destination.

mod areas;
mod inject;
mod page_set;
pub mod images;
mod pages;
mod process;
mod read;
mod tracker;

pub use pages::{PageBatch, PageSink, ResidentPages, SinkClosed};
pub use tracker::{RoundReport, TrackError, Tracker, supported};
pub use tranship_proto::pages::{PAGE_BYTES, PageRun};
