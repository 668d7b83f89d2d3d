//! Pages of memory on the wire: the payload of a `Pages` frame.
//!
//! ```text
//!  0               4               8
//!  +---------------+---------------+
//!  |    process    |     runs      |
//!  +---------------+---------------+---------------+---------------+
//!  |             start             |     pages     |     flags     |   for each run
//!  +-------------------------------+---------------+---------------+
//!  |  the content of each run that is not zero, one after the other
//! ```
//! Numbers are little-endian. `process` is the process id in the container's own pid namespace. `flags` is 1 for a run
//! of pages that hold only zeros, which has no content, and 0 otherwise. Runs ascend and do not overlap.

use crate::limits::{MAX_ADDRESS, MAX_PAGE_CONTENT_BYTES, MAX_PAGE_RUNS, MAX_PROCESS};

/// Bytes of a page. Hosts with another page size are refused: CRIU's images and the pages on the wire count in these.
pub const PAGE_BYTES: u64 = 4096;

/// Bytes before the first run.
const HEAD_BYTES: usize = 8;

/// Bytes of a run in the table.
const RUN_BYTES: usize = 16;

const ZERO: u32 = 1;

/// Consecutive pages of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first byte, a multiple of [`PAGE_BYTES`].
    pub start: u64,
    /// How many pages; not 0.
    pub pages: u32,
    /// All of them hold only zeros, which never travel.
    pub zero: bool,
}

impl PageRun {
    /// First address behind the run.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start + self.bytes()
    }

    /// Bytes that the run covers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.pages) * PAGE_BYTES
    }

    /// Bytes of content that the run brings along.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        if self.zero { 0 } else { self.bytes() }
    }
}

/// A payload that has passed every check.
#[derive(Debug, PartialEq, Eq)]
pub struct Pages<'a> {
    /// Whose.
    pub process: u32,
    /// Where they belong; ascending, not overlapping.
    pub runs: Vec<PageRun>,
    /// The content of every run that is not zero, one after the other.
    pub data: &'a [u8],
}

/// Why bytes are not a payload of pages.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PagesError {
    /// Shorter than its own table.
    #[error("a frame of pages of {0} bytes is cut off")]
    Cut(usize),
    /// A process id that Linux does not give out.
    #[error("{0} is no process id")]
    Process(u32),
    /// No run, or more than a frame may have.
    #[error("{0} runs in a frame of pages, which takes 1 to {MAX_PAGE_RUNS}")]
    Runs(u32),
    /// A run that is empty, not aligned, beyond the address space, not behind the one before, or has unknown flags.
    #[error("the run of {pages} pages at {start:#x} does not belong there")]
    Run {
        /// Its address.
        start: u64,
        /// Its length.
        pages: u32,
    },
    /// Content that does not fit the runs.
    #[error("{got} bytes of content where the runs say {wanted}")]
    Content {
        /// What the runs say.
        wanted: u64,
        /// What is there.
        got: u64,
    },
}

/// The head and the table for `runs` of `process`; the content goes behind it.
#[must_use]
pub fn encode_table(process: u32, runs: &[PageRun]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + runs.len() * RUN_BYTES);
    bytes.extend_from_slice(&process.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(runs.len()).unwrap_or(u32::MAX).to_le_bytes());
    for run in runs {
        bytes.extend_from_slice(&run.start.to_le_bytes());
        bytes.extend_from_slice(&run.pages.to_le_bytes());
        bytes.extend_from_slice(&(if run.zero { ZERO } else { 0 }).to_le_bytes());
    }
    bytes
}

impl<'a> Pages<'a> {
    /// Reads and checks a payload.
    ///
    /// # Errors
    /// [`PagesError`] for anything a correct sender never sends.
    pub fn decode(payload: &'a [u8]) -> Result<Self, PagesError> {
        let cut = || PagesError::Cut(payload.len());
        let (head, mut data) = payload.split_first_chunk::<HEAD_BYTES>().ok_or_else(cut)?;
        let [p0, p1, p2, p3, r0, r1, r2, r3] = *head;
        let process = u32::from_le_bytes([p0, p1, p2, p3]);
        if process == 0 || process > MAX_PROCESS {
            return Err(PagesError::Process(process));
        }
        let count = u32::from_le_bytes([r0, r1, r2, r3]);
        if count == 0 || count > MAX_PAGE_RUNS {
            return Err(PagesError::Runs(count));
        }
        let mut runs = Vec::with_capacity(count as usize);
        let mut behind = 0;
        for _ in 0..count {
            let (entry, rest) = data.split_first_chunk::<RUN_BYTES>().ok_or_else(cut)?;
            let run = decode_run(*entry, behind)?;
            behind = run.end();
            runs.push(run);
            data = rest;
        }
        let wanted = runs.iter().map(PageRun::content_bytes).sum();
        let got = data.len() as u64;
        if got != wanted || got > u64::from(MAX_PAGE_CONTENT_BYTES) {
            return Err(PagesError::Content { wanted, got });
        }
        Ok(Self { process, runs, data })
    }
}

fn decode_run(entry: [u8; RUN_BYTES], behind: u64) -> Result<PageRun, PagesError> {
    let [s0, s1, s2, s3, s4, s5, s6, s7, p0, p1, p2, p3, f0, f1, f2, f3] = entry;
    let start = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
    let pages = u32::from_le_bytes([p0, p1, p2, p3]);
    let flags = u32::from_le_bytes([f0, f1, f2, f3]);
    let end = start.checked_add(u64::from(pages) * PAGE_BYTES);
    let fits =
        start >= behind && start.is_multiple_of(PAGE_BYTES) && end.is_some_and(|end| end <= MAX_ADDRESS);
    if pages == 0 || flags > ZERO || !fits {
        return Err(PagesError::Run { start, pages });
    }
    Ok(PageRun {
        start,
        pages,
        zero: flags == ZERO,
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn run(start: u64, pages: u32, zero: bool) -> PageRun {
        PageRun { start, pages, zero }
    }

    #[test]
    fn the_wire_has_these_bytes() {
        let runs = [run(0x7f00_0000_1000, 1, false), run(0x7f00_0000_3000, 2, true)];
        let mut payload = encode_table(258, &runs);
        let golden = [
            2, 1, 0, 0, 2, 0, 0, 0, // 258, two runs
            0, 0x10, 0, 0, 0, 0x7f, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, //
            0, 0x30, 0, 0, 0, 0x7f, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(payload, golden);
        payload.extend_from_slice(&[7; 4096]);
        let pages = Pages::decode(&payload).unwrap();
        assert_eq!(
            (pages.process, pages.runs.as_slice(), pages.data),
            (258, &runs[..], &[7; 4096][..])
        );
    }

    #[test]
    fn each_thing_out_of_bounds_is_named() {
        let decode = |process, runs: &[PageRun], content: usize| {
            let mut payload = encode_table(process, runs);
            payload.resize(payload.len() + content, 0);
            Pages::decode(&payload).map(|_| ())
        };
        let good = run(0x1000, 1, false);
        assert_eq!(decode(1, &[good], 4096), Ok(()));
        assert_eq!(decode(0, &[good], 4096), Err(PagesError::Process(0)));
        assert_eq!(decode(1, &[], 0), Err(PagesError::Runs(0)));
        for wrong in [
            run(0x1001, 1, false),
            run(0x1000, 0, false),
            run(MAX_ADDRESS - 4096, 2, true),
            run(u64::MAX - 4095, 1, true),
        ] {
            let (start, pages) = (wrong.start, wrong.pages);
            assert_eq!(decode(1, &[wrong], 4096), Err(PagesError::Run { start, pages }));
        }
        let overlapping = [run(0x1000, 2, true), run(0x2000, 1, true)];
        assert!(matches!(decode(1, &overlapping, 0), Err(PagesError::Run { .. })));
        let short = PagesError::Content {
            wanted: 4096,
            got: 4095,
        };
        assert_eq!(decode(1, &[good], 4095), Err(short));
        assert_eq!(Pages::decode(&[1, 0, 0, 0, 1, 0]), Err(PagesError::Cut(6)));
        assert_eq!(Pages::decode(&[1, 0, 0, 0, 1, 0, 0, 0]), Err(PagesError::Cut(8)));
    }

    fn tables() -> impl Strategy<Value = Vec<PageRun>> {
        vec((0u64..1000, 1u32..20, any::<bool>()), 1..20).prop_map(|parts| {
            let mut behind = 0;
            let place = |(gap, pages, zero): (u64, u32, bool)| {
                let placed = run(behind + gap * PAGE_BYTES, pages, zero);
                behind = placed.end();
                placed
            };
            parts.into_iter().map(place).collect()
        })
    }

    proptest! {
        #[test]
        fn whatever_a_sender_sends_is_read_back(process in 1..=MAX_PROCESS, runs in tables()) {
            let mut payload = encode_table(process, &runs);
            let content: u64 = runs.iter().map(PageRun::content_bytes).sum();
            prop_assume!(content <= u64::from(MAX_PAGE_CONTENT_BYTES));
            payload.resize(payload.len() + usize::try_from(content).unwrap(), 3);
            let pages = Pages::decode(&payload).unwrap();
            prop_assert_eq!(pages.runs, runs);
            prop_assert_eq!(pages.data.len() as u64, content);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(payload in vec(any::<u8>(), 0..200)) {
            if let Ok(pages) = Pages::decode(&payload) {
                let mut again = encode_table(pages.process, &pages.runs);
                again.extend_from_slice(pages.data);
                prop_assert_eq!(again, payload);
            }
        }
    }
}
