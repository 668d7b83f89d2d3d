//! The source's part: which pages there are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use tranship_proto::points;

use super::directory::Images;
use super::layout;
use super::pagemap::{PagemapImage, read_pagemap};
use super::threads::{stack_pages, threads};
use super::{ImageError, areas};
use crate::memory::ResidentPages;

/// Replaces the pagemaps of a dump of state alone by the list of what was resident.
///
/// Call it once, when CRIU has written everything (at its barrier). Every process of the dump must be in the list; if one
/// is not, or a page is in no area, nothing that restores is left behind: the dump must be given up.
pub fn write_pagemaps(images_dir: &Path, resident: &[ResidentPages]) -> Result<(), ImageError> {
    let mut images = Images::list(images_dir)?;
    let listed: BTreeSet<u32> = resident.iter().map(|pages| pages.process).collect();
    if let Some(process) = images.pagemaps.difference(&listed).next() {
        return Err(ImageError::Unlisted { process: *process });
    }
    let threads = threads(images_dir)?;
    for pages in resident {
        let threads = threads.get(&pages.process).map_or(&[][..], Vec::as_slice);
        let stacks = stack_pages(images_dir, threads)?;
        let areas = areas(&images.areas(pages.process))?;
        replace(
            &mut images,
            pages.process,
            layout::entries(pages, &areas, &stacks)?,
        )?;
    }
    Ok(())
}

/// Puts the new pagemap in the place of CRIU's.
fn replace(images: &mut Images, process: u32, entries: Vec<super::PagemapEntry>) -> Result<(), ImageError> {
    let path = images.pagemap(process);
    let own = own_pagemap(&path)?;
    let own_entries = own.as_ref().map_or(&[][..], |own| own.entries.as_slice());
    let (entries, own_is_needed) = layout::united(entries, own_entries);
    if own_is_needed {
        points::step("images:rename-pagemap", || {
            fs::rename(&path, images.own_pagemap(process))
        })
        .map_err(|source| not_written(&path, source))?;
    } else if let Some(own) = own {
        let pages = images.pages(own.pages_id);
        if let Err(source) = fs::remove_file(&pages)
            && source.kind() != io::ErrorKind::NotFound
        {
            return Err(not_written(&pages, source));
        }
    }
    let image = PagemapImage {
        pages_id: images.new_pages_id()?,
        entries,
    };
    let file = File::create(&path).map_err(|source| not_written(&path, source))?;
    image.write(file).map_err(|source| not_written(&path, source))
}

/// CRIU's own pagemap; none where it has written none, or an empty one.
fn own_pagemap(path: &Path) -> Result<Option<PagemapImage>, ImageError> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > 0 => read_pagemap(path).map(Some),
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ImageError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn not_written(path: &Path, source: io::Error) -> ImageError {
    ImageError::Write {
        path: path.to_owned(),
        source,
    }
}
