//! The index of a sealed store as a file, numbers in little-endian order:
//!
//! ```text
//! magic 8 | regions u64 | for each: process u32 | ordinal u32 | number u64 | present, zero, hot: 8 x u64 each
//! ```
//! It is written and read in the blackout, so it holds no more than the filler needs: 208 bytes for each 2 MiB.
//! It is read by the host that wrote it, but after a daemon was killed: what does not fit together is an error.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tranship_proto::points;

use super::region::{PageSet, REGION_BYTES, REGION_PAGES, Region, WORDS};
use super::{ADDRESS_END, RegionKey};

const MAGIC: &[u8; 8] = b"TRPAGES2";

const HEADER_BYTES: u64 = 16;

const RECORD_BYTES: usize = SETS + 3 * SET_BYTES;

/// Where the sets of pages begin in a record, and what each takes.
const SETS: usize = 4 + 4 + 8;
const SET_BYTES: usize = WORDS * 8;

/// A region, and whose it is.
#[derive(Debug)]
pub(crate) struct IndexedRegion {
    pub(crate) key: RegionKey,
    pub(crate) region: Region,
}

/// An index that is being written. It is there whole or not at all.
pub(super) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    regions: u64,
}

impl Writer {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(1 << 18, File::create(staged(path))?);
        file.write_all(MAGIC)?;
        file.write_all(&[0; 8])?;
        Ok(Self {
            file,
            path: path.to_owned(),
            regions: 0,
        })
    }

    pub(super) fn add(&mut self, (process, number): RegionKey, region: &Region) -> io::Result<()> {
        self.file.write_all(&process.to_le_bytes())?;
        self.file.write_all(&region.ordinal.to_le_bytes())?;
        self.file.write_all(&number.to_le_bytes())?;
        for word in region.present.iter().chain(&region.zero).chain(&region.hot) {
            self.file.write_all(&word.to_le_bytes())?;
        }
        self.regions += 1;
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.file.flush()?;
        let mut file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(MAGIC.len() as u64))?;
        file.write_all(&self.regions.to_le_bytes())?;
        points::step("store:rename-index", || {
            fs::rename(staged(&self.path), &self.path)
        })
    }
}

fn staged(path: &Path) -> PathBuf {
    path.with_extension("new")
}

/// Reads the index of a store whose content is in `pages`.
pub(crate) fn read_index(path: &Path, pages: &File) -> io::Result<Vec<IndexedRegion>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact(&mut header)?;
    let count = u64_at(&header, MAGIC.len());
    let expected = count
        .checked_mul(RECORD_BYTES as u64)
        .and_then(|bytes| bytes.checked_add(HEADER_BYTES));
    if !header.starts_with(MAGIC) || expected != Some(length) {
        return Err(damaged("its length is not what its header says"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    if bytes.len() as u64 + HEADER_BYTES != length {
        return Err(damaged("it changed while it was read"));
    }
    let content_bytes = pages.metadata()?.len();
    let mut ordinals = HashSet::new();
    let mut index = Vec::with_capacity(bytes.len() / RECORD_BYTES);
    for record in bytes.chunks_exact(RECORD_BYTES) {
        let found = parse(record)?;
        let of_its_own = ordinals.insert(found.region.ordinal);
        let last = found.region.data_runs(0..REGION_PAGES).last();
        let inside = last.is_none_or(|run| found.region.offset(run.end) <= content_bytes);
        if !of_its_own || !inside {
            return Err(damaged("two regions share their content, or it is not there"));
        }
        index.push(found);
    }
    Ok(index)
}

fn parse(record: &[u8]) -> io::Result<IndexedRegion> {
    let set =
        |number: usize| std::array::from_fn(|word| u64_at(record, SETS + number * SET_BYTES + word * 8));
    let region = Region {
        ordinal: u32_at(record, 4),
        present: set(0),
        zero: set(1),
        hot: set(2),
    };
    let outside = |set: &PageSet, of: &PageSet| set.iter().zip(of).any(|(set, of)| set & !of != 0);
    if outside(&region.zero, &region.present) || outside(&region.hot, &region.content()) {
        return Err(damaged("a page is zero or hot and not there"));
    }
    let number = u64_at(record, 8);
    if number >= ADDRESS_END / REGION_BYTES {
        return Err(damaged("a region lies beyond all addresses"));
    }
    let key = (u32_at(record, 0), number);
    Ok(IndexedRegion { key, region })
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the index is damaged: {what}"),
    )
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let found = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    u32::from_le_bytes(found.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let found = bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    u64::from_le_bytes(found.unwrap_or_default())
}
