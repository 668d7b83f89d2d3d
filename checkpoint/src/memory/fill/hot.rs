//! Which pages are filled before the container runs: those it wrote last, because it will want them first.

use std::collections::BTreeMap;

use crate::memory::PAGE_BYTES;
use crate::memory::store::{REGION_PAGES, Region};

/// Most that is hot. More would be under way when the container runs, in the way of its faults; this takes 15 ms.
const HOT_BYTES: u64 = 64 << 20;

/// The earliest round whose pages are hot. The first round of all is not: it holds everything.
pub fn youngest<'a>(regions: impl Iterator<Item = &'a Region>) -> Option<u32> {
    let mut rounds: BTreeMap<u32, u64> = BTreeMap::new();
    for region in regions {
        for page in 0..REGION_PAGES {
            if region.has(page) && !region.is_zero(page) {
                *rounds.entry(region.round(page)).or_default() += PAGE_BYTES;
            }
        }
    }
    let seed = rounds.first_key_value().map(|(round, _)| *round);
    choose(rounds.into_iter().rev().filter(|(round, _)| Some(*round) != seed))
}

/// The last of these rounds, given with their bytes from the latest back, that still fits.
fn choose(rounds: impl Iterator<Item = (u32, u64)>) -> Option<u32> {
    let mut sum = 0;
    rounds
        .take_while(|(_, bytes)| {
            sum += bytes;
            sum <= HOT_BYTES
        })
        .last()
        .map(|(round, _)| round)
}

#[cfg(test)]
mod tests {
    use super::{HOT_BYTES, choose, youngest};
    use crate::memory::store::Region;

    #[test]
    fn the_latest_rounds_are_hot_as_long_as_they_are_small() {
        let chosen = |rounds: &[(u32, u64)]| choose(rounds.iter().copied());
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[(9, 4096), (8, HOT_BYTES - 4096), (7, 4096)]), Some(8));
        assert_eq!(chosen(&[(9, HOT_BYTES + 1), (8, 1)]), None);
    }

    #[test]
    fn what_came_in_one_round_is_not_hot() {
        assert_eq!(youngest([Region::new(0)].iter()), None);
    }
}
