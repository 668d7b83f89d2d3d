//! Which pages are filled before the container runs: those it wrote last, because it will want them first.

use std::collections::BTreeMap;

/// Most that is hot. More would be under way when the container runs, in the way of its faults.
const HOT_BYTES: u64 = 64 << 20;

/// How much came in which round, pages that were replaced later included.
#[derive(Debug, Default)]
pub(super) struct Rounds(BTreeMap<u32, u64>);

impl Rounds {
    pub(super) fn count(&mut self, round: u32, bytes: u64) {
        *self.0.entry(round).or_default() += bytes;
    }

    /// The earliest round whose pages are hot. The first round of all is not: it holds everything.
    pub(super) fn hot_since(&self) -> Option<u32> {
        let mut sum = 0;
        let young = self.0.iter().skip(1).rev().take_while(|(_, bytes)| {
            sum += **bytes;
            sum <= HOT_BYTES
        });
        young.last().map(|(round, _)| *round)
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
        let fits = [(0, 1), (7, 4096), (8, HOT_BYTES - 4096), (9, 4096)];
        assert_eq!(since(&fits), Some(8));
        assert_eq!(since(&[(0, 1), (8, 1), (9, HOT_BYTES + 1)]), None);
    }
}
