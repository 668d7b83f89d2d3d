//! The areas of a process's address space, as CRIU has written them down.

use std::path::Path;

use super::ImageError;
use super::framing::{MM, Records};
use super::messages::Mm;
use crate::memory::PAGE_BYTES;

/// `MAP_*` of the image.
mod mapped {
    pub const PRIVATE: u32 = 0x2;
    pub const DROPPABLE: u32 = 0x8;
    pub const ANONYMOUS: u32 = 0x20;
    pub const LOCKED: u32 = 0x2000;
    pub const HUGE: u32 = 0x4_0000;
}

/// `VMA_*` of the image.
mod status {
    pub const REGULAR: u32 = 1 << 0;
    pub const VSYSCALL: u32 = 1 << 2;
    pub const VDSO: u32 = 1 << 3;
    pub const FILE_PRIVATE: u32 = 1 << 6;
    pub const ANON_PRIVATE: u32 = 1 << 9;
    pub const VVAR: u32 = 1 << 12;
    pub const AIO_RING: u32 = 1 << 13;
    pub const SHADOW_STACK: u32 = 1 << 15;
    pub const GUARD: u32 = 1 << 16;
}

/// `MADV_*` of the image, as bits.
mod advised {
    pub const DONT_FORK: u64 = 1 << 10;
    pub const WIPE_ON_FORK: u64 = 1 << 18;
}

/// One area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its first address.
    pub start: u64,
    /// The first address behind it.
    pub end: u64,
    /// `PROT_*`.
    pub protection: u32,
    /// `MAP_*`.
    pub flags: u32,
    /// CRIU's `VMA_*`.
    pub status: u32,
    /// What the process has told the kernel with `madvise`: bit N for advice N.
    pub advice: u64,
}

impl Area {
    /// A range that `MADV_GUARD_INSTALL` has made inaccessible. It lies upon other areas and is none of its own.
    #[must_use]
    pub fn is_guard(&self) -> bool {
        self.status & status::GUARD != 0
    }

    /// Whether a forked child has the same content in it.
    #[must_use]
    pub fn is_inherited(&self) -> bool {
        self.advice & (advised::DONT_FORK | advised::WIPE_ON_FORK) == 0
    }

    /// Whether CRIU keeps pages of this area in the pagemap of its process: private memory, except what the kernel
    /// provides and what may vanish at any time.
    #[must_use]
    pub fn has_own_pages(&self) -> bool {
        let private = self.status & (status::ANON_PRIVATE | status::FILE_PRIVATE) != 0;
        let owned = (self.status & status::REGULAR != 0 && private)
            || self.status & (status::SHADOW_STACK | status::AIO_RING) != 0;
        owned && self.status & status::VVAR == 0 && self.flags & mapped::DROPPABLE == 0 && !self.is_guard()
    }

    /// Whether pages may be missing when the process starts, to be filled in when they are touched. CRIU's own rule, but
    /// for shadow stacks and rings, whose content it wants when it puts them back.
    #[must_use]
    pub fn may_be_lazy(&self) -> bool {
        let wanted = mapped::PRIVATE | mapped::ANONYMOUS;
        let unwanted = mapped::LOCKED | mapped::HUGE;
        let special =
            status::VDSO | status::VVAR | status::VSYSCALL | status::SHADOW_STACK | status::AIO_RING;
        self.flags & (wanted | unwanted) == wanted && self.status & special == 0
    }
}

/// Reads `mm-ID.img`: the areas in ascending order, then the guards in ascending order, which lie upon them.
pub fn areas(path: &Path) -> Result<Vec<Area>, ImageError> {
    let malformed = |what| ImageError::Malformed {
        path: path.to_owned(),
        what,
    };
    let records = Records::open(path, MM)?.ok_or_else(|| malformed("it is empty"))?;
    let mm: Mm = records.one()?;
    checked(mm).map_err(malformed)
}

fn checked(mm: Mm) -> Result<Vec<Area>, &'static str> {
    let mut areas = Vec::with_capacity(mm.areas.len());
    // Ends of the areas and of the guards so far.
    let mut ends = [0; 2];
    for vma in mm.areas {
        let area = Area {
            start: vma.start,
            end: vma.end,
            protection: vma.protection,
            flags: vma.flags,
            status: vma.status,
            advice: vma.advice,
        };
        if !area.start.is_multiple_of(PAGE_BYTES) || !area.end.is_multiple_of(PAGE_BYTES) {
            return Err("an area does not begin and end with a page");
        }
        let end = &mut ends[usize::from(area.is_guard())];
        if area.start < *end || area.start >= area.end {
            return Err("its areas are not in ascending order");
        }
        *end = area.end;
        areas.push(area);
    }
    areas.sort_by_key(Area::is_guard);
    Ok(areas)
}
