//! What the filler reads of CRIU's images: which pages are lazy, and where areas end. It came from a peer.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use prost::Message;

use crate::memory::PAGE_BYTES;

const COMMON_MAGIC: u32 = 0x5456_4319;
const PAGEMAP_MAGIC: u32 = 0x5608_4025;
const MM_MAGIC: u32 = 0x5749_2820;

/// The content is filled in later.
const LAZY: u32 = 2;

/// `madvise` advice that an area carries, as bits: a child does not get it, or gets zeros.
const DONT_FORK: u64 = 1 << 10;
const WIPE_ON_FORK: u64 = 1 << 18;

/// Largest image that is read: one of 10,000 areas has some 500 KB, one of 16 million single pages some 300 MB.
const MAX_IMAGE_BYTES: u64 = 512 << 20;

#[derive(Clone, PartialEq, Message)]
struct PagemapHead {
    #[prost(uint32, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PagemapEntry {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint32, tag = "2")]
    old_pages: u32,
    #[prost(uint32, optional, tag = "4")]
    flags: Option<u32>,
    #[prost(uint64, optional, tag = "5")]
    pages: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct Mm {
    #[prost(message, repeated, tag = "14")]
    areas: Vec<MmArea>,
}

#[derive(Clone, PartialEq, Message)]
struct MmArea {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
    #[prost(uint64, tag = "9")]
    advice: u64,
}

/// The memory of one process as far as it is lazy.
#[derive(Debug)]
pub struct LazyMemory {
    /// The process.
    pub process: u32,
    /// Pages to fill in, ascending, none across two areas.
    pub pages: Vec<Range<u64>>,
    /// Areas whose content a forked child does not get.
    pub not_inherited: Vec<Range<u64>>,
}

/// Every process with an image of its pages.
pub fn processes(images: &Path) -> io::Result<Vec<u32>> {
    let mut processes = Vec::new();
    for entry in std::fs::read_dir(images)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("pagemap-")?.strip_suffix(".img"));
        processes.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    processes.sort_unstable();
    Ok(processes)
}

/// What is lazy of a process.
pub fn lazy_memory(images: &Path, process: u32) -> io::Result<LazyMemory> {
    let bytes = read(&images.join(format!("pagemap-{process}.img")))?;
    let mut messages = messages(&bytes, PAGEMAP_MAGIC)?.into_iter();
    let head = messages.next().ok_or_else(|| damaged("it has no head"))?;
    PagemapHead::decode(head).map_err(|error| damaged(&error.to_string()))?;
    let areas = areas(images, process)?;
    let mut pages: Vec<Range<u64>> = Vec::new();
    let mut area = areas.iter().peekable();
    for message in messages {
        let entry = PagemapEntry::decode(message).map_err(|error| damaged(&error.to_string()))?;
        if entry.flags.unwrap_or(0) & LAZY == 0 {
            continue;
        }
        let count = entry.pages.unwrap_or(u64::from(entry.old_pages));
        let end = count
            .checked_mul(PAGE_BYTES)
            .and_then(|bytes| entry.start.checked_add(bytes))
            .filter(|_| entry.start.is_multiple_of(PAGE_BYTES))
            .ok_or_else(|| damaged("an entry is beyond all addresses"))?;
        if pages.last().is_some_and(|last| last.end > entry.start) {
            return Err(damaged("its entries do not ascend"));
        }
        let mut start = entry.start;
        while start < end {
            while area.next_if(|area| area.end <= start).is_some() {}
            let within = area.peek().filter(|area| area.start <= start);
            let within = within.ok_or_else(|| damaged("a lazy page lies in no area"))?;
            let until = end.min(within.end);
            pages.push(start..until);
            start = until;
        }
    }
    let not_inherited = areas
        .iter()
        .filter(|area| area.advice & (DONT_FORK | WIPE_ON_FORK) != 0);
    let not_inherited = not_inherited.map(|area| area.start..area.end).collect();
    Ok(LazyMemory {
        process,
        pages,
        not_inherited,
    })
}

/// The areas of a process, ascending. Guard regions, which CRIU lists behind them, lie inside and are left out.
fn areas(images: &Path, process: u32) -> io::Result<Vec<MmArea>> {
    let bytes = read(&images.join(format!("mm-{process}.img")))?;
    let messages = messages(&bytes, MM_MAGIC)?;
    let message = messages.first().ok_or_else(|| damaged("it is empty"))?;
    let mm = Mm::decode(*message).map_err(|error| damaged(&error.to_string()))?;
    let mut areas: Vec<MmArea> = Vec::with_capacity(mm.areas.len());
    for area in mm.areas {
        let sound = area.start < area.end
            && area.start.is_multiple_of(PAGE_BYTES)
            && area.end.is_multiple_of(PAGE_BYTES);
        if !sound {
            return Err(damaged("an area is empty or not made of pages"));
        }
        if areas.last().is_none_or(|last| last.end <= area.start) {
            areas.push(area);
        }
    }
    Ok(areas)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(damaged("it is larger than any image can be"));
    }
    Ok(bytes)
}

/// The messages of an image: two magic numbers, then each with its length before it.
fn messages(bytes: &[u8], magic: u32) -> io::Result<Vec<&[u8]>> {
    let mut rest = bytes;
    let mut word = || {
        let word = rest.split_off(..4)?.try_into().ok()?;
        Some(u32::from_le_bytes(word))
    };
    if (word(), word()) != (Some(COMMON_MAGIC), Some(magic)) {
        return Err(damaged("its first bytes are not those of such an image"));
    }
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let length = rest.split_off(..4).and_then(|bytes| bytes.try_into().ok());
        let length = usize::try_from(u32::from_le_bytes(length.unwrap_or([0xff; 4]))).unwrap_or(usize::MAX);
        messages.push(
            rest.split_off(..length)
                .ok_or_else(|| damaged("it ends in the middle"))?,
        );
    }
    Ok(messages)
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an image is damaged: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn image(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut image = [COMMON_MAGIC.to_le_bytes(), magic.to_le_bytes()].concat();
        for message in messages {
            image.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            image.extend(message);
        }
        image
    }

    fn entry(start: u64, pages: u64, flags: u32) -> Vec<u8> {
        let entry = PagemapEntry {
            start,
            old_pages: 0,
            flags: Some(flags),
            pages: Some(pages),
        };
        entry.encode_to_vec()
    }

    fn area(start: u64, end: u64, advice: u64) -> MmArea {
        MmArea { start, end, advice }
    }

    fn lazy(entries: &[Vec<u8>], areas: Vec<MmArea>) -> io::Result<LazyMemory> {
        let directory = tempfile::tempdir().unwrap();
        let head = PagemapHead { pages_id: 1 }.encode_to_vec();
        let entries = [&[head], entries].concat();
        std::fs::write(
            directory.path().join("pagemap-7.img"),
            image(PAGEMAP_MAGIC, &entries),
        )?;
        let mm = Mm { areas }.encode_to_vec();
        std::fs::write(directory.path().join("mm-7.img"), image(MM_MAGIC, &[mm]))?;
        assert_eq!(processes(directory.path())?, [7]);
        lazy_memory(directory.path(), 7)
    }

    #[test]
    fn lazy_pages_are_cut_where_areas_end_and_others_left_out() {
        let areas = vec![
            area(0x1000, 0x3000, 0),
            area(0x3000, 0x9000, WIPE_ON_FORK),
            area(0x4000, 0x5000, 0),
        ];
        let found = lazy(
            &[entry(0x1000, 4, 6), entry(0x5000, 1, 4), entry(0x6000, 1, 2)],
            areas,
        )
        .unwrap();
        assert_eq!(found.pages, [0x1000..0x3000, 0x3000..0x5000, 0x6000..0x7000]);
        assert_eq!(found.not_inherited, vec![0x3000..0x9000]);
    }

    #[test]
    fn entries_that_cannot_be_are_errors() {
        let areas = || vec![area(0x1000, 0x9000, 0)];
        let impossible = [
            vec![entry(0x1000, u64::MAX, 2)],
            vec![entry(0x1001, 1, 2)],
            vec![entry(0x1000, 9, 2)],
            vec![entry(0xa000, 1, 2)],
            vec![entry(0x3000, 1, 2), entry(0x2000, 1, 2)],
            vec![entry(0x2000, 2, 2), entry(0x3000, 1, 2)],
        ];
        for entries in impossible {
            assert!(lazy(&entries, areas()).is_err(), "{entries:?}");
        }
        assert!(lazy(&[], vec![area(0x2000, 0x1000, 0)]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut image = image(MM_MAGIC, &[]);
            image.extend(bytes);
            let _ = messages(&image, MM_MAGIC);
        }
    }
}
