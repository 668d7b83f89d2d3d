//! What images of memory there are.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::framing::{PAGEMAP, Records};
use super::messages::PagemapHead;

/// The images of memory in a directory.
pub struct Images {
    directory: PathBuf,
    /// Processes with a pagemap.
    pub pagemaps: BTreeSet<u32>,
    /// Numbers of pages files that a pagemap names or that exist.
    pages_ids: BTreeSet<u32>,
}

impl Images {
    /// Looks through `directory`.
    pub fn list(directory: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Read {
            path: directory.to_owned(),
            source,
        };
        let mut images = Self {
            directory: directory.to_owned(),
            pagemaps: BTreeSet::new(),
            pages_ids: BTreeSet::new(),
        };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".img")) else {
                continue;
            };
            if let Some(number) = name.strip_prefix("pages-") {
                images.pages_ids.extend(number.parse::<u32>());
            }
            if let Some(owner) = name.strip_prefix("pagemap-") {
                images.pages_ids.extend(pages_id(&entry.path())?);
                images.pagemaps.extend(owner.parse::<u32>());
            }
        }
        Ok(images)
    }

    /// A number that no pages file has.
    pub fn new_pages_id(&mut self) -> Result<u32, ImageError> {
        let next = self.pages_ids.last().map_or(Some(1), |last| last.checked_add(1));
        let next = next.ok_or_else(|| ImageError::Malformed {
            path: self.directory.clone(),
            what: "no number is left for a pages file",
        })?;
        self.pages_ids.insert(next);
        Ok(next)
    }

    /// The pagemap of a process.
    pub fn pagemap(&self, process: u32) -> PathBuf {
        self.directory.join(format!("pagemap-{process}.img"))
    }

    /// The pagemap that CRIU itself has written, where it has pages that ours has from nowhere else.
    pub fn own_pagemap(&self, process: u32) -> PathBuf {
        self.directory.join(format!("own-pagemap-{process}.img"))
    }

    /// The areas of a process.
    pub fn areas(&self, process: u32) -> PathBuf {
        self.directory.join(format!("mm-{process}.img"))
    }

    /// A pages file.
    pub fn pages(&self, id: u32) -> PathBuf {
        self.directory.join(format!("pages-{id}.img"))
    }
}

/// The number of the pages file of a pagemap, of a process or of shared memory; none in an empty one.
fn pages_id(path: &Path) -> Result<Option<u32>, ImageError> {
    let Some(mut records) = Records::open(path, PAGEMAP)? else {
        return Ok(None);
    };
    Ok(records.next::<PagemapHead>()?.map(|head| head.pages_id))
}

/// Every process with a pagemap, and where that is.
pub fn process_pagemaps(directory: &Path) -> Result<Vec<(u32, PathBuf)>, ImageError> {
    let images = Images::list(directory)?;
    let named = images
        .pagemaps
        .iter()
        .map(|process| (*process, images.pagemap(*process)));
    Ok(named.collect())
}
