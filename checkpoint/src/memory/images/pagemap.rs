//! The resident pages of a process, as CRIU writes and reads them.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::ImageError;
use super::framing::{PAGEMAP, Records, Writer};
use super::messages::{Pagemap, PagemapHead};
use crate::memory::PAGE_BYTES;

/// Where the content of pages is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFlags(u32);

impl PageFlags {
    /// Filled in after the start.
    pub const LAZY: Self = Self(2);
    /// In the pages file.
    pub const PRESENT: Self = Self(4);

    const PARENT: u32 = 1;
    const KNOWN: u32 = 7;

    /// In the pages file.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.0 & Self::PRESENT.0 != 0
    }

    /// May be filled in after the start.
    #[must_use]
    pub fn is_lazy(self) -> bool {
        self.0 & Self::LAZY.0 != 0
    }

    /// In the images of an earlier dump, which Tranship never makes.
    #[must_use]
    pub fn is_in_parent(self) -> bool {
        self.0 & Self::PARENT != 0
    }
}

/// Consecutive pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapEntry {
    /// Address of the first.
    pub start: u64,
    /// How many; not 0.
    pub pages: u64,
    /// Where they are.
    pub flags: PageFlags,
}

impl PagemapEntry {
    /// First address behind them; it exists.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes()
    }

    /// Their bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE_BYTES
    }
}

/// One `pagemap-ID.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PagemapImage {
    /// The number of the pages file.
    pub pages_id: u32,
    /// In ascending order, not overlapping.
    pub entries: Vec<PagemapEntry>,
}

impl PagemapImage {
    /// Bytes of its pages file, if nothing is missing in it.
    #[must_use]
    pub fn present_bytes(&self) -> u64 {
        let present = self.entries.iter().filter(|entry| entry.flags.is_present());
        present.map(PagemapEntry::bytes).sum()
    }

    /// Writes the image, readable by every CRIU since 4.0.
    pub(super) fn write(&self, file: File) -> io::Result<()> {
        let mut writer = Writer::new(file, PAGEMAP)?;
        writer.put(&PagemapHead {
            pages_id: self.pages_id,
        })?;
        for entry in &self.entries {
            writer.put(&Pagemap {
                address: entry.start,
                pages_until_4_1: u32::try_from(entry.pages).unwrap_or(u32::MAX),
                in_parent: None,
                flags: Some(entry.flags.0),
                pages: Some(entry.pages),
            })?;
        }
        writer.finish()
    }
}

/// Reads a pagemap. An empty file, which CRIU takes for a process without pages, has no number and is refused.
pub fn read_pagemap(path: &Path) -> Result<PagemapImage, ImageError> {
    let records = Records::open(path, PAGEMAP)?.ok_or_else(|| ImageError::Malformed {
        path: path.to_owned(),
        what: "it is empty",
    })?;
    parse(records)
}

pub(super) fn parse<R: Read>(mut records: Records<R>) -> Result<PagemapImage, ImageError> {
    let head: PagemapHead = records
        .next()?
        .ok_or_else(|| records.malformed("it has no head"))?;
    let mut entries: Vec<PagemapEntry> = Vec::new();
    let mut end = 0;
    while let Some(message) = records.next::<Pagemap>()? {
        let entry = entry_of(&message);
        end = end_of(&entry, end).map_err(|what| records.malformed(what))?;
        entries.push(entry);
    }
    Ok(PagemapImage {
        pages_id: head.pages_id,
        entries,
    })
}

/// An entry as CRIU understands it: what older versions leave out has a meaning.
fn entry_of(message: &Pagemap) -> PagemapEntry {
    let flags = if message.in_parent == Some(true) {
        message.flags.unwrap_or_default() | PageFlags::PARENT
    } else {
        message.flags.unwrap_or(PageFlags::PRESENT.0)
    };
    PagemapEntry {
        start: message.address,
        pages: message.pages.unwrap_or(u64::from(message.pages_until_4_1)),
        flags: PageFlags(flags),
    }
}

/// The end of an entry that follows one that ends at `least`.
fn end_of(entry: &PagemapEntry, least: u64) -> Result<u64, &'static str> {
    if entry.pages == 0 || !entry.start.is_multiple_of(PAGE_BYTES) {
        return Err("an entry is not of whole pages");
    }
    if entry.flags.0 & !PageFlags::KNOWN != 0 || entry.flags.0 == 0 {
        return Err("an entry has unknown flags");
    }
    if entry.start < least {
        return Err("its entries are not in ascending order");
    }
    let bytes = entry.pages.checked_mul(PAGE_BYTES);
    bytes
        .and_then(|bytes| entry.start.checked_add(bytes))
        .ok_or("an entry reaches beyond every address")
}
