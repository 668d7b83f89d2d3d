//! Reads pages out of a process and hands them on in batches.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use super::page_set::PageSet;
use super::{PAGE_BYTES, PageBatch, PageRun, PageSink, TrackError};
use crate::sys::vm;

/// Content of a batch: large enough that a call costs nothing beside the copying, small enough for the processor's
/// caches and for many of them to be on their way.
const BATCH_PAGES: u64 = 256;
const PAGE: usize = 4096;
static ZEROS: [u8; PAGE] = [0; PAGE];

/// What has been read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Pages handed on, those of zeros included.
    pub pages: u64,
    /// Pages of zeros among them.
    pub zero_pages: u64,
    /// Time for reading alone, without what the sink took.
    pub read: Duration,
}

/// Who is read.
#[derive(Debug)]
pub struct Source<'a> {
    /// The process, as this host knows it.
    pub pid: i32,
    /// The process, as CRIU names it.
    pub process: u32,
    /// `/proc/PID/mem`, which stays with the address space that it was opened for.
    pub memory: &'a File,
}

impl Source<'_> {
    /// Whether the address space is still there; a process that has executed another program has a new one.
    pub fn is_alive(&self) -> bool {
        !matches!(self.memory.read_at(&mut [0], PAGE_BYTES), Ok(0))
    }
}

/// Collects ranges of one process until they are a batch. What the sink has taken is added to `sent`.
pub struct Reader<'a> {
    source: Source<'a>,
    sink: &'a mut dyn PageSink,
    sent: &'a mut PageSet,
    totals: &'a mut Totals,
    pieces: Vec<Range<u64>>,
    pages: u64,
    unreadable: Vec<Range<usize>>,
    require_all: bool,
    remember: bool,
}

impl<'a> Reader<'a> {
    /// A reader with nothing collected.
    pub fn new(
        source: Source<'a>,
        sink: &'a mut dyn PageSink,
        sent: &'a mut PageSet,
        totals: &'a mut Totals,
    ) -> Self {
        Self {
            source,
            sink,
            sent,
            totals,
            pieces: Vec::new(),
            pages: 0,
            unreadable: Vec::new(),
            require_all: false,
            remember: true,
        }
    }

    /// From now on a page that cannot be read is an error: the process stands still, so it has not gone away.
    pub fn require_all(&mut self) {
        self.require_all = true;
    }

    /// Whether what is handed on from now on counts as sent. It must not where nothing tells when it is written again.
    pub fn remember(&mut self, remember: bool) -> Result<(), TrackError> {
        if self.remember != remember {
            self.flush()?;
            self.remember = remember;
        }
        Ok(())
    }

    /// The pages that the sink has, in the version that the process has unless it wrote them since.
    pub fn sent(&mut self) -> &mut PageSet {
        self.sent
    }

    /// Adds the pages of the range that are not sent.
    pub fn add_unsent(&mut self, range: Range<u64>) -> Result<(), TrackError> {
        let mut gaps = Vec::new();
        let Ok(()) = self.sent.gaps(range, |gap| {
            gaps.push(gap);
            Ok::<(), Infallible>(())
        });
        gaps.into_iter().try_for_each(|gap| self.add(gap))
    }

    /// Hands on what has been collected, and takes it for not sent where it is in the range.
    pub fn forget(&mut self, range: Range<u64>) -> Result<(), TrackError> {
        self.flush()?;
        self.sent.remove(range);
        Ok(())
    }

    /// Adds pages; hands on what is a full batch.
    pub fn add(&mut self, range: Range<u64>) -> Result<(), TrackError> {
        if self.pieces.last().is_some_and(|last| range.start < last.end) {
            // Within a batch addresses ascend.
            self.flush()?;
        }
        let mut start = range.start;
        while start < range.end {
            let room = (BATCH_PAGES - self.pages) * PAGE_BYTES;
            let end = range.end.min(start + room);
            self.pages += (end - start) / PAGE_BYTES;
            match self.pieces.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => self.pieces.push(start..end),
            }
            if self.pages == BATCH_PAGES {
                self.flush()?;
            }
            start = end;
        }
        Ok(())
    }

    /// Hands on what has been collected.
    pub fn flush(&mut self) -> Result<(), TrackError> {
        if self.pieces.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let batch = self.read()?;
        self.totals.read += start.elapsed();
        for run in &batch.runs {
            self.totals.pages += u64::from(run.pages);
            self.totals.zero_pages += if run.zero { u64::from(run.pages) } else { 0 };
        }
        let runs = if self.remember {
            batch.runs.clone()
        } else {
            Vec::new()
        };
        if !batch.runs.is_empty() {
            self.sink.take(batch)?;
        }
        for run in runs {
            self.sent.insert(run.start..run.end());
        }
        self.pieces.clear();
        self.pages = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<PageBatch, TrackError> {
        let pid = self.source.pid;
        let mut data = vec![0; PAGE * usize::try_from(self.pages).unwrap_or(0)];
        self.unreadable.clear();
        vm::read(pid, &self.pieces, &mut data, &mut self.unreadable).map_err(|source| memory(pid, source))?;
        // The number may belong to another process by now, or the process to another program.
        if !self.source.is_alive() {
            return Err(TrackError::Gone { pid });
        }
        let mut unreadable = std::mem::take(&mut self.unreadable);
        unreadable.retain(|place| !self.read_forcibly(&mut data, place));
        if let (true, Some(place)) = (self.require_all, unreadable.first()) {
            let address = address(&self.pieces, place.start).unwrap_or(0);
            return Err(TrackError::Unreadable { pid, address });
        }
        let runs = pack(&self.pieces, &mut data, &unreadable);
        self.unreadable = unreadable;
        Ok(PageBatch {
            process: self.source.process,
            runs,
            data,
        })
    }

    /// Reads a page that the process itself may not read. False where there is none any more.
    fn read_forcibly(&self, data: &mut [u8], place: &Range<usize>) -> bool {
        let address = address(&self.pieces, place.start);
        let page = data.get_mut(place.clone()).zip(address);
        page.is_some_and(|(page, address)| self.source.memory.read_exact_at(page, address).is_ok())
    }
}

fn memory(pid: i32, source: io::Error) -> TrackError {
    match source.raw_os_error() {
        Some(libc::ESRCH) => TrackError::Gone { pid },
        _ => TrackError::Memory {
            pid,
            action: "read",
            source,
        },
    }
}

/// The address of the byte at `place` when the pieces lie one after the other.
fn address(pieces: &[Range<u64>], place: usize) -> Option<u64> {
    let mut left = place as u64;
    for piece in pieces {
        let length = piece.end - piece.start;
        if left < length {
            return Some(piece.start + left);
        }
        left -= length;
    }
    None
}

/// The runs of what was read, without the pages named in `missing`; takes the pages of zeros and the missing ones out
/// of `data`.
fn pack(pieces: &[Range<u64>], data: &mut Vec<u8>, missing: &[Range<usize>]) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    let mut missing = missing.iter().peekable();
    let mut kept = 0;
    let addresses = pieces
        .iter()
        .flat_map(|piece| (piece.start..piece.end).step_by(PAGE));
    for (place, address) in (0..data.len()).step_by(PAGE).zip(addresses) {
        if missing.next_if(|range| range.start == place).is_some() {
            continue;
        }
        let zero = data[place..place + PAGE] == ZEROS;
        if !zero {
            if kept != place {
                data.copy_within(place..place + PAGE, kept);
            }
            kept += PAGE;
        }
        match runs.last_mut() {
            Some(run) if run.zero == zero && run.end() == address => run.pages += 1,
            _ => runs.push(PageRun {
                start: address,
                pages: 1,
                zero,
            }),
        }
    }
    data.truncate(kept);
    runs
}

#[cfg(test)]
mod tests {
    use super::{PAGE, address, pack};
    use proptest::prelude::*;
    use std::ops::Range;

    fn bytes(pages: &Range<u64>) -> Range<u64> {
        pages.start * 4096..pages.end * 4096
    }

    proptest! {
        #[test]
        fn what_is_packed_is_what_was_read(
            lengths in prop::collection::vec((1_u64..4, 0_u64..3), 1..12),
            contents in prop::collection::vec(0_u8..3, 48),
        ) {
            // Content 0 is a page of zeros, 2 is one that could not be read.
            let mut at = 1;
            let mut pieces = Vec::new();
            for (length, hole) in lengths {
                pieces.push(bytes(&(at..at + length)));
                at += length + hole;
            }
            let pages: Vec<u64> = pieces.iter().flat_map(|piece| (piece.start..piece.end).step_by(PAGE)).collect();
            let mut data: Vec<u8> = Vec::new();
            let mut missing = Vec::new();
            for (number, page) in pages.iter().enumerate() {
                prop_assert_eq!(address(&pieces, number * PAGE + 7), Some(page + 7));
                if contents[number] == 2 {
                    missing.push(number * PAGE..(number + 1) * PAGE);
                }
                data.extend(std::iter::repeat_n(contents[number] * u8::try_from(number + 1).unwrap(), PAGE));
            }
            let runs = pack(&pieces, &mut data, &missing);
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            let mut found = Vec::new();
            let mut rest = data.as_slice();
            for run in &runs {
                for page in 0..u64::from(run.pages) {
                    let content = if run.zero { 0 } else { rest[0] };
                    if !run.zero {
                        prop_assert!(rest[..PAGE].iter().all(|byte| *byte == content));
                        rest = &rest[PAGE..];
                    }
                    found.push((run.start + page * 4096, content));
                }
            }
            prop_assert!(rest.is_empty());
            let expected: Vec<(u64, u8)> = pages.iter().enumerate()
                .filter(|(number, _)| contents[*number] != 2)
                .map(|(number, page)| (*page, contents[number] * u8::try_from(number + 1).unwrap()))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
