//! Which pages of a process are still missing, and where their content is. No system call.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use crate::memory::PAGE_BYTES;
use crate::memory::store::REGION_BYTES;

/// Pages that lie together in the process and in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// First byte, where the process has it now.
    pub start: u64,
    /// Byte behind the last.
    pub end: u64,
    /// Where its first byte was when it was dumped: that is where the store has it.
    pub source: u64,
}

impl Stretch {
    fn part(&self, start: u64, end: u64) -> Self {
        Self {
            start,
            end,
            source: self.source + (start - self.start),
        }
    }
}

/// A piece that somebody is about to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What to fill.
    pub stretch: Stretch,
    generation: u64,
}

/// The missing pages of one process.
///
/// A piece that is being filled is still missing until it [`Outstanding::filled`], so that a fault in it is never
/// taken for one outside of everything, which would be answered with zeros.
#[derive(Clone, Debug, Default)]
pub struct Outstanding {
    /// By address, not overlapping, none across a region of the store.
    stretches: BTreeMap<u64, Stretch>,
    /// What to fill first, the next one last.
    hot: Vec<Range<u64>>,
    /// Missing bytes by region of the store.
    regions: HashMap<u64, u64>,
    /// Where the next piece is taken.
    cursor: u64,
    /// Pieces that are being filled.
    claimed: usize,
    /// Counts events that move or drop pages: a claim from before one is void.
    generation: u64,
}

impl Outstanding {
    /// These stretches are missing; `hot` are addresses to fill first. A stretch is cut where a region of the store ends.
    pub fn new(stretches: impl IntoIterator<Item = Stretch>, mut hot: Vec<Range<u64>>) -> Self {
        hot.reverse();
        let mut outstanding = Self {
            hot,
            ..Self::default()
        };
        for stretch in stretches {
            let mut start = stretch.start;
            while start < stretch.end {
                let part = stretch.part(start, stretch.end);
                let in_region = REGION_BYTES - part.source % REGION_BYTES;
                let end = stretch.end.min(start + in_region);
                outstanding.insert(stretch.part(start, end));
                start = end;
            }
        }
        outstanding
    }

    /// Nothing is missing any more.
    pub fn is_empty(&self) -> bool {
        self.stretches.is_empty()
    }

    /// Bytes that are missing.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.regions.values().sum()
    }

    /// The regions of the store that are still needed.
    pub fn regions(&self) -> impl Iterator<Item = u64> + '_ {
        self.regions.keys().copied()
    }

    /// A copy for a child that was forked now.
    pub fn forked(&self) -> Self {
        Self {
            hot: Vec::new(),
            cursor: 0,
            claimed: 0,
            generation: 0,
            ..self.clone()
        }
    }

    /// What is missing around a page: up to `bytes` from it on.
    pub fn around(&self, address: u64, bytes: u64) -> Option<Stretch> {
        let page = address - address % PAGE_BYTES;
        let stretch = self.containing(page)?;
        Some(stretch.part(page, stretch.end.min(page + bytes)))
    }

    /// The first address in `addresses` that is missing.
    pub fn first_in(&self, addresses: Range<u64>) -> Option<u64> {
        self.overlapping(&addresses).next().map(|stretch| stretch.start)
    }

    /// Takes the next piece to fill: hot ones first, then, unless `only_hot`, the others in order. Nothing if all that is left
    /// is claimed.
    pub fn claim(&mut self, bytes: u64, only_hot: bool) -> Option<Claim> {
        let stretch = match self.next_hot(bytes) {
            Some(stretch) => stretch,
            None if only_hot => return None,
            None => self.next_cold(bytes)?,
        };
        self.claimed += 1;
        Some(Claim {
            stretch,
            generation: self.generation,
        })
    }

    fn next_hot(&mut self, bytes: u64) -> Option<Stretch> {
        while let Some(range) = self.hot.pop() {
            let Some(found) = self.overlapping(&range).next() else {
                continue;
            };
            let part = found.part(found.start, found.end.min(found.start + bytes));
            if part.end < range.end {
                self.hot.push(part.end..range.end);
            }
            return Some(part);
        }
        None
    }

    fn next_cold(&mut self, bytes: u64) -> Option<Stretch> {
        let everything = self.cursor..u64::MAX;
        let mut found = self.overlapping(&everything).next();
        // Pieces that could not be filled are left behind the cursor; what is claimed now is not taken twice.
        if found.is_none() && self.claimed == 0 {
            found = self.overlapping(&(0..u64::MAX)).next();
        }
        let found = found?;
        let part = found.part(found.start, found.end.min(found.start + bytes));
        self.cursor = part.end;
        Some(part)
    }

    /// Whether a claim may still be filled where it says.
    pub fn is_valid(&self, claim: &Claim) -> bool {
        claim.generation == self.generation
    }

    /// Ends a claim, filled or not.
    pub fn unclaim(&mut self, claim: &Claim, again_first: bool) {
        self.claimed = self.claimed.saturating_sub(1);
        if again_first && self.is_valid(claim) {
            self.hot.push(claim.stretch.start..claim.stretch.end);
        }
    }

    /// Pages that are there now, or whose content was given up. Returns the regions of the store that are not needed any more.
    pub fn filled(&mut self, addresses: Range<u64>) -> Vec<u64> {
        let mut done = Vec::new();
        for stretch in self.take(addresses) {
            self.subtract(&stretch, &mut done);
        }
        done
    }

    /// As [`Self::filled`], for an event.
    pub fn drop_range(&mut self, addresses: Range<u64>) -> Vec<u64> {
        self.generation += 1;
        self.filled(addresses)
    }

    /// Pages that lie elsewhere now. What was missing at the new place is gone.
    pub fn moved(&mut self, from: u64, to: u64, length: u64) -> Vec<u64> {
        self.generation += 1;
        let moved = self.take(from..from.saturating_add(length));
        let gone = self.take(to..to.saturating_add(length));
        let mut done = Vec::new();
        for stretch in gone {
            self.subtract(&stretch, &mut done);
        }
        for stretch in moved {
            let start = stretch.start - from + to;
            let end = stretch.end - from + to;
            let source = stretch.source;
            self.stretches.insert(start, Stretch { start, end, source });
        }
        self.cursor = self.cursor.min(to);
        done
    }

    fn insert(&mut self, stretch: Stretch) {
        *self.regions.entry(stretch.source / REGION_BYTES).or_default() += stretch.end - stretch.start;
        self.stretches.insert(stretch.start, stretch);
    }

    fn subtract(&mut self, stretch: &Stretch, done: &mut Vec<u64>) {
        let region = stretch.source / REGION_BYTES;
        if let Some(bytes) = self.regions.get_mut(&region) {
            *bytes = bytes.saturating_sub(stretch.end - stretch.start);
            if *bytes == 0 {
                self.regions.remove(&region);
                done.push(region);
            }
        }
    }

    fn containing(&self, address: u64) -> Option<&Stretch> {
        let (_, stretch) = self.stretches.range(..=address).next_back()?;
        (address < stretch.end).then_some(stretch)
    }

    /// The parts of stretches that lie in `addresses`.
    fn overlapping(&self, addresses: &Range<u64>) -> impl Iterator<Item = Stretch> {
        let first = self
            .containing(addresses.start)
            .map_or(addresses.start, |stretch| stretch.start);
        let (start, end) = (addresses.start, addresses.end);
        self.stretches
            .range(first..end.max(first))
            .map(move |(_, stretch)| stretch.part(stretch.start.max(start), stretch.end.min(end)))
    }

    /// Takes what lies in `addresses` out of the table, and leaves the sums alone.
    fn take(&mut self, addresses: Range<u64>) -> Vec<Stretch> {
        let taken: Vec<Stretch> = self.overlapping(&addresses).collect();
        for part in &taken {
            let Some(whole) = self.containing(part.start).copied() else {
                continue;
            };
            self.stretches.remove(&whole.start);
            for rest in [
                whole.part(whole.start, part.start),
                whole.part(part.end, whole.end),
            ] {
                if rest.start < rest.end {
                    self.stretches.insert(rest.start, rest);
                }
            }
        }
        taken
    }
}

#[cfg(test)]
#[path = "outstanding_tests.rs"]
mod tests;
