//! PAGEMAP_SCAN: asks the kernel which pages of a process are in which state, and protects them against writing unseen
//! in the same step.
#![expect(unsafe_code, reason = "the ioctl has no safe wrapper")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;

/// What the kernel says about a page; a set is the sum of its members.
pub mod category {
    /// Written since it was last protected, or never protected.
    pub const WRITTEN: u64 = 1 << 1;
    /// The page of a file, or of shared memory.
    pub const FILE: u64 = 1 << 2;
    /// In memory.
    pub const PRESENT: u64 = 1 << 3;
    /// In swap, or in another state that keeps an entry in the page table without a page.
    pub const SWAPPED: u64 = 1 << 4;
    /// The page of zeros that everybody shares.
    pub const PFNZERO: u64 = 1 << 5;
    /// A guard page made by `MADV_GUARD_INSTALL`. Kernels before 6.15 refuse the question with `EINVAL`.
    pub const GUARD: u64 = 1 << 8;
}

/// Protects the pages that match, in the same step.
const WP_MATCHING: u64 = 1 << 0;
/// Fails with `EPERM` at an area that is not registered for asynchronous write protection.
const CHECK_WPASYNC: u64 = 1 << 1;
const PAGEMAP_SCAN: libc::Ioctl = 0xC060_6610_u32 as libc::Ioctl;

/// Which pages are asked for, and what is done to them. The masks are sets of [`category`] members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Members that count as set where they are not.
    pub inverted: u64,
    /// A page must have all of these.
    pub required: u64,
    /// A page must have one of these, unless there are none.
    pub any_of: u64,
    /// What is said about the pages that match. Neighbours that differ in these are separate regions.
    pub report: u64,
    /// Protect the pages that match, so that the next write makes them [`category::WRITTEN`] again.
    pub protect: bool,
    /// Fail with `EPERM` where an area cannot be protected. Otherwise `protect` passes over it.
    pub check_registered: bool,
    /// The most pages that one call finds; 0 for no limit.
    pub max_pages: u64,
}

/// Consecutive pages about which the same is said.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Address of the first byte.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// What was asked for in [`Query::report`] and is so.
    pub categories: u64,
}

/// What one call found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// How many regions at the start of the buffer are filled.
    pub regions: usize,
    /// Where the walk ended: what is before it has been answered for. The next call starts here.
    pub walked_to: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Argument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_len: u64,
    max_pages: u64,
    inverted: u64,
    required: u64,
    any_of: u64,
    report: u64,
}

const _: () = assert!(size_of::<Argument>() == 96);
const _: () = assert!(size_of::<Region>() == 24);

/// The page map of one address space. It stays with that address space when the process executes another program; of
/// an address space that is gone it finds nothing.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Of the process `pid`, a number of this process's own pid namespace.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self { file })
    }

    /// One call: asks about the addresses from `start` to `end`, both multiples of the page size. It ends early when
    /// `into` is full or [`Query::max_pages`] is reached: go on at [`Found::walked_to`].
    ///
    /// `ENOTTY` means that the kernel has no such call, `EPERM` see [`Query::check_registered`]: pages before the area in
    /// question may have been protected without being found.
    pub fn scan(&self, query: &Query, start: u64, end: u64, into: &mut [Region]) -> io::Result<Found> {
        let protect = if query.protect { WP_MATCHING } else { 0 };
        let check = if query.check_registered { CHECK_WPASYNC } else { 0 };
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            flags: protect | check,
            start,
            end,
            regions: into.as_mut_ptr().expose_provenance() as u64,
            regions_len: into.len() as u64,
            max_pages: query.max_pages,
            inverted: query.inverted,
            required: query.required,
            any_of: query.any_of,
            report: query.report,
            ..Argument::default()
        };
        // SAFETY: the descriptor is open; `argument` has the layout and says the size that the kernel expects and is
        // writable; `regions` and `regions_len` describe exactly the exclusively borrowed `into`, whose elements are
        // plain integers, so whatever the kernel writes there is valid.
        let regions = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
        let regions = usize::try_from(regions).map_err(|_| io::Error::last_os_error())?;
        Ok(Found {
            regions: regions.min(into.len()),
            walked_to: walked_to(query, &argument, into, regions),
        })
    }

    /// As many calls as it takes: gives every region from `start` to `end` to `each`, in ascending order, through
    /// `buffer`, which must not be empty. A region that goes on in the next call is given in pieces. Each call holds the lock of the
    /// address space, for which the process waits when it maps something, so none looks at much.
    pub fn scan_all<E: From<io::Error>>(
        &self,
        query: &Query,
        start: u64,
        end: u64,
        buffer: &mut [Region],
        mut each: impl FnMut(Region) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = start;
        while at < end {
            let found = self.scan(query, at, end.min(at.saturating_add(CALL_BYTES)), buffer)?;
            for region in &buffer[..found.regions] {
                each(*region)?;
            }
            if found.walked_to <= at {
                // Nothing was walked although there is room for an answer: do not ask for ever.
                return Err(io::Error::from(io::ErrorKind::InvalidData).into());
            }
            at = found.walked_to;
        }
        Ok(())
    }
}

/// What one call of [`Pagemap::scan_all`] looks at: 0.3 ms for the cheapest question, 2 ms for the dearest.
const CALL_BYTES: u64 = 512 << 20;

/// Where the walk really ended. The kernel (6.18 at least) fills larger buffers in steps, and what it says after the last one
/// may be where an earlier one ended. But what is found ascends, and with room left it walks to the end.
fn walked_to(query: &Query, argument: &Argument, into: &[Region], regions: usize) -> u64 {
    let full = regions >= into.len();
    match into.get(..regions).and_then(<[Region]>::last) {
        Some(last) if full || query.max_pages != 0 => last.end.max(argument.walk_end),
        _ if full || query.max_pages != 0 => argument.walk_end,
        _ => argument.end,
    }
}

/// Whether this kernel has the call: asked of this process, about nothing.
pub fn is_supported() -> bool {
    let Ok(pagemap) = Pagemap::open(rustix::process::getpid().as_raw_nonzero().get()) else {
        return false;
    };
    pagemap
        .scan(&Query::default(), 0, 0, &mut [Region::default()])
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::{Pagemap, Query, Region, category};
    use std::io;

    const PAGE: usize = 4096;

    fn own() -> Pagemap {
        Pagemap::open(std::process::id().cast_signed()).unwrap()
    }

    /// Untouched memory of its own mapping, which the allocator would not promise, in small pages; kept to the end of the test.
    fn memory(pages: usize) -> (&'static mut [std::mem::MaybeUninit<u8>], u64) {
        let (bytes, flags) = (pages * PAGE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping at a place of the kernel's choice; it is never unmapped, so the slice stays valid, and
        // nobody else has it. The advice changes no content.
        let memory: &mut [std::mem::MaybeUninit<u8>] = unsafe {
            let start = libc::mmap(std::ptr::null_mut(), bytes, writable, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE), 0);
            std::slice::from_raw_parts_mut(start.cast(), bytes)
        };
        let address = memory.as_ptr().expose_provenance() as u64;
        (memory, address)
    }

    fn present() -> Query {
        Query {
            any_of: category::PRESENT | category::SWAPPED,
            required: category::PFNZERO | category::FILE,
            inverted: category::PFNZERO | category::FILE,
            report: category::PRESENT,
            ..Query::default()
        }
    }

    /// Touches every other page of the memory.
    fn touch_every_other(memory: &mut [std::mem::MaybeUninit<u8>]) {
        for byte in memory.iter_mut().step_by(2 * PAGE) {
            byte.write(7);
        }
    }

    #[test]
    fn every_touched_page_is_found_and_no_other_through_a_buffer_that_is_too_small() {
        assert!(super::is_supported());
        let pages = 200;
        let (memory, address) = memory(pages);
        let end = address + (pages * PAGE) as u64;
        let before = touched(&own(), address, end);
        touch_every_other(memory);
        let after = touched(&own(), address, end);
        assert!(before.is_empty(), "{before:?}");
        assert_eq!(after.len(), pages / 2);
        assert!(after.iter().all(|page| (page - address) % (2 * PAGE as u64) == 0));
    }

    #[test]
    fn a_large_buffer_finds_no_page_twice() {
        let pages = 6000;
        let (memory, address) = memory(pages);
        touch_every_other(memory);
        for room in [511, 512, 513, 1024, 2048, 2999, 3000, 3001] {
            let (mut at, mut count) = (address, 0);
            let end = address + (pages * PAGE) as u64;
            while at < end {
                let mut buffer = vec![Region::default(); room];
                let found = own().scan(&present(), at, end, &mut buffer).unwrap();
                assert!(buffer[..found.regions].iter().all(|region| region.start >= at));
                count += found.regions;
                at = found.walked_to;
            }
            assert_eq!(count, pages / 2, "{room}");
        }
    }

    fn touched(pagemap: &Pagemap, start: u64, end: u64) -> Vec<u64> {
        let mut pages = Vec::new();
        let mut buffer = [Region::default(); 7];
        pagemap
            .scan_all(&present(), start, end, &mut buffer, |region| {
                assert_eq!(region.categories, category::PRESENT);
                pages.extend((region.start..region.end).step_by(PAGE));
                Ok::<(), io::Error>(())
            })
            .unwrap();
        pages
    }

    #[test]
    fn a_call_that_is_full_says_where_to_go_on() {
        let (memory, address) = memory(64);
        touch_every_other(memory);
        let mut buffer = [Region::default(); 3];
        let end = address + 64 * PAGE as u64;
        let found = own().scan(&present(), address, end, &mut buffer).unwrap();
        assert_eq!(found.regions, 3);
        assert_eq!(buffer[2].start, address + 4 * PAGE as u64);
        assert!(found.walked_to >= buffer[2].end && found.walked_to <= buffer[2].end + PAGE as u64);
        let limited = Query {
            max_pages: 2,
            ..present()
        };
        assert_eq!(
            own().scan(&limited, address, end, &mut buffer).unwrap().regions,
            2
        );
    }

    #[test]
    fn memory_that_nobody_registered_cannot_be_protected() {
        let (memory, address) = memory(64);
        touch_every_other(memory);
        let protect = Query {
            protect: true,
            check_registered: true,
            ..present()
        };
        let end = address + 64 * PAGE as u64;
        let refused = own().scan(&protect, address, end, &mut [Region::default(); 8]);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
