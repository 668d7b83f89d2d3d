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

/// Nobody takes pages any more; whoever closed the sink knows why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody takes pages any more")]
pub struct SinkClosed;

/// Where the pages of a round go.
pub trait PageSink {
    /// Takes a batch. Blocks as long as there is no room for it.
    ///
    /// # Errors
    /// Nobody takes pages any more; the round is to be ended.
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed>;
}

/// The pages of one process that a full dump of it would hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResidentPages {
    /// The process, as CRIU names it.
    pub process: u32,
    /// In ascending order, not overlapping; none says of itself that it is zero.
    pub runs: Vec<PageRun>,
}
