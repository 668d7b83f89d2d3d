//! The content of the store, from the filler's side: a source to copy from that shrinks as it is used.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::lazy::LazyMemory;
use super::outstanding::{Outstanding, Stretch};
use crate::memory::PAGE_BYTES;
use crate::memory::store::{
    INDEX_NAME, MissingPage, PAGES_NAME, REGION_BYTES, Region, RegionKey, punch, read_index,
};

/// What a thread copies from.
pub struct Buffer(Box<[u8]>);

impl Buffer {
    /// Most that is copied at once.
    pub const BYTES: u64 = 256 << 10;

    pub fn new() -> Self {
        Self(vec![0; Self::BYTES as usize].into_boxed_slice())
    }
}

/// Pages to copy from.
#[derive(Debug)]
pub struct Content {
    file: File,
    regions: HashMap<RegionKey, Region>,
    /// How many processes still need a region.
    users: Mutex<HashMap<RegionKey, u32>>,
    /// Whether what is not needed may be given back: not before the restore is certain.
    give_back: AtomicBool,
    given_back_bytes: AtomicU64,
}

impl Content {
    /// Opens a sealed store.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join(PAGES_NAME);
        // Writing is what making holes needs.
        let file = File::options().read(true).write(true).open(path)?;
        let index = read_index(&directory.join(INDEX_NAME), &file)?;
        let regions: HashMap<_, _> = index.into_iter().map(|found| (found.key, found.region)).collect();
        Ok(Self {
            file,
            regions,
            users: Mutex::default(),
            give_back: AtomicBool::new(false),
            given_back_bytes: AtomicU64::new(0),
        })
    }

    /// What of a process must be copied. Pages of zeros need not: a page that nobody has filled is one.
    pub fn missing_of(&self, memory: &LazyMemory) -> Result<Outstanding, MissingPage> {
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut hot: Vec<Range<u64>> = Vec::new();
        for range in &memory.pages {
            let mut at = range.start;
            while at < range.end {
                let number = at / REGION_BYTES;
                let until = range.end.min((number + 1) * REGION_BYTES);
                let first = Region::page_of(at);
                let pages = first..first + Region::pages_in(&(at..until));
                let address = |page: usize| number * REGION_BYTES + page as u64 * PAGE_BYTES;
                let region = self.regions.get(&(memory.process, number));
                let missing = region.map_or(Some(first), |region| region.first_missing(pages.clone()));
                let (Some(region), None) = (region, missing) else {
                    return Err(MissingPage {
                        process: memory.process,
                        address: address(missing.unwrap_or(first)),
                    });
                };
                stretches.extend(region.data_runs(pages.clone()).map(|run| Stretch {
                    start: address(run.start),
                    end: address(run.end),
                    source: address(run.start),
                }));
                hot.extend(
                    region
                        .hot_runs(pages)
                        .map(|run| address(run.start)..address(run.end)),
                );
                at = until;
            }
        }
        Ok(Outstanding::new(stretches, hot))
    }

    /// Reads the content of a stretch of `process`, which is not larger than the buffer. Copying from a small buffer that stays
    /// in the processor's cache is faster than from a mapping of the file, whose pages would have to be entered into a
    /// page table and taken out again.
    pub fn read<'a>(&self, process: u32, stretch: &Stretch, buffer: &'a mut Buffer) -> io::Result<&'a [u8]> {
        let region = self.regions.get(&(process, stretch.source / REGION_BYTES));
        let length = usize::try_from(stretch.end - stretch.start).unwrap_or(usize::MAX);
        let (Some(region), Some(into)) = (region, buffer.0.get_mut(..length)) else {
            return Err(io::Error::other("a piece is not in the store, or too large"));
        };
        let offset = region.offset(Region::page_of(stretch.source));
        self.file.read_exact_at(into, offset)?;
        Ok(into)
    }

    /// Somebody needs what is missing here.
    pub fn keep(&self, process: u32, missing: &Outstanding) {
        let mut users = self.users();
        for number in missing.regions() {
            *users.entry((process, number)).or_default() += 1;
        }
    }

    /// Somebody does not need these regions any more; what nobody needs is given back.
    pub fn release(&self, process: u32, numbers: &[u64]) {
        for number in numbers {
            let key = (process, *number);
            let mut users = self.users();
            let left = users.get(&key).copied().unwrap_or(1) - 1;
            if left > 0 {
                users.insert(key, left);
                continue;
            }
            users.remove(&key);
            drop(users);
            if self.give_back.load(Ordering::Acquire) {
                self.punch(key);
            }
        }
    }

    /// The restore will not be tried again: from now on memory is given back as soon as nobody needs it.
    pub fn give_back(&self) {
        self.give_back.store(true, Ordering::Release);
        let needed: Vec<RegionKey> = self.users().keys().copied().collect();
        let needed: std::collections::HashSet<RegionKey> = needed.into_iter().collect();
        for key in self.regions.keys().filter(|key| !needed.contains(key)) {
            self.punch(*key);
        }
    }

    /// Bytes of the store's file that are free again.
    pub fn given_back_bytes(&self) -> u64 {
        self.given_back_bytes.load(Ordering::Relaxed)
    }

    fn punch(&self, key: RegionKey) {
        let Some(region) = self.regions.get(&key) else {
            return;
        };
        // Memory that is not given back now is when the filler ends.
        if punch(&self.file, region.offset(0), REGION_BYTES).is_ok() {
            let bytes = u64::from(region.data_pages()) * PAGE_BYTES;
            self.given_back_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn users(&self) -> MutexGuard<'_, HashMap<RegionKey, u32>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffer, Content};
    use crate::memory::fill::lazy::LazyMemory;
    use crate::memory::{PAGE_BYTES, PageRun, PageStore};

    #[test]
    fn zeros_are_not_missing_and_the_latest_pages_are_hot() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = directory.path().join("store");
        let store = PageStore::create(&path, 1 << 30).unwrap();
        let put = |round, page: u64, pages: u32, byte: u8| {
            let run = PageRun {
                start: page * PAGE_BYTES,
                pages,
                zero: byte == 0,
            };
            let data = vec![byte; if byte == 0 { 0 } else { pages as usize * 4096 }];
            store.put(round, 7, &[run], &data).unwrap();
        };
        put(0, 0, 100, 1);
        put(0, 20, 5, 0);
        put(1, 50, 2, 2);
        store.seal().unwrap();
        let content = Content::open(&path).unwrap();
        let memory = |end: u64| LazyMemory {
            process: 7,
            pages: std::iter::once(0..end * PAGE_BYTES).collect(),
            not_inherited: Vec::new(),
        };
        let mut missing = content.missing_of(&memory(100)).unwrap();
        assert_eq!(missing.bytes(), 95 * PAGE_BYTES);
        let hot = missing.claim(Buffer::BYTES, true).unwrap();
        assert_eq!(
            (hot.stretch.start, hot.stretch.end),
            (50 * PAGE_BYTES, 52 * PAGE_BYTES)
        );
        assert_eq!(
            content.read(7, &hot.stretch, &mut Buffer::new()).unwrap(),
            [2; 2 * 4096]
        );
        assert_eq!(missing.claim(Buffer::BYTES, true), None);
        assert_eq!(missing.around(22 * PAGE_BYTES, PAGE_BYTES), None);
        let lost = content.missing_of(&memory(101)).unwrap_err();
        assert_eq!(lost.address, 100 * PAGE_BYTES);
    }
}
