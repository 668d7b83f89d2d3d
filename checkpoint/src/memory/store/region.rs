//! Two megabytes of a process's addresses: which of their pages are here, and since when.

use std::ops::Range;

use crate::memory::PAGE_BYTES;
use crate::memory::page_set::runs;

/// Pages of a region.
pub(crate) const REGION_PAGES: usize = 512;

/// Bytes of a region.
pub(crate) const REGION_BYTES: u64 = REGION_PAGES as u64 * PAGE_BYTES;

/// 64-bit words of a set of a region's pages.
pub(super) const WORDS: usize = REGION_PAGES / 64;

/// A set of pages of a region.
pub(super) type PageSet = [u64; WORDS];

/// The pages of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    /// Its place among all regions; its content has that place in the file.
    pub(super) ordinal: u32,
    /// Pages that are here.
    pub(super) present: PageSet,
    /// Pages that are here and hold only zeros, and have no content in the file.
    pub(super) zero: PageSet,
    /// Pages with content that the container will want first; none before the store is sealed.
    pub(super) hot: PageSet,
}

impl Region {
    pub(crate) fn new(ordinal: u32) -> Self {
        Self {
            ordinal,
            present: [0; WORDS],
            zero: [0; WORDS],
            hot: [0; WORDS],
        }
    }

    /// Which page of its region an address is in.
    pub(crate) fn page_of(address: u64) -> usize {
        usize::try_from(address % REGION_BYTES / PAGE_BYTES).unwrap_or_default()
    }

    /// How many pages there are between two addresses of one region.
    pub(crate) fn pages_in(addresses: &Range<u64>) -> usize {
        let bytes = addresses.end.saturating_sub(addresses.start).min(REGION_BYTES);
        usize::try_from(bytes / PAGE_BYTES).unwrap_or_default()
    }

    /// Where the content of a page is in the file.
    pub(crate) fn offset(&self, page: usize) -> u64 {
        u64::from(self.ordinal) * REGION_BYTES + page as u64 * PAGE_BYTES
    }

    pub(crate) fn has(&self, page: usize) -> bool {
        contains(&self.present, page)
    }

    pub(crate) fn is_zero(&self, page: usize) -> bool {
        contains(&self.zero, page)
    }

    /// Notes that pages are here now.
    pub(super) fn set(&mut self, pages: Range<usize>, zero: bool) {
        for page in pages {
            let bit = 1 << (page % 64);
            self.present[page / 64] |= bit;
            if zero {
                self.zero[page / 64] |= bit;
            } else {
                self.zero[page / 64] &= !bit;
            }
        }
    }

    /// How many of `pages` have content in the file.
    pub(super) fn data_pages_in(&self, pages: Range<usize>) -> usize {
        pages
            .filter(|page| self.has(*page) && !self.is_zero(*page))
            .count()
    }

    /// How many pages have content in the file.
    pub(crate) fn data_pages(&self) -> u32 {
        self.content().iter().map(|word| word.count_ones()).sum()
    }

    /// Runs of those of `pages` that have content in the file.
    pub(crate) fn data_runs(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        runs_of(self.content(), pages, true)
    }

    /// Runs of those of `pages` that are hot.
    pub(crate) fn hot_runs(&self, pages: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        runs_of(self.hot, pages, true)
    }

    /// The first of `pages` that is not here.
    pub(crate) fn first_missing(&self, pages: Range<usize>) -> Option<usize> {
        let first = runs_of(self.present, pages, false).next();
        first.map(|run| run.start)
    }

    /// Pages with content in the file.
    pub(super) fn content(&self) -> PageSet {
        std::array::from_fn(|word| self.present[word] & !self.zero[word])
    }
}

fn contains(set: &PageSet, page: usize) -> bool {
    set[page / 64] & (1 << (page % 64)) != 0
}

fn runs_of(set: PageSet, pages: Range<usize>, member: bool) -> impl Iterator<Item = Range<usize>> {
    let mut at = pages.start as u64;
    let page = |number| usize::try_from(number).unwrap_or(REGION_PAGES);
    std::iter::from_fn(move || {
        let run = runs(&set, at..pages.end as u64, member).next()?;
        at = run.end;
        Some(page(run.start)..page(run.end))
    })
}

/// A region that pages are still put into.
#[derive(Debug)]
pub(super) struct Growing {
    pub(super) region: Region,
    /// For each page that is here, the round in which it was put.
    rounds: Box<[u32; REGION_PAGES]>,
    /// No page was ever put in a later one.
    youngest: u32,
}

impl Growing {
    /// Memory that a region takes besides its content, in the tables and the index.
    pub(super) const COST_BYTES: u64 = REGION_PAGES as u64 * 4 + 6 * WORDS as u64 * 8 + 128;

    pub(super) fn new(region: Region) -> Self {
        Self {
            region,
            rounds: Box::new([0; REGION_PAGES]),
            youngest: 0,
        }
    }

    /// The parts of `pages` that were not put in a round later than `round`.
    pub(super) fn replaceable(&self, pages: Range<usize>, round: u32) -> Vec<Range<usize>> {
        if round >= self.youngest {
            return vec![pages];
        }
        let mut spans: Vec<Range<usize>> = Vec::new();
        for page in pages {
            if self.region.has(page) && self.rounds[page] > round {
                continue;
            }
            match spans.last_mut() {
                Some(span) if span.end == page => span.end += 1,
                _ => spans.push(page..page + 1),
            }
        }
        spans
    }

    /// Notes that pages are here now.
    pub(super) fn set(&mut self, pages: Range<usize>, round: u32, zero: bool) {
        self.rounds[pages.clone()].fill(round);
        self.youngest = self.youngest.max(round);
        self.region.set(pages, zero);
    }

    /// The region, with those pages hot that were put in `since` or later.
    pub(super) fn with_hot(&self, since: Option<u32>) -> Region {
        let mut region = self.region.clone();
        if let Some(since) = since.filter(|since| *since <= self.youngest) {
            let content = self.region.content();
            for (word, rounds) in self.rounds.chunks_exact(64).enumerate() {
                let young = rounds
                    .iter()
                    .rev()
                    .fold(0, |bits, round| bits << 1 | u64::from(*round >= since));
                region.hot[word] = young & content[word];
            }
        }
        region
    }
}
