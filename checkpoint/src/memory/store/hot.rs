//! Which pages are filled before the container runs: those it wrote last, because it will want them first.

use std::collections::BTreeMap;

use super::region::Growing;
use crate::memory::PAGE_BYTES;

/// Most that is hot. More would be under way when the container runs, in the way of its faults; this takes 15 ms.
const HOT_BYTES: u64 = 64 << 20;

/// How much came in which round.
#[derive(Default)]
pub(super) struct Rounds(BTreeMap<u32, u64>);

impl Rounds {
    pub(super) fn count(&mut self, region: &Growing) {
        region.count_rounds(|round, pages| {
            *self.0.entry(round).or_default() += u64::from(pages) * PAGE_BYTES;
        });
    }

    /// The earliest round whose pages are hot. The first round of all is not: it holds everything.
    pub(super) fn hot_since(mut self) -> Option<u32> {
        self.0.retain(|_, bytes| *bytes > 0);
        self.0.pop_first();
        let mut sum = 0;
        let young = self.0.into_iter().rev().take_while(|(_, bytes)| {
            sum += bytes;
            sum <= HOT_BYTES
        });
        young.last().map(|(round, _)| round)
    }
}

#[cfg(test)]
mod tests {
    use super::{HOT_BYTES, Rounds};

    #[test]
    fn the_latest_rounds_are_hot_as_long_as_they_are_small() {
        let since = |rounds: &[(u32, u64)]| Rounds(rounds.iter().copied().collect()).hot_since();
        assert_eq!(since(&[]), None);
        assert_eq!(since(&[(5, 4096)]), None);
        assert_eq!(since(&[(4, 0), (5, 4096)]), None);
        let fits = [(0, 1), (7, 4096), (8, HOT_BYTES - 4096), (9, 4096)];
        assert_eq!(since(&fits), Some(8));
        assert_eq!(since(&[(0, 1), (8, 1), (9, HOT_BYTES + 1)]), None);
    }
}
