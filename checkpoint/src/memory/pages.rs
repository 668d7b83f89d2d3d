//! Pages with what is in them.

use tranship_proto::pages::PageRun;

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
