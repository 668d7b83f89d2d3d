//! What of each process is to be filled, by CRIU's images.

use std::io;
use std::ops::Range;
use std::path::Path;

use crate::memory::images::{Area, ImageError, PagemapEntry, areas, process_pagemaps, read_pagemap};

/// The memory of one process as far as it is lazy.
#[derive(Debug)]
pub struct LazyMemory {
    /// The process.
    pub process: u32,
    /// Pages to fill in, ascending, none across two areas: a copy never may be.
    pub pages: Vec<Range<u64>>,
    /// Areas whose content a forked child does not get.
    pub not_inherited: Vec<Range<u64>>,
}

/// Why the images cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LazyError {
    /// One of them is damaged.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A page outside of all memory.
    #[error("the page at {address:#x} of process {process} lies in no area")]
    NoArea {
        /// The process.
        process: u32,
        /// The page.
        address: u64,
    },
}

impl From<LazyError> for io::Error {
    fn from(error: LazyError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What is lazy of every process in the images.
pub fn lazy_memory(images: &Path) -> Result<Vec<LazyMemory>, LazyError> {
    let mut all = Vec::new();
    for (process, pagemap) in process_pagemaps(images)? {
        let areas = areas(&images.join(format!("mm-{process}.img")))?;
        let entries = read_pagemap(&pagemap)?.entries;
        all.push(of_process(process, &entries, &areas)?);
    }
    Ok(all)
}

fn of_process(process: u32, entries: &[PagemapEntry], areas: &[Area]) -> Result<LazyMemory, LazyError> {
    let mut pages = Vec::new();
    let mut within = areas.iter().filter(|area| !area.is_guard()).peekable();
    for entry in entries.iter().filter(|entry| entry.flags.is_lazy()) {
        let mut start = entry.start;
        while start < entry.end() {
            while within.next_if(|area| area.end <= start).is_some() {}
            let area = within.peek().filter(|area| area.start <= start);
            let area = area.ok_or(LazyError::NoArea {
                process,
                address: start,
            })?;
            let end = entry.end().min(area.end);
            pages.push(start..end);
            start = end;
        }
    }
    let not_inherited = areas.iter().filter(|area| !area.is_inherited());
    Ok(LazyMemory {
        process,
        pages,
        not_inherited: not_inherited.map(|area| area.start..area.end).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::{LazyError, LazyMemory, of_process};
    use crate::memory::images::{Area, PageFlags, PagemapEntry};

    /// `MADV_WIPEONFORK`, as a bit.
    const WIPED: u64 = 1 << 18;

    fn area(start: u64, end: u64, advice: u64) -> Area {
        Area {
            start,
            end,
            protection: 3,
            flags: 0x22,
            status: 0x201,
            advice,
        }
    }

    fn lazy(entries: &[(u64, u64, PageFlags)], areas: &[Area]) -> Result<LazyMemory, LazyError> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(start, pages, flags)| PagemapEntry {
                start: *start,
                pages: *pages,
                flags: *flags,
            })
            .collect();
        of_process(7, &entries, areas)
    }

    #[test]
    fn lazy_pages_are_cut_where_areas_end_and_others_left_out() {
        let guard = Area {
            status: 1 << 16,
            ..area(0x4000, 0x5000, 0)
        };
        let areas = [area(0x1000, 0x3000, 0), area(0x3000, 0x9000, WIPED), guard];
        let entries = [
            (0x1000, 3, PageFlags::LAZY),
            (0x5000, 1, PageFlags::PRESENT),
            (0x6000, 1, PageFlags::LAZY),
        ];
        let found = lazy(&entries, &areas).unwrap();
        assert_eq!(found.pages, [0x1000..0x3000, 0x3000..0x4000, 0x6000..0x7000]);
        assert_eq!(found.not_inherited, vec![0x3000..0x9000]);
    }

    #[test]
    fn a_lazy_page_in_no_area_is_an_error() {
        let areas = [area(0x2000, 0x4000, 0)];
        for (start, pages) in [(0x1000, 1), (0x2000, 3), (0x9000, 1)] {
            let found = lazy(&[(start, pages, PageFlags::LAZY)], &areas);
            assert!(matches!(found, Err(LazyError::NoArea { .. })), "{start:#x}");
        }
    }
}
