//! Where pages wait at the destination until the container's memory is filled with them.
//!
//! ```text
//! put (several threads) ... -> seal -> [another daemon: reopen] -> the filler reads `pages` and `index`
//! ```
//! A store is a directory on a tmpfs with two files. `pages` holds content: 2 MiB of a process's addresses, a region, have
//! 2 MiB of the file, so that what is together in memory is together in the file, whatever the order of arrival, and
//! an untouched part of it is a hole that takes no room. `index` says which pages there are; it is in memory until the store
//! is sealed. That both are files lets a daemon that starts again restore from them.
//!
//! What arrives comes from a peer. Addresses and lengths are checked, and room is accounted for, index included, before
//! it is taken.

mod error;
mod hot;
mod index_file;
mod region;

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use super::{PAGE_BYTES, PageRun};
pub use error::StoreError;
pub(crate) use index_file::{IndexedRegion, read_index};
use region::Growing;
pub(crate) use region::{REGION_BYTES, Region};

/// The file with the content of the pages.
pub(crate) const PAGES_NAME: &str = "pages";

/// The file that says which pages there are.
pub(crate) const INDEX_NAME: &str = "index";

/// The end of what a process can address on any x86-64 (five levels of page tables).
const ADDRESS_END: u64 = 1 << 56;

/// A region is found under one of so many locks. Writers of different parts of a process rarely meet.
const SHARDS: usize = 64;

/// A part of one process: which, and the number of the region in it.
pub(crate) type RegionKey = (u32, u64);

type Shard = HashMap<RegionKey, Growing>;

/// Pages of a container on its way here.
#[derive(Debug)]
pub struct PageStore {
    directory: PathBuf,
    pages: File,
    shards: Vec<Mutex<Shard>>,
    limit_bytes: u64,
    used_bytes: AtomicU64,
    regions: AtomicU32,
    rounds: Mutex<hot::Rounds>,
    sealed: AtomicBool,
}

/// A page that is missing where it must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the page at {address:#x} of process {process} never arrived")]
pub struct MissingPage {
    /// The process, as CRIU names it.
    pub process: u32,
    /// The page's address.
    pub address: u64,
}

impl PageStore {
    /// An empty store in `directory`, which is made if need be, for at most `limit_bytes` of pages and index.
    ///
    /// # Errors
    /// The directory is not writable, or holds a store already.
    pub fn create(directory: &Path, limit_bytes: u64) -> Result<Self, StoreError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let pages = made.and_then(|()| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(directory.join(PAGES_NAME))
        });
        let pages = pages.map_err(StoreError::files(directory, "made"))?;
        Ok(Self::with(directory, pages, limit_bytes))
    }

    /// A sealed store, as [`Self::seal`] has left it in `directory`.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn reopen(directory: &Path) -> Result<Self, StoreError> {
        let pages = File::open(directory.join(PAGES_NAME)).map_err(StoreError::files(directory, "opened"))?;
        let index = read_index(&directory.join(INDEX_NAME), &pages)
            .map_err(StoreError::files(directory, "read again"))?;
        let store = Self::with(directory, pages, 0);
        for IndexedRegion { key, region } in index {
            store.used_bytes.fetch_add(
                u64::from(region.data_pages()) * PAGE_BYTES + Growing::COST_BYTES,
                Ordering::Relaxed,
            );
            store.regions.fetch_add(1, Ordering::Relaxed);
            store.shard(key).insert(key, Growing::new(region));
        }
        store.sealed.store(true, Ordering::Release);
        Ok(store)
    }

    fn with(directory: &Path, pages: File, limit_bytes: u64) -> Self {
        Self {
            directory: directory.to_owned(),
            pages,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            regions: AtomicU32::new(0),
            rounds: Mutex::default(),
            sealed: AtomicBool::new(false),
        }
    }

    /// Where the store is.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Keeps pages of a process; `data` is the content of all runs that are not zero, one after the other. A page that is
    /// here already is replaced, unless it was put in a later round: batches of different rounds may come in any order.
    ///
    /// # Errors
    /// The runs are not those of a process or do not fit `data`, the limit is reached, or the file system is full. Some of the
    /// pages may have been kept.
    pub fn put(&self, round: u32, process: u32, runs: &[PageRun], data: &[u8]) -> Result<(), StoreError> {
        if self.sealed.load(Ordering::Acquire) {
            return Err(StoreError::Sealed);
        }
        check(process, runs, data)?;
        self.rounds().count(round, data.len() as u64);
        let mut rest = data;
        for run in runs {
            let mut start = run.start;
            while start < run.end() {
                let end = run.end().min((start / REGION_BYTES + 1) * REGION_BYTES);
                let length = usize::try_from(end - start).unwrap_or_default();
                let content = match run.zero {
                    true => None,
                    false => rest.split_off(..length),
                };
                self.put_piece(round, (process, start / REGION_BYTES), start..end, content)?;
                start = end;
            }
        }
        Ok(())
    }

    /// Pages within one region.
    fn put_piece(
        &self,
        round: u32,
        key: RegionKey,
        addresses: std::ops::Range<u64>,
        content: Option<&[u8]>,
    ) -> Result<(), StoreError> {
        let mut shard = self.shard(key);
        if self.sealed.load(Ordering::Acquire) {
            return Err(StoreError::Sealed);
        }
        let growing = match shard.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(new) => {
                self.charge(Growing::COST_BYTES)?;
                let region = Region::new(self.regions.fetch_add(1, Ordering::Relaxed));
                new.insert(Growing::new(region))
            }
        };
        let first = Region::page_of(addresses.start);
        let last = first + Region::pages_in(&addresses);
        for span in growing.replaceable(first..last, round) {
            let region = &growing.region;
            let held = region.data_pages_in(span.clone());
            if let Some(content) = content {
                let fresh = span.len() - held;
                self.charge(fresh as u64 * PAGE_BYTES)?;
                let from = (span.start - first) * PAGE_BYTES as usize;
                let to = (span.end - first) * PAGE_BYTES as usize;
                self.write(
                    region.offset(span.start),
                    content.get(from..to).unwrap_or_default(),
                )?;
            } else if held > 0 {
                self.empty(region.offset(span.start), span.len())?;
                self.used_bytes
                    .fetch_sub(held as u64 * PAGE_BYTES, Ordering::Relaxed);
            }
            growing.set(span, round, content.is_none());
        }
        Ok(())
    }

    /// Accounts for memory that is about to be taken.
    fn charge(&self, bytes: u64) -> Result<(), StoreError> {
        let within = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.limit_bytes);
        let charged = self
            .used_bytes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        charged.map(drop).map_err(|_| StoreError::Full {
            limit_bytes: self.limit_bytes,
        })
    }

    fn write(&self, offset: u64, content: &[u8]) -> Result<(), StoreError> {
        let written = self.pages.write_all_at(content, offset);
        written.map_err(StoreError::files(&self.directory, "written"))
    }

    fn empty(&self, offset: u64, pages: usize) -> Result<(), StoreError> {
        let punched = punch(&self.pages, offset, pages as u64 * PAGE_BYTES);
        punched.map_err(StoreError::files(&self.directory, "given back in part"))
    }

    /// Whether every page from `start` on is here.
    #[must_use]
    pub fn contains(&self, process: u32, start: u64, pages: u64) -> bool {
        self.first_missing(process, start, pages).is_none()
    }

    /// The address of the first page from `start` on that is not here. Cheap enough for the blackout: some 20 ns for each
    /// 64 pages.
    #[must_use]
    pub fn first_missing(&self, process: u32, start: u64, pages: u64) -> Option<u64> {
        let end = match pages
            .checked_mul(PAGE_BYTES)
            .and_then(|bytes| start.checked_add(bytes))
        {
            Some(end) if start.is_multiple_of(PAGE_BYTES) && end <= ADDRESS_END => end,
            _ => return Some(start),
        };
        let mut at = start;
        while at < end {
            let until = end.min((at / REGION_BYTES + 1) * REGION_BYTES);
            let key = (process, at / REGION_BYTES);
            let first = Region::page_of(at);
            let last = first + Region::pages_in(&(at..until));
            let missing = match self.shard(key).get(&key) {
                Some(known) => known.region.first_missing(first..last),
                None => Some(first),
            };
            if let Some(page) = missing {
                return Some(key.1 * REGION_BYTES + page as u64 * PAGE_BYTES);
            }
            at = until;
        }
        None
    }

    /// Checks that every page of these runs, given as address and number of pages, is here.
    ///
    /// # Errors
    /// The first one that is not.
    pub fn verify(
        &self,
        process: u32,
        runs: impl IntoIterator<Item = (u64, u64)>,
    ) -> Result<(), MissingPage> {
        for (start, pages) in runs {
            if let Some(address) = self.first_missing(process, start, pages) {
                return Err(MissingPage { process, address });
            }
        }
        Ok(())
    }

    /// Reads a page; false if it is not here.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn page(
        &self,
        process: u32,
        address: u64,
        into: &mut [u8; PAGE_BYTES as usize],
    ) -> Result<bool, StoreError> {
        if !address.is_multiple_of(PAGE_BYTES) {
            return Ok(false);
        }
        let key = (process, address / REGION_BYTES);
        let page = Region::page_of(address);
        let shard = self.shard(key);
        let known = shard.get(&key).map(|known| &known.region);
        let Some(region) = known.filter(|region| region.has(page)) else {
            return Ok(false);
        };
        if region.is_zero(page) {
            into.fill(0);
        } else {
            let read = self.pages.read_exact_at(into, region.offset(page));
            read.map_err(StoreError::files(&self.directory, "read"))?;
        }
        Ok(true)
    }

    /// Memory that the store may take.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Memory that the store takes: pages and index.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Writes the index, so that the filler, or a daemon that starts again, finds the pages, and the filler those that it fills
    /// first: what was put in the last rounds, the first of all not included. Nothing can be put afterwards.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn seal(&self) -> Result<(), StoreError> {
        self.sealed.store(true, Ordering::Release);
        let hot_since = self.rounds().hot_since();
        let write = || {
            let mut index = index_file::Writer::create(&self.directory.join(INDEX_NAME))?;
            for shard in &self.shards {
                // A put that was under way when the store was sealed has ended when its lock can be taken.
                let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
                for (key, region) in shard.iter() {
                    index.add(*key, &region.with_hot(hot_since))?;
                }
            }
            index.finish()
        };
        write().map_err(StoreError::files(&self.directory, "sealed"))
    }

    fn rounds(&self) -> MutexGuard<'_, hot::Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, (process, number): RegionKey) -> MutexGuard<'_, Shard> {
        // Neighbours in a process, and the same place in its siblings, are under different locks.
        let spread = number.wrapping_add(u64::from(process).wrapping_mul(31));
        let shard = usize::try_from(spread % SHARDS as u64).unwrap_or_default();
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a hole: the memory behind it is free at once.
pub(crate) fn punch(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::io::retry_on_intr(|| fallocate(file, flags, offset, bytes)).map_err(io::Error::from)
}

/// Whether the runs can be those of a process, and `data` is theirs.
fn check(process: u32, runs: &[PageRun], data: &[u8]) -> Result<(), StoreError> {
    let mut content = 0_u64;
    for run in runs {
        let end = run.start.checked_add(u64::from(run.pages) * PAGE_BYTES);
        let possible = run.pages > 0 && run.start.is_multiple_of(PAGE_BYTES);
        if !possible || end.is_none_or(|end| end > ADDRESS_END) {
            return Err(StoreError::Run {
                process,
                start: run.start,
                pages: run.pages,
            });
        }
        if !run.zero {
            content += run.bytes();
        }
    }
    if content != data.len() as u64 {
        return Err(StoreError::Length {
            process,
            expected_bytes: content,
            bytes: data.len() as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
