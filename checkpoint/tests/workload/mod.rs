//! A program with memory of every kind, which knows what should be in each page and says when it is not.
//!
//! It is this test's own binary, started in a container with `WORKLOAD` naming what it is to do. It counts in
//! `/vol/count-N`, a file for each of its processes, and writes `/vol/bad` when a page is wrong.
#![expect(unsafe_code, reason = "memory of every kind needs the calls that make it")]

use std::ffi::c_int;
use std::fs;
use std::ptr;
use std::time::Duration;

use std::io::pipe;

pub const PAGE: usize = 4096;

const GUARD_INSTALL: c_int = 102;

/// Some consecutive pages, and what is in each: a number that its content is made of, or `None` for zeros.
struct Region {
    start: *mut u8,
    content: Vec<Option<u64>>,
    protection: c_int,
    /// Pages that nobody can read.
    guards: Vec<usize>,
}

/// Runs for ever.
pub fn run(words: &str) {
    let mut regions = Vec::new();
    for word in words.split(',') {
        match word {
            "plain" => plain(&mut regions),
            "advice" => advised(&mut regions),
            "files" => regions.push(file_private()),
            "locked" => regions.push(locked()),
            "guards" => regions.push(guards()),
            "stack" => regions.push(growing()),
            "restless" | "forks" => {}
            size => regions.push(large(size.parse().unwrap())),
        }
    }
    let mut name = 0;
    if words.contains("forks") {
        name = fork_some(&mut regions);
    }
    let deep = if words.contains("stack") { 64 } else { 0 };
    descend(deep, &mut regions, name, words.contains("restless"));
}

/// Goes `depth` frames of two pages down the stack, and works there.
fn descend(depth: u64, regions: &mut [Region], name: u64, restless: bool) {
    let mut frame = [0_u64; 2 * PAGE / 8];
    frame.fill(depth);
    if depth > 0 {
        descend(depth - 1, regions, name, restless);
    } else {
        work(regions, name, restless);
    }
    assert!(std::hint::black_box(&frame).iter().all(|word| *word == depth));
}

fn work(regions: &mut [Region], name: u64, restless: bool) {
    let mut random = name + 1;
    for count in 1_u64.. {
        for region in regions.iter_mut() {
            if let Err(page) = region.check() {
                fs::write(
                    "/vol/bad",
                    format!("process {name}, {:p}, page {page}, round {count}", region.start),
                )
                .unwrap();
                std::process::abort();
            }
            if region.protection & libc::PROT_WRITE != 0 {
                let changes = if restless { 20 } else { 1 };
                for _ in 0..changes {
                    random = mixed(random);
                    region.write(random as usize % region.content.len(), random);
                }
            }
        }
        if restless {
            come_and_go(random);
        }
        fs::write(format!("/vol/new-{name}"), count.to_string()).unwrap();
        fs::rename(format!("/vol/new-{name}"), format!("/vol/count-{name}")).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Areas that are made, moved, emptied and removed.
fn come_and_go(random: u64) {
    let pages = 2 + random as usize % 30;
    let mut region = Region::new(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
    (0..pages).for_each(|page| region.write(page, random));
    // SAFETY: the region is this function's own; its length does not change.
    unsafe {
        libc::madvise(region.start.cast(), PAGE, libc::MADV_DONTNEED);
        if !random.is_multiple_of(3) {
            libc::munmap(region.start.cast(), pages * PAGE);
        }
    }
}

/// Two children and a grandchild; each changes some of the pages it was born with.
fn fork_some(regions: &mut [Region]) -> u64 {
    // SAFETY: this is the only thread that holds a lock or allocates: the test harness's own waits.
    let child = || unsafe { libc::fork() } == 0;
    let name = if child() {
        if child() { 3 } else { 1 }
    } else if child() {
        2
    } else {
        0
    };
    for region in regions {
        if region.protection & libc::PROT_WRITE != 0 {
            let pages = region.content.len();
            (0..pages)
                .filter(|page| page % 5 == name as usize)
                .for_each(|page| region.write(page, 1000 + name));
        }
    }
    name
}

impl Region {
    fn new(pages: usize, flags: c_int, file: c_int) -> Self {
        // SAFETY: the kernel chooses the place.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                file,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            content: vec![None; pages],
            protection: libc::PROT_READ | libc::PROT_WRITE,
            guards: Vec::new(),
        }
    }

    fn anonymous(pages: usize) -> Self {
        Self::new(pages, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    fn page(&self, page: usize) -> *mut u64 {
        assert!(page < self.content.len());
        // SAFETY: within the region.
        unsafe { self.start.add(page * PAGE).cast() }
    }

    fn write(&mut self, page: usize, number: u64) {
        if self.guards.contains(&page) {
            return;
        }
        for (index, word) in words(Some(number)).enumerate() {
            // SAFETY: within the page, which is this region's own and writable.
            unsafe { self.page(page).add(index).write_volatile(word) };
        }
        self.content[page] = Some(number);
    }

    fn protect(&self, protection: c_int) {
        let bytes = self.content.len() * PAGE;
        // SAFETY: the region's own pages, which no reference points to.
        let failed = unsafe { libc::mprotect(self.start.cast(), bytes, protection) };
        assert_eq!(failed, 0);
    }

    fn check(&self) -> Result<(), usize> {
        if self.protection == libc::PROT_NONE {
            self.protect(libc::PROT_READ);
        }
        for (page, content) in self.content.iter().enumerate() {
            if self.guards.contains(&page) {
                if can_be_read(self.page(page).cast()) {
                    return Err(page);
                }
                continue;
            }
            for (index, word) in words(*content).enumerate() {
                // SAFETY: within the page, which is readable.
                if unsafe { self.page(page).add(index).read_volatile() } != word {
                    return Err(page);
                }
            }
        }
        if self.protection == libc::PROT_NONE {
            self.protect(libc::PROT_NONE);
        }
        Ok(())
    }
}

/// The words of a page with this content.
fn words(content: Option<u64>) -> impl Iterator<Item = u64> {
    (0..PAGE as u64 / 8).map(move |index| content.map_or(0, |number| mixed(number ^ (index << 32))))
}

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (number ^ (number >> 31)).wrapping_add(0x9E37_79B9_7F4A_7C15)
}

/// Whether the kernel can read there.
fn can_be_read(place: *const u8) -> bool {
    let (_reader, writer) = pipe().unwrap();
    // SAFETY: the kernel refuses what it cannot read.
    unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), place.cast(), 1) == 1 }
}

fn plain(regions: &mut Vec<Region>) {
    let mut scattered = Region::anonymous(600);
    for page in 0..600 {
        match page {
            // Never touched.
            page if page % 11 == 0 => {}
            // Written with zeros.
            page if page % 7 == 0 => {
                // SAFETY: within the page.
                unsafe { scattered.page(page).write_volatile(0) }
            }
            page => scattered.write(page, page as u64),
        }
    }
    let only_read = Region::anonymous(32);
    only_read.check().unwrap();
    let mut closed = Region::anonymous(24);
    let mut fixed = Region::anonymous(24);
    for page in 0..24 {
        closed.write(page, 77 + page as u64);
        fixed.write(page, 99 + page as u64);
    }
    closed.protection = libc::PROT_NONE;
    fixed.protection = libc::PROT_READ;
    for region in [scattered, only_read, closed, fixed] {
        region.protect(region.protection);
        regions.push(region);
    }
}

/// `mebibytes` of pages that are all different.
fn large(mebibytes: usize) -> Region {
    let pages = mebibytes * (1 << 20) / PAGE;
    let mut region = Region::anonymous(pages);
    (0..pages).for_each(|page| region.write(page, page as u64));
    region
}

fn file_private() -> Region {
    let bytes: Vec<u8> = (0..64)
        .flat_map(|page| words(Some(page)))
        .flat_map(u64::to_ne_bytes)
        .collect();
    fs::write("/vol/data", bytes).unwrap();
    let file = fs::File::open("/vol/data").unwrap();
    let mut region = Region::new(64, libc::MAP_PRIVATE, std::os::fd::AsRawFd::as_raw_fd(&file));
    region.content = (0..64).map(Some).collect();
    (0..64)
        .step_by(5)
        .for_each(|page| region.write(page, 500 + page as u64));
    region
}

fn locked() -> Region {
    let mut region = Region::anonymous(16);
    (0..16)
        .step_by(3)
        .for_each(|page| region.write(page, page as u64));
    // SAFETY: the region's own pages.
    let failed = unsafe { libc::mlock(region.start.cast(), 16 * PAGE) };
    assert_eq!(failed, 0);
    region
}

fn guards() -> Region {
    let mut region = Region::anonymous(64);
    (0..64).for_each(|page| region.write(page, 3 * page as u64));
    for (first, count) in [(0, 1), (10, 7), (40, 1)] {
        // SAFETY: the region's own pages, which no reference points to.
        let guarded = unsafe { libc::madvise(region.page(first).cast(), count * PAGE, GUARD_INSTALL) };
        assert_eq!(guarded, 0, "this kernel has no guard pages");
        region.guards.extend(first..first + count);
    }
    region
}

/// Areas with every advice that stays.
fn advised(regions: &mut Vec<Region>) {
    let advices = [
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_DONTDUMP,
        libc::MADV_MERGEABLE,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
    ];
    for (number, advice) in advices.into_iter().enumerate() {
        let mut region = Region::new(
            8,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        );
        // SAFETY: the region's own pages; none of these changes what is in them.
        unsafe { libc::madvise(region.start.cast(), 8 * PAGE, advice) };
        region.write(3, number as u64);
        regions.push(region);
    }
}

/// An area that has grown downwards from its last page.
fn growing() -> Region {
    let whole = Region::anonymous(600);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED;
    // SAFETY: all of it is this function's own; the place for the stack is cut out of the region, which ends there.
    let top = unsafe {
        libc::munmap(whole.start.cast(), 600 * PAGE);
        libc::mmap(
            whole.page(599).cast(),
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    assert_ne!(top, libc::MAP_FAILED);
    let mut region = Region {
        start: whole.page(500).cast(),
        content: vec![None; 100],
        ..whole
    };
    (0..100)
        .rev()
        .for_each(|page| region.write(page, 40 + page as u64));
    region
}
