//! What a daemon does for its role in a migration. The roles decide what happens and in which order; these traits say
//! what is asked of the host. Every method may be called again after it failed, unless it says otherwise.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tranship_checkpoint::memory::PageSink;
use tranship_proto::v1::{Phase, Progress, Reserve, Round, Span, Standby, StreamHello};

use crate::error::HostError;
pub use crate::handoff::DestinationSays;
use crate::handoff::{DestinationStep, Inspection, Resolution, SourceStep, Verdict};
use crate::transport::{PageKeeper, TreeSink};
use crate::trees::{Tree, TreeName, TreeReport};

/// A bulk stream to or from the peer, already encrypted and authenticated.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A stretch of time inside a host's work, for the report.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What was done.
    pub name: String,
    /// When it began, on this host's monotonic clock.
    pub start: Instant,
    /// How long it took.
    pub duration: Duration,
}

/// What one round found, read and handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundFacts {
    /// Pages, those of zeros included.
    pub pages: u64,
    /// Pages that held only zeros.
    pub zero_pages: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Time to find them.
    pub scan: Duration,
    /// Time to read them, waiting for the streams included.
    pub read: Duration,
}

/// Why a round was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The streams take no more; they say why.
    #[error("the streams of memory have failed")]
    Closed,
    /// The memory cannot be read.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A container's memory, read in rounds. Every method blocks, and is called on a thread of its own. Dropping it lets go of
/// the container.
pub trait MemoryReader: Send {
    /// What was written since the round before; at first, everything.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError>;

    /// The same, once before the freeze, with whatever makes the two that follow it shorter.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn listing_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError>;

    /// What was written since, for a container that stands still.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn frozen_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError>;

    /// After the state was dumped: what is missing of all pages the container has, and the list of them into the images.
    ///
    /// # Errors
    /// See [`ReadError`].
    fn last_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError>;

    /// Bytes that a round would send now.
    ///
    /// # Errors
    /// The memory cannot be looked at.
    fn pending_bytes(&mut self) -> Result<u64, HostError>;
}

/// How a container's memory can be moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryMode {
    /// In rounds, while the container runs.
    Live,
    /// In rounds of CRIU's images, each of which stops the container for a moment; why not live.
    PreDump(String),
    /// Inside CRIU's images, while it stands still; why.
    StopAndCopy(String),
}

impl fmt::Display for MemoryMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("live"),
            Self::PreDump(why) => write!(f, "pre-dump: {why}"),
            Self::StopAndCopy(why) => write!(f, "stop and copy: {why}"),
        }
    }
}

/// The images of a frozen container.
#[derive(Clone, Debug)]
pub struct DumpedImages {
    /// Directory they are in.
    pub path: PathBuf,
    /// Where the time went.
    pub stages: Vec<Stage>,
}

/// How an attempt to write the commit record failed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The record is certainly not there: the source still owns the container.
    #[error("the commit was not recorded")]
    NotRecorded(#[source] HostError),
    /// It may or may not be on the disk: nobody may run the container until that is known.
    #[error("it is unknown whether the commit was recorded")]
    Unknown(#[source] HostError),
}

/// Why nothing, or not everything, was reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// It is not let in: nothing was taken, and what is here of the container is not this migration's.
    #[error("the container is not let in")]
    Refused(#[source] HostError),
    /// Something was taken, perhaps: it must be dropped.
    #[error(transparent)]
    Failed(#[from] HostError),
}

/// What the source's daemon does.
#[async_trait]
pub trait SourceHost: Send + Sync {
    /// The reservation to send: everything the destination must know of the container. Waits for a container whose memory
    /// is still being filled in after an earlier migration.
    async fn describe(&self) -> Result<Reserve, HostError>;

    /// Writes a step to the journal; durable when it returns. Not for [`SourceStep::Committed`].
    async fn record(&self, step: SourceStep) -> Result<(), HostError>;

    /// Writes the one record that decides. Durable when it returns.
    async fn commit(&self, digest: [u8; 32]) -> Result<(), CommitError>;

    /// Whether an arbiter decides this handoff, and not this host's journal alone.
    fn has_arbiter(&self) -> bool;

    /// Has the arbiter decide for this host, if nothing is decided yet. Answers whether the destination owns the container.
    async fn abandon(&self) -> Result<bool, HostError>;

    /// The container that was handed over is this host's own again, under `epoch`.
    async fn own(&self, epoch: u64) -> Result<(), HostError>;

    /// How the memory can be moved; touches nothing.
    async fn memory_mode(&self) -> MemoryMode;

    /// Begins to follow the container's memory.
    async fn track_memory(&self) -> Result<Box<dyn MemoryReader>, HostError>;

    /// Writes what was written to the container's memory since the round before into images of their own; at first, everything. The
    /// tree is [`TreeName::Round`]. The tasks run when this returns, well or not.
    async fn pre_dump(&self, round: u32) -> Result<Tree, HostError>;

    /// What earlier blackouts between the two hosts cost that had nothing to send; `None` before the first.
    async fn fixed_cost(&self) -> Option<Duration>;

    /// Bytes a second that earlier migrations between the two hosts have copied of containers that stood still, or what is
    /// assumed before the first.
    async fn copied_bytes_per_s(&self) -> u64;

    /// Holds the container to so many percent of the CPU time it has used since its memory is followed; `None` gives it back
    /// what it may use. Undone by whatever ends the migration.
    async fn slow_down(&self, percent: Option<u8>) -> Result<(), HostError>;

    /// A new bulk stream to the destination.
    async fn open_stream(&self) -> Result<Box<dyn ByteStream>, HostError>;

    /// The tree of one of the image's layers, which never changes.
    async fn layer(&self, name: &TreeName) -> Result<Tree, HostError>;

    /// What the destination must know to have its restore started before there is anything to restore.
    async fn standby(&self) -> Result<Standby, HostError>;

    /// Does everything of the dump that can be done while the container runs. Answers how the memory goes with it: it may
    /// turn out only here that it cannot be left out of the images.
    async fn prepare_dump(&self) -> Result<MemoryMode, HostError>;

    /// Stops every task of the container by its cgroup's freezer.
    async fn freeze(&self) -> Result<(), HostError>;

    /// While the container runs: has connections that no process holds, which a dump would miss, come to a process or to an
    /// end. New ones wait. Takes some milliseconds at most, and leaves what cannot be had. One that is slowed down gets its CPU
    /// time back where it takes that.
    async fn settle_network(&self) -> Result<(), HostError>;

    /// Takes the container off its network: no packet leaves after this has returned.
    async fn cut_network(&self) -> Result<(), HostError>;

    /// The destination has announced the container's address: adds to the images what has come here for it since the cut.
    async fn gather_arrivals(&self) -> Result<(), HostError>;

    /// Writes the container's state and memory to images. The tasks are frozen before and after, whatever happens. CRIU
    /// is held until [`SourceHost::finish_dump`]: only until then do files without a name have one that can be sent.
    async fn dump(&self) -> Result<DumpedImages, HostError>;

    /// Lets CRIU leave the tasks, which stay frozen.
    async fn finish_dump(&self) -> Result<(), HostError>;

    /// The trees that are only whole while the container stands still: writable layer and volumes.
    async fn frozen_trees(&self) -> Result<Vec<Tree>, HostError>;

    /// Gives the network back, and announces the address from here.
    async fn mend_network(&self) -> Result<(), HostError>;

    /// Lets the tasks run again. Never called after a commit, unless [`SourceHost::own`] was called since.
    async fn thaw(&self) -> Result<(), HostError>;

    /// Removes images and other staging of this migration.
    async fn drop_staging(&self) -> Result<(), HostError>;

    /// After the destination runs the container: ends the frozen copy, releases what belonged to it, volumes
    /// included, and leaves a tombstone.
    async fn remove_copy(&self) -> Result<(), HostError>;

    /// Asks the destination's journal.
    async fn ask_destination(&self) -> Result<DestinationSays, HostError>;

    /// For status and logs; must not block.
    fn observe(&self, event: Event<'_>);
}

/// What happened, for whoever watches a role.
#[derive(Debug)]
pub enum Event<'a> {
    /// A phase began.
    Phase(Phase),
    /// A tree has been sent or received.
    Tree(&'a TreeReport),
    /// Spans that have been measured so far, those of the peer included.
    Spans(&'a [Span]),
    /// A round of memory has been sent and stored.
    Round(&'a Round),
    /// Where the rounds stand.
    Progress(&'a Progress),
    /// The memory moves in another way than was meant.
    MemoryMode(&'a MemoryMode),
}

/// A restored container whose tasks have not run.
#[async_trait]
pub trait HeldRestore: Send {
    /// Where the time went until it was held.
    fn stages(&self) -> &[Stage];

    /// Lets the tasks go; returns as soon as nobody's end can keep them from running any more. Before that nothing that
    /// the container's sockets say may reach anybody: what they acknowledge would be lost with a restore that is done
    /// again. Not to be called twice: a failure leaves a container that must be looked at, not one that may be restored
    /// again.
    async fn release(&mut self) -> Result<(), HostError>;

    /// Returns when the tasks run, with where the time went since [`HeldRestore::release`].
    async fn running(self: Box<Self>) -> Result<Vec<Stage>, HostError>;

    /// Has CRIU end what it restored.
    async fn abandon(self: Box<Self>) -> Result<(), HostError>;
}

/// What the destination's daemon does.
#[async_trait]
pub trait DestinationHost: Send + Sync {
    /// Takes name, address and space, makes staging, and journals it. Answers which layers are missing, and the token
    /// that streams of this migration must show. Refuses what [`admit`](crate::handoff::admit) refuses.
    async fn reserve(&self, reserve: &Reserve) -> Result<Reservation, ReserveError>;

    /// The next bulk stream of this migration; its greeting has been read and checked.
    async fn accept_stream(&self) -> Result<AcceptedStream, HostError>;

    /// Where pages of memory go; only where some were reserved.
    async fn page_keeper(&self) -> Result<Arc<dyn PageKeeper>, HostError>;

    /// All pages and images have arrived: makes them what a restore takes. Whether a page is missing is told by
    /// [`DestinationHost::secure`].
    async fn memory_complete(&self) -> Result<(), HostError>;

    /// Where its trees go. Refuses names that were not reserved.
    fn sink(&self) -> Arc<dyn TreeSink>;

    /// Every missing layer has arrived: the writable layer can have its place now.
    async fn layers_complete(&self) -> Result<(), HostError>;

    /// Announces the container's address and keeps what arrives for it, until [`DestinationHost::plug_network`] hands it
    /// over or the migration is dropped. The source has frozen the container and cut it off.
    async fn hold_network(&self) -> Result<(), HostError>;

    /// Writes a step to the journal; durable when it returns.
    async fn record(&self, step: DestinationStep) -> Result<(), HostError>;

    /// Does everything of the restore that can be done without the images and the writable layer. What was prepared and
    /// is not used goes with [`DestinationHost::drop_all`], or when this is called again. Pages of memory that have come are
    /// dropped where memory is to come inside the images.
    async fn prepare_restore(&self, standby: &Standby) -> Result<(), HostError>;

    /// Brings all that has arrived to stable storage, and makes certain that no page is missing which the images name.
    /// Runs beside [`DestinationHost::restore_held`]: only [`DestinationStep::Ready`] promises it.
    async fn secure(&self) -> Result<(), HostError>;

    /// Restores everything, up to the last stage before a task runs. The network is attached but silent. Prepares it first
    /// where that has not been done.
    async fn restore_held(&self) -> Result<Box<dyn HeldRestore>, HostError>;

    /// Puts the container, whose tasks are let go, on the network, gives it what was held for it, passes on what it has
    /// said meanwhile, and announces its address. Where that fails the host goes on trying by itself, for as long as the
    /// container is to be on its network here.
    async fn plug_network(&self) -> Result<(), HostError>;

    /// The container runs: registers it as this host's own, under the new epoch.
    async fn adopt(&self) -> Result<(), HostError>;

    /// Removes everything of the migration but the container itself.
    async fn drop_staging(&self) -> Result<(), HostError>;

    /// Removes everything, the reserved container included.
    async fn drop_all(&self) -> Result<(), HostError>;

    /// Looks whether tasks run, or have run, that were about to be released when the daemon before this one ended. Nobody can
    /// release them any more when it returns.
    async fn inspect(&self) -> Result<Inspection, HostError>;

    /// Asks the source's journal.
    async fn ask_source(&self) -> Result<Verdict, HostError>;

    /// Whether an arbiter decides this handoff, and not the source's journal alone.
    fn has_arbiter(&self) -> bool;

    /// Has the arbiter decide for this host, if nothing is decided yet, and answers what is decided.
    async fn claim(&self) -> Result<Verdict, HostError>;

    /// Waits until a person decides whose the container is. Cancel-safe.
    async fn resolved(&self) -> Resolution;

    /// For status and logs; must not block.
    fn observe(&self, event: Event<'_>);
}

/// A bulk stream that has arrived.
pub struct AcceptedStream {
    /// 0 for trees, else the number of the stream of memory.
    pub page_stream: u32,
    /// The stream, behind its greeting.
    pub stream: Box<dyn ByteStream>,
}

/// What a destination has reserved.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Digests of layers that must be sent.
    pub layers_missing: Vec<String>,
    /// Shown by each stream in its [`StreamHello`].
    pub data_token: Vec<u8>,
}

impl Reservation {
    /// The greeting of a stream that belongs to this reservation; `page_stream` is 0 for the one with trees.
    #[must_use]
    pub fn hello(&self, migration_id: String, page_stream: u32) -> StreamHello {
        StreamHello {
            migration_id,
            data_token: self.data_token.clone(),
            page_stream,
        }
    }
}
