use std::collections::HashMap;
use std::fs;

use proptest::prelude::*;

use super::{Growing, INDEX_NAME, PageStore, REGION_BYTES, StoreError};
use crate::memory::{PAGE_BYTES, PageRun};

const PAGE: usize = PAGE_BYTES as usize;

fn store(limit_bytes: u64) -> (tempfile::TempDir, PageStore) {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let store = PageStore::create(&directory.path().join("store"), limit_bytes).unwrap();
    (directory, store)
}

fn run(start: u64, pages: u32) -> PageRun {
    PageRun {
        start,
        pages,
        zero: false,
    }
}

fn zeros(start: u64, pages: u32) -> PageRun {
    PageRun {
        zero: true,
        ..run(start, pages)
    }
}

fn read(store: &PageStore, process: u32, address: u64) -> Option<u8> {
    let mut page = [1; PAGE];
    let here = store.page(process, address, &mut page).unwrap();
    assert!(page.iter().all(|byte| *byte == page[0]));
    here.then_some(page[0])
}

#[test]
fn a_page_put_again_replaces_the_old_one_and_an_earlier_round_does_not() {
    let (_directory, store) = store(1 << 30);
    store.put(3, 7, &[run(0x1000, 1)], &[3; PAGE]).unwrap();
    store
        .put(2, 7, &[run(0, 3)], &[[2; PAGE], [2; PAGE], [2; PAGE]].concat())
        .unwrap();
    assert_eq!(
        [0, 0x1000, 0x2000].map(|at| read(&store, 7, at)),
        [Some(2), Some(3), Some(2)]
    );
    store.put(3, 7, &[run(0x1000, 1)], &[4; PAGE]).unwrap();
    assert_eq!(read(&store, 7, 0x1000), Some(4));
    assert_eq!(read(&store, 8, 0x1000), None);
    assert_eq!(read(&store, 7, 0x3000), None);
}

#[test]
fn zero_pages_take_no_room_and_give_back_what_was_there() {
    let (directory, store) = store(1 << 30);
    let room = |store: &PageStore| {
        use std::os::unix::fs::MetadataExt;
        let blocks = fs::metadata(directory.path().join("store/pages"))
            .unwrap()
            .blocks();
        (store.bytes() - Growing::COST_BYTES, blocks * 512)
    };
    store.put(0, 1, &[zeros(0, 512)], &[]).unwrap();
    assert_eq!(room(&store), (0, 0));
    store.put(1, 1, &[run(0, 16)], &[9; 16 * PAGE]).unwrap();
    assert_eq!(room(&store), (16 * PAGE_BYTES, 16 * PAGE_BYTES));
    store.put(2, 1, &[zeros(0, 10)], &[]).unwrap();
    assert_eq!(room(&store), (6 * PAGE_BYTES, 6 * PAGE_BYTES));
    assert_eq!([0, 0xa000].map(|at| read(&store, 1, at)), [Some(0), Some(9)]);
}

#[test]
fn the_limit_holds_before_anything_is_taken() {
    let limit = Growing::COST_BYTES + 4 * PAGE_BYTES;
    let (_directory, store) = store(limit);
    store.put(0, 1, &[run(0, 4)], &[1; 4 * PAGE]).unwrap();
    let more = store.put(0, 1, &[run(0x4000, 1)], &[1; PAGE]);
    assert!(matches!(more, Err(StoreError::Full { .. })), "{more:?}");
    // The same pages again need no more room; another region does, even for zeros.
    store.put(1, 1, &[run(0, 4)], &[2; 4 * PAGE]).unwrap();
    let far = store.put(1, 1, &[zeros(1 << 40, u32::MAX)], &[]);
    assert!(matches!(far, Err(StoreError::Full { .. })), "{far:?}");
    assert!(store.bytes() <= limit);
}

#[test]
fn runs_that_no_process_can_have_are_errors() {
    let (_directory, store) = store(1 << 30);
    let impossible = [
        run(0x1001, 1),
        run(0x1000, 0),
        run(u64::MAX - 4095, 1),
        run(1 << 56, 1),
        run((1 << 56) - 4096, 2),
        run(0, u32::MAX),
    ];
    for bad in impossible {
        assert!(store.put(0, 1, &[bad], &[0; PAGE]).is_err(), "{bad:?}");
    }
    for length in [0, PAGE - 1, PAGE + 1, 2 * PAGE] {
        let wrong = store.put(0, 1, &[run(0, 1)], &vec![0; length]);
        assert!(
            matches!(wrong, Err(StoreError::Length { .. })),
            "{length}: {wrong:?}"
        );
    }
    assert_eq!(store.bytes(), 0);
    assert!(!store.contains(1, u64::MAX - 4095, 1) && !store.contains(1, 0, u64::MAX));
}

#[test]
fn the_first_missing_page_is_named() {
    let (_directory, store) = store(1 << 30);
    let start = REGION_BYTES - 3 * PAGE_BYTES;
    store.put(0, 1, &[run(start, 200)], &vec![1; 200 * PAGE]).unwrap();
    assert!(store.contains(1, start, 200));
    assert_eq!(store.first_missing(1, start, 201), Some(start + 200 * PAGE_BYTES));
    let missing = store
        .verify(1, [(start, 10), (start - PAGE_BYTES, 2)])
        .unwrap_err();
    assert_eq!((missing.process, missing.address), (1, start - PAGE_BYTES));
    store.verify(1, [(start, 200)]).unwrap();
    assert_eq!(store.first_missing(2, start, 1), Some(start));
}

#[test]
fn a_sealed_store_takes_nothing_and_is_the_same_when_opened_again() {
    let (directory, store) = store(1 << 30);
    let path = directory.path().join("store");
    assert!(PageStore::reopen(&path).is_err());
    store
        .put(4, 1, &[run(0x1000, 2), zeros(0x9000, 1)], &[5; 2 * PAGE])
        .unwrap();
    store.put(4, 2, &[run(0x1000, 1)], &[6; PAGE]).unwrap();
    store.seal().unwrap();
    let late = store.put(5, 1, &[run(0x1000, 1)], &[7; PAGE]);
    assert!(matches!(late, Err(StoreError::Sealed)), "{late:?}");
    for store in [&store, &PageStore::reopen(&path).unwrap()] {
        assert_eq!(
            [0x1000, 0x2000, 0x9000, 0x3000].map(|at| read(store, 1, at)),
            [Some(5), Some(5), Some(0), None]
        );
        assert_eq!(read(store, 2, 0x1000), Some(6));
        assert_eq!(store.bytes(), 2 * Growing::COST_BYTES + 3 * PAGE_BYTES);
    }
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn a_damaged_index_is_an_error() {
    let (directory, store) = store(1 << 30);
    store.put(0, 1, &[run(0, 4)], &[5; 4 * PAGE]).unwrap();
    store.put(0, 1, &[run(1 << 30, 4)], &[5; 4 * PAGE]).unwrap();
    store.seal().unwrap();
    let path = directory.path().join("store");
    let whole = fs::read(path.join(INDEX_NAME)).unwrap();
    let second = 16 + (whole.len() - 16) / 2;
    let damage: [Damage; 6] = [
        &|bytes| bytes.truncate(bytes.len() - 1),
        &|bytes| bytes[0] ^= 1,
        &|bytes| bytes[8] ^= 3,
        &|bytes| bytes[second + 4] = bytes[16 + 4],
        &|bytes| bytes[second + 15] = 0xff,
        &|bytes| bytes[second + 4 + 1] = 0x40,
    ];
    for (number, damage) in damage.iter().enumerate() {
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(path.join(INDEX_NAME), &bytes).unwrap();
        let opened = PageStore::reopen(&path);
        assert!(opened.is_err(), "{number}");
    }
}

#[test]
fn threads_that_put_the_same_pages_leave_the_latest_round_whole() {
    let (_directory, store) = store(1 << 30);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let store = &store;
            scope.spawn(move || {
                for step in 0..50 {
                    let round = step * 4 + thread;
                    let content = vec![u8::try_from(round).unwrap(); 600 * PAGE];
                    store.put(round, 1, &[run(0, 600)], &content).unwrap();
                }
            });
        }
    });
    for page in 0..600 {
        assert_eq!(read(&store, 1, page * PAGE_BYTES), Some(199));
    }
    assert_eq!(store.bytes(), 600 * PAGE_BYTES + 2 * Growing::COST_BYTES);
}

proptest! {
    #[test]
    fn a_store_holds_what_a_map_would(
        puts in proptest::collection::vec((0_u32..4, 1_u32..3, 0_u64..1100, 1_u32..40, any::<bool>(), any::<u8>()), 1..40)
    ) {
        let (_directory, store) = store(1 << 30);
        let mut model: HashMap<(u32, u64), (u32, u8)> = HashMap::new();
        for (round, process, first, pages, zero, byte) in puts {
            let run = PageRun { start: first * PAGE_BYTES, pages, zero };
            let content = if zero { Vec::new() } else { vec![byte; pages as usize * PAGE] };
            store.put(round, process, &[run], &content).unwrap();
            for page in first..first + u64::from(pages) {
                let entry = model.entry((process, page)).or_insert((round, 0));
                if entry.0 <= round {
                    *entry = (round, if zero { 0 } else { byte });
                }
            }
        }
        for process in 1..3 {
            for page in 0..1150 {
                let expected = model.get(&(process, page)).map(|entry| entry.1);
                prop_assert_eq!(read(&store, process, page * PAGE_BYTES), expected);
                prop_assert_eq!(store.contains(process, page * PAGE_BYTES, 1), expected.is_some());
            }
        }
    }
}
