//! Images as they should be, as a peer could make them, and as chance does.

use std::fs::{self, File};
use std::io::{self, Cursor};
use std::path::Path;

use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use super::framing::{CORE, Kind, MM, PAGEMAP, PSTREE, Records, Writer};
use super::messages::{Core, Mm, Pagemap, PagemapHead, Process, RegistersX86, ThreadX86, Vma};
use super::{
    ImageError, PageFlags, PagemapEntry, PagemapImage, all_present, areas, pagemap, read_pagemap,
    write_pagemaps, write_present,
};
use crate::memory::{PAGE_BYTES, PageRun, ResidentPages};

const PAGE: usize = PAGE_BYTES as usize;
const PRIVATE_ANONYMOUS: u32 = 0x22;
const LOCKED: u32 = 0x2000;
const ANONYMOUS: u32 = 1 | 1 << 9;

fn entry(first: u64, pages: u64, flags: PageFlags) -> PagemapEntry {
    PagemapEntry {
        start: first * PAGE_BYTES,
        pages,
        flags,
    }
}

fn vma(first: u64, behind: u64, flags: u32, status: u32) -> Vma {
    Vma {
        start: first * PAGE_BYTES,
        end: behind * PAGE_BYTES,
        protection: 3,
        flags,
        status,
        advice: 0,
    }
}

fn write<M: Message>(path: &Path, kind: Kind, messages: &[M]) {
    let mut writer = Writer::new(File::create(path).unwrap(), kind).unwrap();
    messages.iter().for_each(|message| writer.put(message).unwrap());
    writer.finish().unwrap();
}

fn parsed(bytes: &[u8]) -> Result<PagemapImage, ImageError> {
    let records = Records::new(Cursor::new(bytes), bytes.len() as u64, PAGEMAP, Path::new("p"))?;
    pagemap::parse(records)
}

/// The bytes of a pagemap with these messages.
fn pagemap_of(messages: &[Pagemap]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, PAGEMAP).unwrap();
    writer.put(&PagemapHead { pages_id: 3 }).unwrap();
    messages.iter().for_each(|message| writer.put(message).unwrap());
    writer.finish().unwrap();
    bytes
}

fn message(address: u64, pages: u64) -> Pagemap {
    Pagemap {
        address,
        pages_until_4_1: 0,
        in_parent: None,
        flags: Some(4),
        pages: Some(pages),
    }
}

#[test]
fn what_older_versions_leave_out_has_its_meaning() {
    let old = Pagemap {
        pages_until_4_1: 5,
        flags: None,
        pages: None,
        ..message(0x1000, 0)
    };
    let in_parent = Pagemap {
        in_parent: Some(true),
        ..old.clone()
    };
    assert_eq!(
        parsed(&pagemap_of(&[old])).unwrap().entries,
        [entry(1, 5, PageFlags::PRESENT)]
    );
    let image = parsed(&pagemap_of(&[in_parent])).unwrap();
    assert!(image.entries[0].flags.is_in_parent() && !image.entries[0].flags.is_present());
}

#[test]
fn a_pagemap_that_no_process_could_have_is_refused() {
    let flags = |flags| Pagemap {
        flags: Some(flags),
        ..message(0x1000, 1)
    };
    let wrong = [
        vec![message(0x1001, 1)],
        vec![message(0x1000, 0)],
        vec![message(0x2000, 2), message(0x3000, 1)],
        vec![message(0x2000, 1), message(0x1000, 1)],
        vec![message(0x1000, u64::MAX)],
        vec![message(0x1000, u64::MAX / PAGE_BYTES)],
        vec![message(u64::MAX - 0xfff, 1)],
        vec![flags(0)],
        vec![flags(12)],
    ];
    for messages in wrong {
        let image = parsed(&pagemap_of(&messages));
        assert!(matches!(image, Err(ImageError::Malformed { .. })), "{messages:?}");
    }
}

#[test]
fn a_message_longer_than_the_rest_of_its_file_is_refused_before_it_is_read() {
    let mut bytes = pagemap_of(&[]);
    bytes.extend(u32::MAX.to_le_bytes());
    assert!(matches!(parsed(&bytes), Err(ImageError::Malformed { .. })));
    let records = Records::new(io::empty(), u64::MAX, MM, Path::new("p"));
    assert!(matches!(records.map(|_| ()), Err(ImageError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn a_written_pagemap_is_read_back(id: u32, steps in prop::collection::vec((0_u64..1 << 20, 1_u64..1 << 34, any::<bool>()), 0..40)) {
        let mut at = 1;
        let entries = steps.into_iter().map(|(gap, pages, lazy)| {
            let made = entry(at + gap, pages, if lazy { PageFlags::LAZY } else { PageFlags::PRESENT });
            at += gap + pages;
            made
        }).collect();
        let image = PagemapImage { pages_id: id, entries };
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("pagemap-1.img");
        image.write(File::create(&path).unwrap()).unwrap();
        prop_assert_eq!(read_pagemap(&path).unwrap(), image);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), whole_head: bool) {
        let mut image = if whole_head { pagemap_of(&[]) } else { Vec::new() };
        image.extend(bytes);
        let _ = parsed(&image);
    }

    #[test]
    fn a_damaged_pagemap_is_refused_or_still_in_order(at in 0_usize..200, value: u8, cut in 0_usize..200) {
        let messages: Vec<Pagemap> = (1..9).map(|page| message(page * 0x10_000, page)).collect();
        let mut bytes = pagemap_of(&messages);
        let place = at % bytes.len();
        bytes[place] = value;
        bytes.truncate(bytes.len() - cut.min(bytes.len() / 2));
        if let Ok(image) = parsed(&bytes) {
            let mut end = 0;
            for entry in image.entries {
                prop_assert!(entry.start >= end && entry.pages > 0 && entry.start.is_multiple_of(PAGE_BYTES));
                end = entry.start.checked_add(entry.pages.checked_mul(PAGE_BYTES).unwrap()).unwrap();
            }
        }
    }

    #[test]
    fn a_damaged_image_of_areas_is_refused_or_still_in_order(at in 0_usize..400, value: u8) {
        let directory = TempDir::new().unwrap();
        let path = directory.path().join("mm-1.img");
        let vmas = (1..9).map(|page| vma(page * 4, page * 4 + 3, PRIVATE_ANONYMOUS, ANONYMOUS)).collect();
        write(&path, MM, &[Mm { areas: vmas }]);
        let mut bytes = fs::read(&path).unwrap();
        let place = at % bytes.len();
        bytes[place] = value;
        fs::write(&path, bytes).unwrap();
        if let Ok(areas) = areas(&path) {
            for pair in areas.windows(2).filter(|pair| pair[0].is_guard() == pair[1].is_guard()) {
                prop_assert!(pair[0].end <= pair[1].start);
            }
            prop_assert!(areas.iter().all(|area| area.start < area.end));
        }
    }
}

#[test]
fn guards_lie_upon_areas_and_come_last() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("mm-1.img");
    let written = vec![
        vma(1, 9, PRIVATE_ANONYMOUS, ANONYMOUS),
        vma(2, 3, 0, 1 << 16),
        vma(12, 13, PRIVATE_ANONYMOUS, ANONYMOUS),
        vma(5, 6, 0, 1 << 16),
    ];
    write(&path, MM, &[Mm { areas: written }]);
    let guards: Vec<bool> = areas(&path).unwrap().iter().map(super::Area::is_guard).collect();
    assert_eq!(guards, [false, false, true, true]);
    for wrong in [
        vec![
            vma(1, 9, PRIVATE_ANONYMOUS, ANONYMOUS),
            vma(8, 10, PRIVATE_ANONYMOUS, ANONYMOUS),
        ],
        vec![vma(3, 3, PRIVATE_ANONYMOUS, ANONYMOUS)],
    ] {
        write(&path, MM, &[Mm { areas: wrong }]);
        assert!(matches!(areas(&path), Err(ImageError::Malformed { .. })));
    }
}

/// A dump of state alone, of process 7 with an area for lazy pages (1 to 99) and a locked one (100 to 109), with its
/// stack pointer in page 50. CRIU has written page 105 itself.
fn dump() -> TempDir {
    let directory = TempDir::new().unwrap();
    let at = |name: &str| directory.path().join(name);
    let process = Process {
        pid: 7,
        threads: vec![7],
    };
    let registers = RegistersX86 {
        stack_pointer: 50 * PAGE_BYTES + 123,
    };
    let thread = ThreadX86 {
        registers: Some(registers),
    };
    let core = Core {
        x86: Some(thread),
        arm: None,
    };
    let areas = vec![
        vma(1, 100, PRIVATE_ANONYMOUS, ANONYMOUS),
        vma(100, 110, PRIVATE_ANONYMOUS | LOCKED, ANONYMOUS),
    ];
    write(&at("pstree.img"), PSTREE, &[process]);
    write(&at("core-7.img"), CORE, &[core]);
    write(&at("mm-7.img"), MM, &[Mm { areas }]);
    fs::write(at("pagemap-7.img"), pagemap_of(&[message(105 * PAGE_BYTES, 1)])).unwrap();
    fs::write(at("pages-3.img"), vec![105; PAGE]).unwrap();
    // Shared memory, whose pages CRIU keeps.
    let mut shared = Writer::new(File::create(at("pagemap-shmem-12.img")).unwrap(), PAGEMAP).unwrap();
    shared.put(&PagemapHead { pages_id: 8 }).unwrap();
    shared.finish().unwrap();
    directory
}

fn resident(pages: &[(u64, u32)]) -> [ResidentPages; 1] {
    let run = |(first, pages): &(u64, u32)| PageRun {
        start: first * PAGE_BYTES,
        pages: *pages,
        zero: false,
    };
    [ResidentPages {
        process: 7,
        runs: pages.iter().map(run).collect(),
    }]
}

/// Gives each page its own number, and zeros to page 101.
fn number_of_page(_: u32, address: u64, into: &mut [u8; PAGE]) -> io::Result<bool> {
    let page = u8::try_from(address / PAGE_BYTES).unwrap();
    into.fill(if page == 101 { 0 } else { page });
    Ok(page != 105)
}

#[test]
fn the_list_takes_the_place_of_criu_s_pagemap() {
    let images = dump();
    write_pagemaps(images.path(), &resident(&[(49, 3), (100, 2), (105, 1)])).unwrap();
    let image = read_pagemap(&images.path().join("pagemap-7.img")).unwrap();
    let expected = [
        entry(49, 1, PageFlags::LAZY),
        entry(50, 1, PageFlags::PRESENT),
        entry(51, 1, PageFlags::LAZY),
        entry(100, 2, PageFlags::PRESENT),
        entry(105, 1, PageFlags::PRESENT),
    ];
    assert_eq!(image.entries, expected);
    assert_eq!(image.pages_id, 9, "a number that shared memory has not");
    assert!(!images.path().join("own-pagemap-7.img").exists());
    assert!(!images.path().join("pages-3.img").exists());
}

#[test]
fn pages_that_only_criu_has_are_kept() {
    let images = dump();
    write_pagemaps(images.path(), &resident(&[(49, 3), (100, 2)])).unwrap();
    let written = write_present(images.path(), 1 << 20, number_of_page).unwrap();
    assert_eq!((written.files, written.pages), (1, 4));
    let pages = fs::read(images.path().join("pages-9.img")).unwrap();
    let firsts: Vec<u8> = pages.chunks(PAGE).map(|page| page[0]).collect();
    assert_eq!(firsts, [50, 100, 0, 105]);
    assert!(
        pages
            .chunks(PAGE)
            .all(|page| page.iter().all(|byte| *byte == page[0]))
    );
    // Once written, it is left alone.
    let again = write_present(images.path(), 1 << 20, |_, _, _| Ok(false)).unwrap();
    assert_eq!(again.files, 0);
}

#[test]
fn a_destination_that_cannot_fill_in_has_all_pages_at_the_start() {
    let images = dump();
    write_pagemaps(images.path(), &resident(&[(49, 3), (100, 2)])).unwrap();
    all_present(images.path()).unwrap();
    assert_eq!(
        write_present(images.path(), 1 << 20, number_of_page)
            .unwrap()
            .pages,
        6
    );
    let pages = fs::read(images.path().join("pages-9.img")).unwrap();
    let firsts: Vec<u8> = pages.chunks(PAGE).map(|page| page[0]).collect();
    assert_eq!(firsts, [49, 50, 51, 100, 0, 105]);
}

#[test]
fn a_process_without_a_list_is_an_error() {
    let images = dump();
    let error = write_pagemaps(images.path(), &[]).unwrap_err();
    assert!(matches!(error, ImageError::Unlisted { process: 7 }), "{error}");
    assert_eq!(
        error.to_string(),
        "process 7 was dumped without its memory, and its pages are not known"
    );
}

#[test]
fn a_page_that_has_not_arrived_is_an_error_and_leaves_no_pages_file() {
    let images = dump();
    write_pagemaps(images.path(), &resident(&[(100, 2)])).unwrap();
    let error = write_present(images.path(), 1 << 20, |_, address, _| {
        Ok(address / PAGE_BYTES != 101)
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "page 0x65000 of process 7 has not arrived");
    assert!(!images.path().join("pages-9.img").exists());
    // CRIU's own page, of which the file has only half.
    fs::write(images.path().join("pages-3.img"), vec![1; PAGE / 2]).unwrap();
    let error = write_present(images.path(), 1 << 20, number_of_page).unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Missing {
                address: 0x6_9000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_pagemap_cannot_ask_for_more_than_the_limit() {
    let images = TempDir::new().unwrap();
    let path = images.path().join("pagemap-7.img");
    fs::write(&path, pagemap_of(&[message(0x1000, 1 << 40)])).unwrap();
    let error = write_present(images.path(), 1 << 30, |_, _, _| Ok(true)).unwrap_err();
    assert!(matches!(error, ImageError::TooManyPresent { .. }), "{error}");
    assert_eq!(fs::read_dir(images.path()).unwrap().count(), 1);
}

#[test]
fn two_pagemaps_cannot_share_a_pages_file_or_name_an_earlier_dump() {
    let images = TempDir::new().unwrap();
    for name in ["pagemap-7.img", "pagemap-8.img"] {
        fs::write(images.path().join(name), pagemap_of(&[message(0x1000, 1)])).unwrap();
    }
    let refused = || write_present(images.path(), 1 << 30, |_, _, _| Ok(true)).unwrap_err();
    assert!(matches!(refused(), ImageError::Malformed { .. }));
    fs::remove_file(images.path().join("pagemap-8.img")).unwrap();
    let earlier = Pagemap {
        flags: Some(1),
        ..message(0x1000, 1)
    };
    fs::write(images.path().join("pagemap-7.img"), pagemap_of(&[earlier])).unwrap();
    assert!(matches!(refused(), ImageError::Malformed { .. }));
}

#[test]
fn an_image_that_is_no_file_is_not_followed() {
    let images = TempDir::new().unwrap();
    let elsewhere = images.path().join("elsewhere");
    fs::write(&elsewhere, pagemap_of(&[])).unwrap();
    let path = images.path().join("pagemap-7.img");
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert!(matches!(read_pagemap(&path), Err(ImageError::Read { .. })));
    fs::remove_file(&path).unwrap();
    // Nobody writes to it: a reader must not wait.
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(read_pagemap(&path), Err(ImageError::Read { .. })));
}
