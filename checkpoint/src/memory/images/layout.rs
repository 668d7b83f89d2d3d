//! From a list of resident pages to the entries of a pagemap. Arithmetic alone.

use super::{Area, ImageError, PageFlags, PagemapEntry};
use crate::memory::{PAGE_BYTES, ResidentPages};

/// The entries for the resident pages of a process: cut at the ends of areas, without the pages that CRIU never
/// keeps there. The pages of `stacks` (their addresses, ascending) are not lazy.
pub fn entries(
    pages: &ResidentPages,
    areas: &[Area],
    stacks: &[u64],
) -> Result<Vec<PagemapEntry>, ImageError> {
    let process = pages.process;
    let mut areas = areas.iter().filter(|area| !area.is_guard()).peekable();
    let mut entries = Entries::default();
    let mut end = 0;
    for run in &pages.runs {
        let mut at = run.start;
        let unordered = ImageError::Unordered { process, address: at };
        let run_end = u64::from(run.pages)
            .checked_mul(PAGE_BYTES)
            .and_then(|bytes| at.checked_add(bytes))
            .filter(|_| at >= end && at.is_multiple_of(PAGE_BYTES));
        end = run_end.ok_or(unordered)?;
        while at < end {
            while areas.next_if(|area| area.end <= at).is_some() {}
            let area = areas.peek().filter(|area| area.start <= at);
            let area = area.ok_or(ImageError::Outside { process, address: at })?;
            let piece_end = end.min(area.end);
            if area.has_own_pages() {
                entries.put(area, at, piece_end, stacks);
            }
            at = piece_end;
        }
    }
    Ok(entries.done)
}

/// Entries in the making.
#[derive(Default)]
struct Entries {
    done: Vec<PagemapEntry>,
    /// Start of the area that the last entry is in.
    area: Option<u64>,
}

impl Entries {
    fn put(&mut self, area: &Area, start: u64, end: u64, stacks: &[u64]) {
        if !area.may_be_lazy() {
            return self.extend(area, start, end, PageFlags::PRESENT);
        }
        let mut at = start;
        let first = stacks.partition_point(|page| *page < start);
        for page in stacks[first..].iter().take_while(|page| **page < end) {
            self.extend(area, at, *page, PageFlags::LAZY);
            self.extend(area, *page, page + PAGE_BYTES, PageFlags::PRESENT);
            at = page + PAGE_BYTES;
        }
        self.extend(area, at, end, PageFlags::LAZY);
    }

    fn extend(&mut self, area: &Area, start: u64, end: u64, flags: PageFlags) {
        if start == end {
            return;
        }
        let pages = (end - start) / PAGE_BYTES;
        let same_area = self.area.replace(area.start) == Some(area.start);
        match self.done.last_mut() {
            Some(last) if same_area && last.end() == start && last.flags == flags => last.pages += pages,
            _ => self.done.push(PagemapEntry { start, pages, flags }),
        }
    }
}

/// `listed` and, PRESENT, what of `own` is not in it; whether there is any. Both are in ascending order.
pub fn united(listed: Vec<PagemapEntry>, own: &[PagemapEntry]) -> (Vec<PagemapEntry>, bool) {
    let mut extra = Vec::new();
    let mut rest = listed.as_slice();
    for entry in own {
        let mut at = entry.start;
        while at < entry.end() {
            while rest.first().is_some_and(|first| first.end() <= at) {
                rest = &rest[1..];
            }
            let covered = rest.first().filter(|first| first.start < entry.end());
            let gap_end = covered.map_or(entry.end(), |first| first.start.max(at));
            if at < gap_end {
                extra.push(PagemapEntry {
                    start: at,
                    pages: (gap_end - at) / PAGE_BYTES,
                    flags: PageFlags::PRESENT,
                });
            }
            at = covered.map_or(gap_end, PagemapEntry::end);
        }
    }
    if extra.is_empty() {
        return (listed, false);
    }
    let mut all = listed;
    all.append(&mut extra);
    all.sort_unstable_by_key(|entry| entry.start);
    (all, true)
}

#[cfg(test)]
mod tests {
    use super::{entries, united};
    use crate::memory::images::{Area, ImageError, PageFlags, PagemapEntry};
    use crate::memory::{PAGE_BYTES, PageRun, ResidentPages};
    use proptest::prelude::*;

    const PRIVATE_ANONYMOUS: u32 = 0x22;
    const ANONYMOUS: u32 = 1 | 1 << 9;
    const FROM_FILE: u32 = 1 | 1 << 6;
    const SHARED: u32 = 1 | 1 << 8;
    const VVAR: u32 = 1 | 1 << 9 | 1 << 12;
    const GUARD: u32 = 1 << 16;

    fn area(first: u64, behind: u64, flags: u32, status: u32) -> Area {
        Area {
            start: first * PAGE_BYTES,
            end: behind * PAGE_BYTES,
            protection: 3,
            flags,
            status,
            advice: 0,
        }
    }

    fn run(first: u64, pages: u32) -> PageRun {
        PageRun {
            start: first * PAGE_BYTES,
            pages,
            zero: false,
        }
    }

    fn entry(first: u64, pages: u64, flags: PageFlags) -> PagemapEntry {
        PagemapEntry {
            start: first * PAGE_BYTES,
            pages,
            flags,
        }
    }

    fn laid_out(runs: Vec<PageRun>, areas: &[Area], stacks: &[u64]) -> Result<Vec<PagemapEntry>, ImageError> {
        entries(&ResidentPages { process: 7, runs }, areas, stacks)
    }

    #[test]
    fn runs_are_cut_at_areas_and_each_piece_is_as_lazy_as_its_area() {
        let areas = [
            area(1, 5, PRIVATE_ANONYMOUS, ANONYMOUS),
            area(5, 7, 0x2, FROM_FILE),
            area(7, 8, 0x1, SHARED),
            area(8, 9, PRIVATE_ANONYMOUS, VVAR),
            area(9, 12, PRIVATE_ANONYMOUS | 0x2000, ANONYMOUS),
            area(20, 30, PRIVATE_ANONYMOUS, ANONYMOUS),
            area(30, 40, PRIVATE_ANONYMOUS, ANONYMOUS),
            area(25, 27, 0, GUARD),
        ];
        let runs = vec![run(2, 9), run(21, 2), run(23, 1), run(29, 3)];
        let expected = vec![
            entry(2, 3, PageFlags::LAZY),
            entry(5, 2, PageFlags::PRESENT),
            entry(9, 2, PageFlags::PRESENT),
            entry(21, 3, PageFlags::LAZY),
            entry(29, 1, PageFlags::LAZY),
            entry(30, 2, PageFlags::LAZY),
        ];
        assert_eq!(laid_out(runs, &areas, &[]).unwrap(), expected);
    }

    #[test]
    fn the_page_of_a_stack_pointer_is_there_from_the_start() {
        let areas = [area(1, 9, PRIVATE_ANONYMOUS, ANONYMOUS)];
        let stacks = [0, 3, 4, 7, 20].map(|page| page * PAGE_BYTES);
        let expected = vec![
            entry(2, 1, PageFlags::LAZY),
            entry(3, 2, PageFlags::PRESENT),
            entry(5, 1, PageFlags::LAZY),
        ];
        assert_eq!(laid_out(vec![run(2, 4)], &areas, &stacks).unwrap(), expected);
    }

    #[test]
    fn a_page_that_criu_knows_no_area_for_is_an_error() {
        let areas = [area(1, 3, PRIVATE_ANONYMOUS, ANONYMOUS)];
        for runs in [vec![run(0, 1)], vec![run(2, 2)], vec![run(9, 1)]] {
            assert!(matches!(
                laid_out(runs, &areas, &[]),
                Err(ImageError::Outside { process: 7, .. })
            ));
        }
        for runs in [vec![run(2, 1), run(1, 1)], vec![run(1, 2), run(2, 1)]] {
            assert!(matches!(
                laid_out(runs, &areas, &[]),
                Err(ImageError::Unordered { process: 7, .. })
            ));
        }
    }

    fn pages(entries: &[PagemapEntry]) -> Vec<(u64, PageFlags)> {
        let all = entries
            .iter()
            .flat_map(|entry| (0..entry.pages).map(|page| (entry.start / PAGE_BYTES + page, entry.flags)));
        all.collect()
    }

    /// Entries with gaps between them.
    fn some_entries() -> impl Strategy<Value = Vec<PagemapEntry>> {
        prop::collection::vec((0_u64..4, 1_u64..4, any::<bool>()), 0..12).prop_map(|steps| {
            let mut at = 0;
            let mut entries = Vec::new();
            for (gap, pages, lazy) in steps {
                let flags = if lazy { PageFlags::LAZY } else { PageFlags::PRESENT };
                entries.push(entry(at + gap, pages, flags));
                at += gap + pages;
            }
            entries
        })
    }

    proptest! {
        #[test]
        fn a_union_has_every_page_once_and_prefers_the_list(listed in some_entries(), own in some_entries()) {
            let (united, any) = united(listed.clone(), &own);
            let known: std::collections::BTreeMap<_, _> = pages(&listed).into_iter().collect();
            let mut expected: std::collections::BTreeMap<_, _> =
                pages(&own).into_iter().map(|(page, _)| (page, PageFlags::PRESENT)).collect();
            prop_assert_eq!(any, expected.keys().any(|page| !known.contains_key(page)));
            expected.extend(known);
            prop_assert_eq!(pages(&united), expected.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn every_page_of_the_list_is_in_the_entries(listed in some_entries(), cuts in prop::collection::btree_set(1_u64..80, 0..8)) {
            let mut borders: Vec<u64> = cuts.into_iter().collect();
            borders.push(100);
            let mut first = 0;
            let areas: Vec<Area> = borders.iter().map(|border| {
                let made = area(first, *border, PRIVATE_ANONYMOUS, ANONYMOUS);
                first = *border;
                made
            }).collect();
            let runs = listed.iter().map(|entry| run(entry.start / PAGE_BYTES, entry.pages as u32)).collect();
            let entries = laid_out(runs, &areas, &[]).unwrap();
            let addresses = |entries: &[PagemapEntry]| pages(entries).into_iter().map(|(page, _)| page).collect::<Vec<_>>();
            prop_assert_eq!(addresses(&entries), addresses(&listed));
            for entry in &entries {
                prop_assert!(areas.iter().any(|area| area.start <= entry.start && entry.end() <= area.end));
            }
        }
    }
}
