//! Memory that moves while its owner runs: found and read at the source, kept and filled in at the destination.

mod areas;
mod direct;
pub mod fill;
pub mod images;
mod inject;
pub mod injector;
mod page_set;
mod pages;
mod process;
mod read;
mod scan;
mod store;
mod tracker;
mod untracked;

pub use injector::Injector;
pub use pages::{PageBatch, PageSink, ResidentPages, SinkClosed};
pub use store::{MissingPage, PageStore, StoreError};
pub use tracker::{RoundReport, TrackError, Tracker, supported};
pub use tranship_proto::pages::{PAGE_BYTES, PageRun};
pub use untracked::{Untracked, untracked};
