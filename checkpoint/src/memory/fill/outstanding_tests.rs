use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Outstanding, Stretch};
use crate::memory::PAGE_BYTES;
use crate::memory::store::REGION_BYTES;

fn stretch(start: u64, pages: u64) -> Stretch {
    Stretch {
        start: start * PAGE_BYTES,
        end: (start + pages) * PAGE_BYTES,
        source: start * PAGE_BYTES,
    }
}

#[test]
fn a_stretch_is_cut_where_the_store_ends_a_region() {
    let mut outstanding = Outstanding::new([stretch(500, 600)], Vec::new());
    let mut pieces = Vec::new();
    while let Some(claim) = outstanding.claim(u64::MAX / 2, false) {
        pieces.push((claim.stretch.start / PAGE_BYTES, claim.stretch.end / PAGE_BYTES));
    }
    assert_eq!(pieces, [(500, 512), (512, 1024), (1024, 1100)]);
}

#[test]
fn hot_pages_come_first_and_nothing_is_claimed_twice() {
    let hot = vec![10 * PAGE_BYTES..12 * PAGE_BYTES, 30 * PAGE_BYTES..40 * PAGE_BYTES];
    let mut outstanding = Outstanding::new([stretch(0, 20)], hot);
    let first = outstanding.claim(1 << 20, true).unwrap();
    assert_eq!(first.stretch, stretch(10, 2));
    assert_eq!(outstanding.claim(1 << 20, true), None);
    outstanding.filled(first.stretch.start..first.stretch.end);
    outstanding.unclaim(&first, false);
    let rest = [
        outstanding.claim(1 << 20, false).unwrap(),
        outstanding.claim(1 << 20, false).unwrap(),
    ];
    assert_eq!(rest.map(|claim| claim.stretch), [stretch(0, 10), stretch(12, 8)]);
    assert_eq!(outstanding.claim(1 << 20, false), None);
    // One that failed is taken again when nothing else is under way.
    outstanding.filled(0..10 * PAGE_BYTES);
    outstanding.unclaim(&rest[0], false);
    assert_eq!(outstanding.claim(1 << 20, false), None);
    outstanding.unclaim(&rest[1], false);
    assert_eq!(outstanding.claim(1 << 20, false).unwrap().stretch, stretch(12, 8));
}

#[test]
fn a_page_that_is_being_filled_is_still_missing() {
    let mut outstanding = Outstanding::new([stretch(0, 4)], Vec::new());
    let claim = outstanding.claim(1 << 20, false).unwrap();
    assert_eq!(
        outstanding.around(PAGE_BYTES + 5, 2 * PAGE_BYTES),
        Some(stretch(1, 2))
    );
    outstanding.filled(claim.stretch.start..claim.stretch.end);
    assert_eq!(outstanding.around(PAGE_BYTES, PAGE_BYTES), None);
}

#[test]
fn a_claim_from_before_an_event_is_void() {
    let mut outstanding = Outstanding::new([stretch(0, 4)], Vec::new());
    let claim = outstanding.claim(1 << 20, false).unwrap();
    assert!(outstanding.is_valid(&claim));
    outstanding.drop_range(PAGE_BYTES..2 * PAGE_BYTES);
    assert!(!outstanding.is_valid(&claim));
}

#[test]
fn moved_pages_keep_their_source_and_a_region_is_done_once_all_of_it_is() {
    let mut outstanding = Outstanding::new([stretch(0, 4), stretch(512, 2)], Vec::new());
    assert_eq!(
        outstanding.moved(PAGE_BYTES, 1 << 30, 2 * PAGE_BYTES),
        Vec::<u64>::new()
    );
    let there = outstanding.around(1 << 30, PAGE_BYTES).unwrap();
    assert_eq!((there.start, there.source), (1 << 30, PAGE_BYTES));
    assert_eq!(outstanding.around(PAGE_BYTES, PAGE_BYTES), None);
    assert_eq!(outstanding.drop_range(0..REGION_BYTES), Vec::<u64>::new());
    assert_eq!(outstanding.drop_range(1 << 30..(1 << 30) + 2 * PAGE_BYTES), [0]);
    assert_eq!(outstanding.drop_range(0..u64::MAX), [1]);
    assert!(outstanding.is_empty() && outstanding.bytes() == 0);
}

/// An event, in pages.
#[derive(Clone, Debug)]
enum Step {
    Fill(u64),
    Drop(u64, u64),
    Move(u64, u64, u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1_u64..50).prop_map(Step::Fill),
        (0_u64..2000, 0_u64..300).prop_map(|(at, pages)| Step::Drop(at, pages)),
        (0_u64..2000, 0_u64..2000, 1_u64..300).prop_map(|(from, to, pages)| Step::Move(from, to, pages)),
    ];
    proptest::collection::vec(step, 0..30)
}

proptest! {
    #[test]
    fn what_is_missing_is_what_a_table_of_pages_says(
        stretches in proptest::collection::vec((1_u64..60, 1_u64..200), 1..10),
        steps in steps(),
    ) {
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut made = Vec::new();
        let mut at = 0;
        for (gap, pages) in stretches {
            made.push(stretch(at + gap, pages));
            model.extend((at + gap..at + gap + pages).map(|page| (page, page)));
            at += gap + pages;
        }
        let mut outstanding = Outstanding::new(made, Vec::new());
        for step in steps {
            match step {
                Step::Fill(pages) => {
                    let Some(claim) = outstanding.claim(pages * PAGE_BYTES, false) else { continue };
                    for page in claim.stretch.start / PAGE_BYTES..claim.stretch.end / PAGE_BYTES {
                        let source = (claim.stretch.source - claim.stretch.start) .wrapping_add(page * PAGE_BYTES);
                        prop_assert_eq!(model.remove(&page), Some(source / PAGE_BYTES));
                    }
                    outstanding.filled(claim.stretch.start..claim.stretch.end);
                    outstanding.unclaim(&claim, false);
                }
                Step::Drop(start, pages) => {
                    outstanding.drop_range(start * PAGE_BYTES..(start + pages) * PAGE_BYTES);
                    model.retain(|page, _| !(start..start + pages).contains(page));
                }
                Step::Move(from, to, pages) => {
                    outstanding.moved(from * PAGE_BYTES, to * PAGE_BYTES, pages * PAGE_BYTES);
                    let moved: Vec<(u64, u64)> = model.range(from..from + pages).map(|(page, source)| (*page, *source)).collect();
                    model.retain(|page, _| !(from..from + pages).contains(page) && !(to..to + pages).contains(page));
                    model.extend(moved.into_iter().map(|(page, source)| (page - from + to, source)));
                }
            }
            for page in 0..4400 {
                let found = outstanding.around(page * PAGE_BYTES, PAGE_BYTES).map(|stretch| stretch.source / PAGE_BYTES);
                prop_assert_eq!(found, model.get(&page).copied(), "page {}", page);
            }
            prop_assert_eq!(outstanding.bytes(), model.len() as u64 * PAGE_BYTES);
        }
    }
}
