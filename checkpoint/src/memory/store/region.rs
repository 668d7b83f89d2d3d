//! Two megabytes of a process's addresses: which of their pages are here, and since when.

use std::ops::Range;

use crate::memory::PAGE_BYTES;

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
    /// For each page that is here, the round in which it was put.
    pub(super) rounds: Box<[u32; REGION_PAGES]>,
}

impl Region {
    /// Memory that a region takes besides its content, in the index and in the tables around it.
    pub(crate) const COST_BYTES: u64 = REGION_PAGES as u64 * 4 + 2 * WORDS as u64 * 8 + 128;

    pub(crate) fn new(ordinal: u32) -> Self {
        Self {
            ordinal,
            present: [0; WORDS],
            zero: [0; WORDS],
            rounds: Box::new([0; REGION_PAGES]),
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

    /// The round in which a page that is here was put.
    pub(crate) fn round(&self, page: usize) -> u32 {
        self.rounds[page]
    }

    /// The parts of `pages` that were not put in a round later than `round`.
    pub(super) fn replaceable(&self, pages: Range<usize>, round: u32) -> Vec<Range<usize>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for page in pages {
            if self.has(page) && self.rounds[page] > round {
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
        let words = self.present.iter().zip(&self.zero);
        words.map(|(present, zero)| (present & !zero).count_ones()).sum()
    }

    /// The first of `pages` that is not here.
    pub(super) fn first_missing(&self, pages: Range<usize>) -> Option<usize> {
        let mut at = pages.start;
        while at < pages.end {
            let absent = !self.present[at / 64] >> (at % 64);
            if absent == 0 {
                at = (at / 64 + 1) * 64;
                continue;
            }
            let page = at + absent.trailing_zeros() as usize;
            return (page < pages.end).then_some(page);
        }
        None
    }
}

fn contains(set: &PageSet, page: usize) -> bool {
    set[page / 64] & (1 << (page % 64)) != 0
}
