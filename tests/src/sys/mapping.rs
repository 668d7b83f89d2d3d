//! Areas of memory that the calling process makes, moves, shrinks and gives up again.
#![expect(
    unsafe_code,
    reason = "maps and unmaps memory, and reads and writes it by address"
)]

use std::fs::File;
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::ptr;

use crate::workload::page::{PAGE_BYTES, Page, WORDS};

/// What the owner may do with the pages of an area; doing more kills the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Read and write.
    Write,
}

/// What the kernel can be told about an area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The content is not needed: from now on it is what a fresh mapping holds.
    DontNeed,
    /// The content may be lost at any time until it is written again.
    Free,
    /// Huge pages are welcome.
    HugePages,
}

/// An area of private memory that nobody else uses. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    address: usize,
    pages: usize,
}

impl Mapping {
    /// Fresh anonymous memory, all zeros, to read and write.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn anonymous(pages: usize) -> io::Result<Self> {
        Self::map(
            pages,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    }

    /// A private copy of a file's pages from `first` on, to read and write. They must exist as long as the mapping does.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn of_file(file: &File, first: usize, pages: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(first * PAGE_BYTES).map_err(Error::other)?;
        Self::map(
            pages,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            offset,
        )
    }

    fn map(pages: usize, protection: i32, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), pages * PAGE_BYTES, protection, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self {
            address: address as usize,
            pages,
        })
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> usize {
        self.address
    }

    /// Its length.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Cuts it in two; the second part begins with page `at`.
    ///
    /// # Panics
    /// There is no such page.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        assert!(at < self.pages, "page {at} of {}", self.pages);
        let second = Self {
            address: self.address + at * PAGE_BYTES,
            pages: self.pages - at,
        };
        self.pages = at;
        second
    }

    /// Copies a page out. Its content may change without our doing (see [`Advice::Free`]), so each word is read once.
    ///
    /// # Panics
    /// There is no such page.
    pub fn read(&self, index: usize, into: &mut Page) {
        let from = self.page(index).cast_const();
        for (word, value) in into.iter_mut().enumerate() {
            // SAFETY: `page` has checked the index, and `word` is below WORDS; what is not readable kills the process.
            *value = unsafe { from.add(word).read_volatile() };
        }
    }

    /// Writes a page.
    ///
    /// # Panics
    /// There is no such page.
    pub fn write(&mut self, index: usize, content: &Page) {
        let to = self.page(index);
        for (word, value) in content.iter().enumerate() {
            // SAFETY: as in `read`; and the area is ours alone.
            unsafe { to.add(word).write_volatile(*value) };
        }
    }

    fn page(&self, index: usize) -> *mut u64 {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        const { assert!(WORDS * size_of::<u64>() == PAGE_BYTES) };
        (self.address + index * PAGE_BYTES) as *mut u64
    }

    /// Makes it longer or shorter; it may come to lie elsewhere.
    ///
    /// # Errors
    /// The kernel refuses; it is then as it was.
    pub fn resize(&mut self, pages: usize) -> io::Result<()> {
        let (old, new) = (self.pages * PAGE_BYTES, pages * PAGE_BYTES);
        // SAFETY: the area is ours, and nobody holds a pointer into it.
        let address =
            unsafe { libc::mremap(self.address as *mut libc::c_void, old, new, libc::MREMAP_MAYMOVE) };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        (self.address, self.pages) = (address as usize, pages);
        Ok(())
    }

    /// Moves it to another place.
    ///
    /// # Errors
    /// The kernel refuses; it is then as it was.
    pub fn relocate(&mut self) -> io::Result<()> {
        let place = Self::map(
            self.pages,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )?;
        let length = self.pages * PAGE_BYTES;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both areas are ours and of this length; what was at the new place goes, and only `place` was there.
        let address = unsafe {
            libc::mremap(
                self.address as *mut libc::c_void,
                length,
                length,
                flags,
                place.address as *mut libc::c_void,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        std::mem::forget(place);
        self.address = address as usize;
        Ok(())
    }

    /// Tells the kernel something about the whole area.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn advise(&mut self, advice: Advice) -> io::Result<()> {
        let advice = match advice {
            Advice::DontNeed => libc::MADV_DONTNEED,
            Advice::Free => libc::MADV_FREE,
            Advice::HugePages => libc::MADV_HUGEPAGE,
        };
        // SAFETY: the area is ours, and content that goes is read again before anybody relies on it.
        let result =
            unsafe { libc::madvise(self.address as *mut libc::c_void, self.pages * PAGE_BYTES, advice) };
        if result == 0 {
            Ok(())
        } else {
            Err(Error::last_os_error())
        }
    }

    /// Sets what may be done with the whole area.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn protect(&mut self, access: Access) -> io::Result<()> {
        let protection = match access {
            Access::None => libc::PROT_NONE,
            Access::Read => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the area is ours, and nobody holds a pointer into it.
        let result = unsafe {
            libc::mprotect(
                self.address as *mut libc::c_void,
                self.pages * PAGE_BYTES,
                protection,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the area is ours, and with it goes the last who could use it.
        unsafe { libc::munmap(self.address as *mut libc::c_void, self.pages * PAGE_BYTES) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_of(mapping: &Mapping, index: usize) -> Page {
        let mut page = [0; WORDS];
        mapping.read(index, &mut page);
        page
    }

    #[test]
    fn what_was_written_is_there_after_a_split_and_a_move() {
        let mut first = Mapping::anonymous(4).unwrap();
        first.write(3, &[7; WORDS]);
        let mut second = first.split_off(2);
        let before = second.address();
        second.relocate().unwrap();
        second.resize(8).unwrap();
        assert_ne!(second.address(), before);
        assert_eq!(page_of(&second, 1), [7; WORDS]);
        assert_eq!(page_of(&second, 7), [0; WORDS]);
        assert_eq!((first.pages(), second.pages()), (2, 8));
    }

    #[test]
    fn content_that_is_not_needed_is_what_a_fresh_mapping_holds() {
        let mut mapping = Mapping::anonymous(1).unwrap();
        mapping.write(0, &[7; WORDS]);
        mapping.advise(Advice::DontNeed).unwrap();
        assert_eq!(page_of(&mapping, 0), [0; WORDS]);
    }
}
