//! Both ends of a container's memory on this host: what the source reads, and what the destination keeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tranship_checkpoint::memory::images::{read_pagemap, write_pagemaps, write_present};
use tranship_checkpoint::memory::{
    Injector, PageBatch, PageSink, PageStore, RoundReport, SinkClosed, TrackError, Tracker,
};
use tranship_migrate::error::HostError;
use tranship_migrate::host::{MemoryReader, ReadError, RoundFacts};
use tranship_migrate::transport::PageKeeper;
use tranship_proto::pages::Pages;

use super::usage::memory_available_bytes;

/// Room that a container gets beyond what it has when it is reserved: it may grow while it is moved.
const GROWTH_BYTES: u64 = 256 << 20;

/// What the pages of a container that has `memory_bytes` now may take on a machine that can give `available_bytes`. A
/// process that forks in the middle of the move, as a database does that saves itself, makes twice as much of it; but that
/// may take no more than half of what there is.
fn room(memory_bytes: u64, available_bytes: u64) -> u64 {
    let grown = memory_bytes
        .saturating_add(memory_bytes / 4)
        .saturating_add(GROWTH_BYTES);
    let forked = memory_bytes.saturating_mul(2).saturating_add(GROWTH_BYTES);
    forked.min(available_bytes / 2).max(grown)
}

/// Where the pages are, in the migration's staging.
const STORE_NAME: &str = "memory";

/// The memory of a container of this host, in rounds.
pub struct LocalMemory {
    tracker: Tracker,
    images: PathBuf,
}

impl LocalMemory {
    /// Begins to follow the container in `cgroup`, by the program `tranship-injector`; the list of its pages goes into `images` at last.
    ///
    /// # Errors
    /// The kernel cannot, or the container is gone.
    pub fn follow(cgroup: &str, injector: &Path, images: PathBuf) -> Result<Self, HostError> {
        let tracker = Tracker::attach(cgroup, Injector::new(injector));
        let tracker = tracker.map_err(|error| HostError::new("follow the container's memory", error))?;
        Ok(Self { tracker, images })
    }
}

impl MemoryReader for LocalMemory {
    fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        counted(sink, |sink| self.tracker.round(sink))
    }

    fn listing_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        counted(sink, |sink| self.tracker.listing_round(sink))
    }

    fn frozen_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        counted(sink, |sink| self.tracker.frozen_round(sink))
    }

    fn last_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        let mut lists = Vec::new();
        let facts = counted(sink, |sink| {
            let (resident, report) = self.tracker.finish(sink)?;
            lists = resident;
            Ok(report)
        })?;
        let written = write_pagemaps(&self.images, &lists);
        written.map_err(|error| HostError::new("list the container's pages", error))?;
        Ok(facts)
    }

    fn pending_bytes(&mut self) -> Result<u64, HostError> {
        let pending = self.tracker.pending_bytes();
        pending.map_err(|error| HostError::new("look at the container's memory", error))
    }
}

/// A round, and the bytes that went through its sink.
fn counted(
    sink: &mut dyn PageSink,
    round: impl FnOnce(&mut dyn PageSink) -> Result<RoundReport, TrackError>,
) -> Result<RoundFacts, ReadError> {
    let mut counting = Counting { sink, bytes: 0 };
    match round(&mut counting) {
        Ok(report) => Ok(RoundFacts {
            pages: report.pages,
            zero_pages: report.zero_pages,
            bytes: counting.bytes,
            scan: report.scan,
            read: report.read,
        }),
        Err(TrackError::Closed(_)) => Err(ReadError::Closed),
        Err(error) => Err(HostError::new("read the container's memory", error).into()),
    }
}

struct Counting<'a> {
    sink: &'a mut dyn PageSink,
    bytes: u64,
}

impl PageSink for Counting<'_> {
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed> {
        self.bytes += batch.data.len() as u64;
        self.sink.take(batch)
    }
}

/// The pages of a container that is on its way here.
pub struct Arrived {
    store: Arc<PageStore>,
}

impl Arrived {
    /// An empty store in a migration's staging, for a container that has `memory_bytes` now.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(staging: &Path, memory_bytes: u64) -> Result<Self, HostError> {
        let limit = room(memory_bytes, memory_available_bytes().unwrap_or_default());
        let store = PageStore::create(&store_dir(staging), limit);
        let store = store.map_err(|error| HostError::new("make room for the container's memory", error))?;
        Ok(Self {
            store: Arc::new(store),
        })
    }

    /// Removes the store from a migration's staging, with all that has arrived.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn forget(staging: &Path) -> Result<(), HostError> {
        let store = store_dir(staging);
        let removed = crate::blocking::run(move || match std::fs::remove_dir_all(store) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        removed
            .await
            .map_err(|error| HostError::new("remove memory that is of no use", error))
    }

    /// Where arriving pages go.
    #[must_use]
    pub fn keeper(&self) -> Arc<dyn PageKeeper> {
        Arc::new(Keeper(Arc::clone(&self.store)))
    }

    /// Makes ready what the filler reads, and gives CRIU the pages that it reads itself. Nothing can be put afterwards.
    ///
    /// # Errors
    /// One of those pages is missing, or the images are not what they should be.
    pub async fn complete(&self, images: PathBuf) -> Result<(), HostError> {
        let store = Arc::clone(&self.store);
        let completed = crate::blocking::run(move || complete(&store, &images));
        completed
            .await
            .map_err(|error| HostError::new("complete the container's memory", error))
    }

    /// Checks that every page that the images name is here.
    ///
    /// # Errors
    /// One is missing, or the images are not what they should be.
    pub async fn verify(&self, images: PathBuf) -> Result<(), HostError> {
        let store = Arc::clone(&self.store);
        let verified = crate::blocking::run(move || verify(&store, &images));
        verified
            .await
            .map_err(|error| HostError::new("check the container's memory", error))
    }
}

/// The directory of the store in a migration's staging. It exists when memory arrives by itself, and outlives this daemon.
#[must_use]
pub fn store_dir(staging: &Path) -> PathBuf {
    staging.join(STORE_NAME)
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn complete(store: &PageStore, images: &Path) -> Result<(), AnyError> {
    store.seal()?;
    write_present(images, store.limit_bytes(), |process, address, into| {
        store.page(process, address, into).map_err(std::io::Error::other)
    })?;
    Ok(())
}

fn verify(store: &PageStore, images: &Path) -> Result<(), AnyError> {
    for (process, path) in pagemaps(images)? {
        let lazy = read_pagemap(&path)?
            .entries
            .into_iter()
            .filter(|entry| !entry.flags.is_present());
        store.verify(process, lazy.map(|entry| (entry.start, entry.pages)))?;
    }
    Ok(())
}

/// The pagemaps of processes, which are called after them; those of shared memory are not among them.
fn pagemaps(images: &Path) -> std::io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(images)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("pagemap-")?.strip_suffix(".img")?.parse().ok());
        if let Some(number) = number {
            found.push((number, entry.path()));
        }
    }
    Ok(found)
}

struct Keeper(Arc<PageStore>);

impl PageKeeper for Keeper {
    fn put(&self, round: u32, pages: &Pages<'_>) -> Result<(), HostError> {
        let kept = self.0.put(round, pages.process, &pages.runs, pages.data);
        kept.map_err(|error| HostError::new("keep the container's memory", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_process_may_fork_where_there_is_memory_and_grow_where_there_is_not() {
        assert_eq!(room(4 * GIB, 100 * GIB), 8 * GIB + GROWTH_BYTES);
        assert_eq!(room(4 * GIB, 14 * GIB), 7 * GIB);
        assert_eq!(room(4 * GIB, 0), 5 * GIB + GROWTH_BYTES);
        assert_eq!(room(u64::MAX, u64::MAX), u64::MAX);
    }
}
