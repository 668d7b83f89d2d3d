//! Words for pages on their way: where they belong, and what is in them.

/// Bytes of a page. Hosts with another page size are refused: CRIU's images and the pages on the wire count in these.
pub const PAGE_BYTES: u64 = 4096;

/// Consecutive pages of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Address of the first byte, a multiple of [`PAGE_BYTES`].
    pub start: u64,
    /// How many pages; not 0.
    pub pages: u32,
    /// All of them hold only zeros. Their content is not in [`PageBatch::data`] and never travels.
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
}

/// Pages of one process with what is in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageBatch {
    /// The process, as CRIU names it: its id in the container's own pid namespace.
    pub process: u32,
    /// In ascending order, not overlapping.
    pub runs: Vec<PageRun>,
    /// The content of every run that is not zero, one after the other.
    pub data: Vec<u8>,
}
