//! A set of pages of one address space.
//!
//! A bit for each page, in blocks that exist only where there are pages: memory that is reserved and never touched
//! costs nothing, a GiB of pages costs 32 KiB however they are scattered.

use std::collections::BTreeMap;
use std::ops::Range;

use super::PAGE_BYTES;

const WORDS: usize = 64;
const PAGES: u64 = 64 * WORDS as u64;
const BLOCK_BYTES: u64 = PAGES * PAGE_BYTES;

type Block = [u64; WORDS];

/// A set of pages, by their addresses. Ranges are of whole pages and half open.
#[derive(Clone, Debug, Default)]
pub struct PageSet {
    blocks: BTreeMap<u64, Box<Block>>,
}

impl PageSet {
    /// Adds every page of the range, which should be one where pages are: it costs a block for each 16 MiB.
    pub fn insert(&mut self, range: Range<u64>) {
        for (block, pages) in parts(range) {
            let words = self.blocks.entry(block).or_insert_with(|| Box::new([0; WORDS]));
            for (word, mask) in masks(pages) {
                words[word] |= mask;
            }
        }
    }

    /// Takes every page of the range out. However long it is, it costs only what is in it.
    pub fn remove(&mut self, range: Range<u64>) {
        let mut empty = Vec::new();
        for (block, words) in self.blocks.range_mut(blocks(&range)) {
            for (word, mask) in masks(pages_in(*block, &range)) {
                words[word] &= !mask;
            }
            if words.iter().all(|word| *word == 0) {
                empty.push(*block);
            }
        }
        for block in empty {
            self.blocks.remove(&block);
        }
    }

    /// Whether a page of the range is in the set.
    pub fn intersects(&self, range: Range<u64>) -> bool {
        self.blocks
            .range(blocks(&range))
            .any(|(block, words)| masks(pages_in(*block, &range)).any(|(word, mask)| words[word] & mask != 0))
    }

    /// Gives the longest ranges of pages in `range` that are not in the set to `each`, in ascending order, until it
    /// fails.
    pub fn gaps<E>(
        &self,
        range: Range<u64>,
        mut each: impl FnMut(Range<u64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut gap = range.start..range.start;
        for (block, pages) in parts(range) {
            let base = block * BLOCK_BYTES;
            let words = self.blocks.get(&block).map_or(&NOTHING, |words| &**words);
            for run in runs(words, pages, false) {
                let run = base + run.start * PAGE_BYTES..base + run.end * PAGE_BYTES;
                if run.start == gap.end {
                    gap.end = run.end;
                } else {
                    give(&mut each, gap)?;
                    gap = run;
                }
            }
        }
        give(&mut each, gap)
    }

    /// Takes every page of the other set out.
    pub fn remove_all(&mut self, other: &Self) {
        for (block, theirs) in &other.blocks {
            if let Some(ours) = self.blocks.get_mut(block) {
                for (word, mask) in ours.iter_mut().zip(theirs.iter()) {
                    *word &= !mask;
                }
            }
        }
    }

    /// The ranges of pages in the set, in ascending order; none is longer than a block.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.ranges_in(0..u64::MAX - u64::MAX % PAGE_BYTES)
    }

    /// Those of them that lie in `range`, cut at its ends.
    pub fn ranges_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let touched = self.blocks.range(blocks(&range));
        touched.flat_map(move |(block, words)| {
            let base = block * BLOCK_BYTES;
            runs(&**words, pages_in(*block, &range), true)
                .map(move |run| base + run.start * PAGE_BYTES..base + run.end * PAGE_BYTES)
        })
    }

    /// How many pages are in the set.
    pub fn len(&self) -> u64 {
        let words = self.blocks.values().flat_map(|words| words.iter());
        words.map(|word| u64::from(word.count_ones())).sum()
    }
}

fn give<E>(each: &mut impl FnMut(Range<u64>) -> Result<(), E>, gap: Range<u64>) -> Result<(), E> {
    if gap.is_empty() { Ok(()) } else { each(gap) }
}

/// The blocks that a range touches.
fn blocks(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / BLOCK_BYTES..(range.end - 1) / BLOCK_BYTES + 1
}

/// The pages of a block that are in a range, counted from its beginning.
fn pages_in(block: u64, range: &Range<u64>) -> Range<u64> {
    let base = block * BLOCK_BYTES;
    let end = (range.end - base).min(BLOCK_BYTES);
    range.start.saturating_sub(base) / PAGE_BYTES..end / PAGE_BYTES
}

fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, Range<u64>)> {
    blocks(&range).map(move |block| (block, pages_in(block, &range)))
}

/// The words of a block that hold the pages, with the bits of these.
fn masks(pages: Range<u64>) -> impl Iterator<Item = (usize, u64)> {
    let words = if pages.is_empty() {
        0..0
    } else {
        pages.start / 64..(pages.end - 1) / 64 + 1
    };
    words.map(move |word| {
        let from = pages.start.saturating_sub(word * 64);
        let to = (pages.end - word * 64).min(64);
        let upper = if to == 64 { u64::MAX } else { (1 << to) - 1 };
        (usize::try_from(word).unwrap_or(0), upper & (u64::MAX << from))
    })
}

static NOTHING: Block = [0; WORDS];

/// Runs of pages, of those of which `words` have a bit each, that are members, or are not.
pub(super) fn runs(words: &[u64], pages: Range<u64>, member: bool) -> impl Iterator<Item = Range<u64>> {
    let mut at = pages.start;
    std::iter::from_fn(move || {
        let start = next(words, at, pages.end, member);
        at = next(words, start, pages.end, !member);
        Some(start..at).filter(|run| !run.is_empty())
    })
}

/// The first page from `at` that is a member, or is not; `end` if there is none.
fn next(words: &[u64], at: u64, end: u64, member: bool) -> u64 {
    let mut at = at;
    while at < end {
        let Some(word) = words.get(usize::try_from(at / 64).unwrap_or(usize::MAX)) else {
            break;
        };
        let wanted = if member { *word } else { !*word } >> (at % 64);
        if wanted != 0 {
            return (at + u64::from(wanted.trailing_zeros())).min(end);
        }
        at = (at / 64 + 1) * 64;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::{PAGE_BYTES, PAGES, PageSet};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::ops::Range;

    fn bytes(pages: &Range<u64>) -> Range<u64> {
        pages.start * PAGE_BYTES..pages.end * PAGE_BYTES
    }

    fn gaps(set: &PageSet, pages: &Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        let Ok(()) = set.gaps(bytes(pages), |gap| {
            found.push(gap.start / PAGE_BYTES..gap.end / PAGE_BYTES);
            Ok::<(), Infallible>(())
        });
        found
    }

    #[test]
    fn a_hundred_gibibytes_that_hold_nothing_cost_nothing() {
        let mut set = PageSet::default();
        set.insert(4096..8192);
        set.remove(0..100 << 30);
        assert_eq!(set.len(), 0);
        assert!(set.blocks.is_empty());
        assert!(!set.intersects(0..100 << 30));
        assert_eq!(gaps(&set, &(0..100 << 18)), std::slice::from_ref(&(0..100 << 18)));
    }

    #[test]
    fn the_top_of_the_address_space_is_as_good_as_any() {
        let last = (1 << 47) - PAGE_BYTES..1 << 47;
        let mut set = PageSet::default();
        set.insert(last.clone());
        assert_eq!(set.len(), 1);
        set.remove(last);
        assert_eq!(set.len(), 0);
    }

    /// Ranges around the ends of words and blocks, empty ones included.
    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..3 * PAGES, prop_oneof![0..5_u64, 60..70_u64, 0..2 * PAGES])
            .prop_map(|(start, len)| start..start + len)
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_set_does(changes in prop::collection::vec((any::<bool>(), range()), 0..30), asked in range()) {
            let mut set = PageSet::default();
            let mut model = BTreeSet::new();
            for (add, pages) in changes {
                if add {
                    set.insert(bytes(&pages));
                    model.extend(pages);
                } else {
                    set.remove(bytes(&pages));
                    model.retain(|page| !pages.contains(page));
                }
                prop_assert_eq!(set.len(), model.len() as u64);
            }
            prop_assert_eq!(set.intersects(bytes(&asked)), asked.clone().any(|page| model.contains(&page)));
            let found = gaps(&set, &asked);
            prop_assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "{found:?}");
            let missing: Vec<u64> = asked.clone().filter(|page| !model.contains(page)).collect();
            prop_assert_eq!(found.into_iter().flatten().collect::<Vec<_>>(), missing);
            let ranges: Vec<u64> = set.ranges().flat_map(|range| range.step_by(4096)).map(|address| address / PAGE_BYTES).collect();
            prop_assert_eq!(ranges, model.iter().copied().collect::<Vec<_>>());
            let inside: Vec<u64> = set.ranges_in(bytes(&asked)).flat_map(|range| range.step_by(4096)).map(|address| address / PAGE_BYTES).collect();
            prop_assert_eq!(inside, model.into_iter().filter(|page| asked.contains(page)).collect::<Vec<_>>());
        }

        #[test]
        fn one_set_is_taken_out_of_another(one in prop::collection::vec(range(), 0..8), other in prop::collection::vec(range(), 0..8)) {
            let set = |ranges: &[Range<u64>]| {
                let mut set = PageSet::default();
                ranges.iter().for_each(|range| set.insert(bytes(range)));
                set
            };
            let model = |ranges: Vec<Range<u64>>| ranges.into_iter().flatten().collect::<BTreeSet<u64>>();
            let mut rest = set(&one);
            rest.remove_all(&set(&other));
            let expected: Vec<u64> = model(one).difference(&model(other)).copied().collect();
            let left = rest.ranges().flat_map(|range| range.step_by(4096)).map(|address| address / PAGE_BYTES);
            prop_assert_eq!(left.collect::<Vec<_>>(), expected);
        }
    }
}
