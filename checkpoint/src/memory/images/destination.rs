//! The destination's part: the pages that CRIU reads itself.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tranship_proto::points;

use super::directory::Images;
use super::framing;
use super::pagemap::{PagemapImage, read_pagemap};
use super::{ImageError, PageFlags, PagemapEntry};
use crate::memory::PAGE_BYTES;

/// Bytes of a page, for arrays.
const PAGE: usize = PAGE_BYTES as usize;

/// As many pages as are written at once.
const AT_ONCE: usize = 64;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresentPages {
    /// Pages files.
    pub files: usize,
    /// Pages in them.
    pub pages: u64,
}

/// Writes the pages files of all processes: each page that is PRESENT, from `page_of(process, address, into)`, which says
/// whether it has the page. Nothing is written if the pages take more than `limit_bytes` together.
///
/// A process whose pages file is there already is left alone, so this may be called again for the same images.
pub fn write_present(
    images_dir: &Path,
    limit_bytes: u64,
    mut page_of: impl FnMut(u32, u64, &mut [u8; PAGE]) -> io::Result<bool>,
) -> Result<PresentPages, ImageError> {
    let images = Images::list(images_dir)?;
    let missing = without_pages(&images, limit_bytes)?;
    let mut written = PresentPages::default();
    for (process, image) in missing {
        let own = OwnPages::open(&images, process)?;
        write_one(&images, process, &image, |address, into| {
            let found = page_of(process, address, into).map_err(|source| ImageError::Store {
                process,
                address,
                source,
            })?;
            if found || own.as_ref().is_some_and(|own| own.read(address, into)) {
                return Ok(());
            }
            Err(ImageError::Missing { process, address })
        })?;
        written.files += 1;
        written.pages += image.present_bytes() / PAGE_BYTES;
    }
    Ok(written)
}

/// Makes every page that could be filled in after the start one that CRIU reads itself: for a destination that cannot fill
/// in. To be called before [`write_present`].
pub fn all_present(images_dir: &Path) -> Result<(), ImageError> {
    let images = Images::list(images_dir)?;
    for process in &images.pagemaps {
        let path = images.pagemap(*process);
        let Some(mut image) = non_empty(&path)? else {
            continue;
        };
        if images.pages(image.pages_id).exists() {
            continue;
        }
        for entry in &mut image.entries {
            entry.flags = PageFlags::PRESENT;
        }
        let failed = |source| ImageError::Write {
            path: path.clone(),
            source,
        };
        File::create(&path)
            .and_then(|file| image.write(file))
            .map_err(failed)?;
    }
    Ok(())
}

/// The processes whose pages file has to be made, checked together.
fn without_pages(images: &Images, limit: u64) -> Result<Vec<(u32, PagemapImage)>, ImageError> {
    let mut missing = Vec::new();
    let mut ids = BTreeSet::new();
    let mut bytes: u64 = 0;
    for process in &images.pagemaps {
        let path = images.pagemap(*process);
        let Some(image) = non_empty(&path)? else {
            continue;
        };
        let malformed = |what| ImageError::Malformed {
            path: path.clone(),
            what,
        };
        if !ids.insert(image.pages_id) {
            return Err(malformed("its pages file is another's, too"));
        }
        if image.entries.iter().any(|entry| entry.flags.is_in_parent()) {
            return Err(malformed("it names pages of an earlier dump"));
        }
        if images.pages(image.pages_id).exists() {
            continue;
        }
        bytes = bytes.saturating_add(image.present_bytes());
        missing.push((*process, image));
    }
    if bytes > limit {
        return Err(ImageError::TooManyPresent { bytes, limit });
    }
    Ok(missing)
}

fn non_empty(path: &Path) -> Result<Option<PagemapImage>, ImageError> {
    let (_, bytes) = framing::open(path)?;
    if bytes == 0 {
        Ok(None)
    } else {
        read_pagemap(path).map(Some)
    }
}

/// Writes one pages file under another name, and gives it its own when it is whole.
fn write_one(
    images: &Images,
    process: u32,
    image: &PagemapImage,
    mut fill: impl FnMut(u64, &mut [u8; PAGE]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let path = images.pages(image.pages_id);
    let unfinished = path.with_extension("unfinished");
    let failed = |source| ImageError::Write {
        path: path.clone(),
        source,
    };
    let file = File::create(&unfinished).map_err(failed)?;
    // What is zero is not written: it stays a hole.
    file.set_len(image.present_bytes()).map_err(failed)?;
    let mut buffer = vec![[0; PAGE]; AT_ONCE];
    let mut offset = 0;
    for entry in image.entries.iter().filter(|entry| entry.flags.is_present()) {
        let mut address = entry.start;
        while address < entry.end() {
            let left = (entry.end() - address) / PAGE_BYTES;
            let count = usize::try_from(left).unwrap_or(AT_ONCE).min(AT_ONCE);
            for page in &mut buffer[..count] {
                fill(address, page)?;
                address += PAGE_BYTES;
            }
            let bytes = buffer[..count].as_flattened();
            if bytes.iter().any(|byte| *byte != 0) {
                file.write_all_at(bytes, offset).map_err(failed)?;
            }
            offset += bytes.len() as u64;
        }
    }
    points::step("images:rename-pages", || fs::rename(&unfinished, &path)).map_err(failed)?;
    tracing::debug!(process, pages = offset / PAGE_BYTES, "pages file written");
    Ok(())
}

/// The pages that CRIU has written itself.
struct OwnPages {
    /// Each entry and where its pages begin in the file.
    entries: Vec<(PagemapEntry, u64)>,
    file: File,
}

impl OwnPages {
    fn open(images: &Images, process: u32) -> Result<Option<Self>, ImageError> {
        let path = images.own_pagemap(process);
        if !path.exists() {
            return Ok(None);
        }
        let Some(image) = non_empty(&path)? else {
            return Ok(None);
        };
        let (file, _) = framing::open(&images.pages(image.pages_id))?;
        let mut offset = 0;
        let mut entries = Vec::new();
        for entry in image.entries {
            if entry.flags.is_present() {
                entries.push((entry, offset));
                offset += entry.bytes();
            }
        }
        Ok(Some(Self { entries, file }))
    }

    /// Reads a page; false where CRIU has not written it.
    fn read(&self, address: u64, into: &mut [u8; PAGE]) -> bool {
        let behind = self.entries.partition_point(|(entry, _)| entry.start <= address);
        let found = behind.checked_sub(1).and_then(|index| self.entries.get(index));
        let Some((entry, offset)) = found.filter(|(entry, _)| address < entry.end()) else {
            return false;
        };
        // A file that is too short does not have the page.
        self.file
            .read_exact_at(into, offset + (address - entry.start))
            .is_ok()
    }
}
