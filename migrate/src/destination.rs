//! The destination's role.
//!
//! Until the source's commit the destination owns nothing: whatever fails ends with everything dropped here. Once it
//! has said `ready` it cannot know by itself whether the source has committed, so when the connection is lost it asks
//! the source's journal, for as long as it takes, and holds the restored tasks meanwhile.
//!
//! What this role does about that is said by a machine, [`DestinationHandoff`]: [`Destination::tell`] tells it what has happened
//! and does what it says. The phases below only bring about what it is told.

mod ownership;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tranship_proto::ids::MigrationId;
use tranship_proto::limits::MAX_PAGE_STREAMS;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{
    Holding, MigrationRole, Phase, Reserve, Reserved, RoundStored, Seeded, Span, Standby,
};

use crate::control::{Conversation, unexpected};
use crate::deadlines::{SEED_IDLE, STALL};
use crate::error::{ControlError, Failure, HostError, StepError, chain};
use crate::handoff::{DestinationEvent, DestinationHandoff, DestinationStep, Digest, Message};
use crate::host::{AcceptedStream, DestinationHost, Event, HeldRestore, Stage};
use crate::timings::Timings;
use crate::transport::{PageKeeper, PagesReport, TransportError, TreeSink, receive_pages, receive_trees};
use crate::trees::{TreeName, TreeReport, checkpoint_digest};

/// How a migration ended, seen from the destination.
#[derive(Debug)]
pub enum DestinationEnd {
    /// The container is this host's: it runs here, unless it has ended since.
    Runs,
    /// Everything was dropped, unless an undo failed.
    Dropped {
        /// What failed, or that the source gave up.
        failure: Failure,
        /// What could not be removed; empty when all was.
        undo: Vec<HostError>,
    },
}

/// A migration's end and what was measured on the way.
#[derive(Debug)]
pub struct DestinationReport {
    /// How it ended.
    pub end: DestinationEnd,
    /// Stretches of this role.
    pub spans: Vec<Span>,
    /// What was received.
    pub trees: Vec<TreeReport>,
    /// The whole migration, in microseconds.
    pub total_us: u64,
    /// What a person should know of a container that runs here.
    pub warnings: Vec<String>,
}

/// The destination's role in one migration.
pub struct Destination {
    migration: MigrationId,
    host: Arc<dyn DestinationHost>,
    conversation: Conversation,
    timings: Timings,
    trees: Vec<TreeReport>,
    handoff: DestinationHandoff,
    reserve: Reserve,
    /// What the source is told when everything is reserved.
    reserved: Reserved,
    /// Memory was to come by itself and comes inside the images after all.
    memory_in_images: bool,
    held: Option<Box<dyn HeldRestore>>,
    /// When it was known that the source has committed, and how long it took from then until the tasks ran.
    go_at: Option<Instant>,
    go_to_running: Duration,
    /// Why it does not go on as it should; the last of several reasons.
    failure: Option<Failure>,
    /// What could not be removed.
    undo: Vec<HostError>,
    /// What is not as it should be, though the container runs.
    warnings: Vec<String>,
}

/// What kept a phase from its end, and what the machine is told about it.
struct Setback {
    event: DestinationEvent,
    cause: StepError,
}

impl<E: Into<StepError>> From<E> for Setback {
    fn from(error: E) -> Self {
        let cause = error.into();
        let event = match &cause {
            StepError::Source(_) => DestinationEvent::Heard(Message::Abort),
            StepError::Control(ControlError::Deadline { .. }) => DestinationEvent::Overdue,
            StepError::Control(ControlError::Lost { .. } | ControlError::Failed(_)) => DestinationEvent::Lost,
            _ => DestinationEvent::Failed,
        };
        Self { event, cause }
    }
}

/// Ends of rounds that wait to be told. Rounds follow one another, so there is at most one for each stream.
const ROUNDS_IN_FLIGHT: usize = MAX_PAGE_STREAMS as usize;

type Receiving = JoinHandle<Result<Vec<TreeReport>, StepError>>;

impl Destination {
    /// The role, before anything was done.
    #[must_use]
    pub fn new(migration: MigrationId, host: Arc<dyn DestinationHost>, conversation: Conversation) -> Self {
        let timings = Timings::begin(MigrationRole::Destination);
        let handoff = DestinationHandoff::under(host.has_arbiter());
        Self {
            migration,
            host,
            conversation,
            timings,
            trees: Vec::new(),
            handoff,
            reserve: Reserve::default(),
            reserved: Reserved::default(),
            memory_in_images: false,
            held: None,
            go_at: None,
            go_to_running: Duration::ZERO,
            failure: None,
            undo: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Plays the role to its end.
    pub async fn run(mut self, reserve: Reserve) -> DestinationReport {
        self.reserve = reserve;
        let setback = self.up_to_ready().await.err();
        let end = self.follow_through(setback).await;
        self.report(end)
    }

    fn report(self, end: DestinationEnd) -> DestinationReport {
        DestinationReport {
            end,
            spans: self.timings.spans().to_vec(),
            trees: self.trees,
            total_us: self.timings.elapsed_us(),
            warnings: self.warnings,
        }
    }

    async fn up_to_ready(&mut self) -> Result<(), Setback> {
        self.reserve().await?;
        let page_streams = self.reserve.page_streams;
        if page_streams > MAX_PAGE_STREAMS {
            return Err(TransportError::TooManyStreams(page_streams).into());
        }
        let (receiving, mut rounds) = self.start_receiving(page_streams).await?;
        let mut receiving = AbortOnDrop(receiving);
        let said = self.until_drained(&mut receiving.0, &mut rounds).await?;
        self.prepare(&mut receiving.0, &said).await
    }

    async fn reserve(&mut self) -> Result<(), Setback> {
        self.note(Phase::Reserve);
        let epoch = self.reserve.next_epoch;
        self.tell(DestinationEvent::Heard(Message::Reserve { epoch }))
            .await
    }

    async fn start_receiving(&mut self, page_streams: u32) -> Result<(Receiving, StoredRounds), StepError> {
        let host = Arc::clone(&self.host);
        let (ended, endings) = mpsc::channel(ROUNDS_IN_FLIGHT);
        let rounds = StoredRounds::new(endings, page_streams.max(1));
        if page_streams == 0 {
            let receiving = tokio::spawn(async move {
                let mut accepted = host.accept_stream().await?;
                let sink = Arc::new(RoundsTold::new(host.sink(), ended));
                Ok(receive_trees(&mut accepted.stream, sink).await?)
            });
            return Ok((receiving, rounds));
        }
        let keeper = host.page_keeper().await?;
        let receiving = tokio::spawn(receive_all(host, keeper, page_streams, ended));
        Ok((receiving, rounds))
    }

    /// Follows the source through seed, rounds, freeze and drain, to the digest of all it has sent.
    async fn until_drained(
        &mut self,
        receiving: &mut Receiving,
        rounds: &mut StoredRounds,
    ) -> Result<Vec<u8>, StepError> {
        self.note(Phase::Seed);
        loop {
            let body = tokio::select! {
                body = self.conversation.hear("drained", SEED_IDLE) => body?,
                result = &mut *receiving, if self.trees.is_empty() => {
                    self.trees = finished(result)?;
                    continue;
                }
                round = rounds.next() => {
                    self.conversation.say(Body::RoundStored(RoundStored { round })).await?;
                    continue;
                }
            };
            match body {
                Body::Seeded(_) => {
                    self.note(Phase::Rounds);
                    self.host.layers_complete().await?;
                    self.conversation.say(Body::Seeded(Seeded {})).await?;
                }
                Body::Standby(standby) => self.prepare_restore(&standby).await?,
                Body::Freezing(_) => self.note(Phase::Drain),
                Body::Cut(_) => self.hold_arrivals().await?,
                Body::Drained(drained) => return Ok(drained.digest),
                other => return Err(unexpected("drained", &other)),
            }
        }
    }

    async fn prepare_restore(&mut self, standby: &Standby) -> Result<(), StepError> {
        let host = Arc::clone(&self.host);
        self.memory_in_images |= standby.memory_in_images;
        self.timings
            .measure("prepare the restore", host.prepare_restore(standby))
            .await?;
        Ok(self.conversation.say(Body::Standby(Standby::default())).await?)
    }

    /// What the container is sent while it is nowhere. To lose that costs its clients a retransmission, not the migration.
    async fn hold_arrivals(&mut self) -> Result<(), StepError> {
        let host = Arc::clone(&self.host);
        if let Err(error) = self.timings.measure("hold", host.hold_network()).await {
            tracing::warn!(migration_id = %self.migration, error = %chain(&error), "what is sent to the container until it runs is lost and must be sent again");
        }
        Ok(self.conversation.say(Body::Holding(Holding {})).await?)
    }

    /// Everything is here. The machine has it recorded and restored, and says `ready`: [`Destination::hold`].
    async fn prepare(&mut self, receiving: &mut Receiving, said: &[u8]) -> Result<(), Setback> {
        let said = Digest::try_from(said).map_err(|_| StepError::Digest)?;
        self.tell(DestinationEvent::Heard(Message::Drained { digest: said }))
            .await?;
        if self.trees.is_empty() {
            let result = tokio::time::timeout(STALL, receiving)
                .await
                .map_err(|_| TransportError::Stalled(STALL.as_secs()))?;
            self.trees = finished(result)?;
        }
        for tree in &self.trees {
            self.host.observe(Event::Tree(tree));
        }
        let digest = checkpoint_digest(&self.trees);
        let event = DestinationEvent::AllArrived { digest };
        if said != digest {
            let cause = StepError::Digest;
            return Err(Setback { event, cause });
        }
        let beside = self.trees.iter().any(|tree| tree.name == TreeName::Memory);
        if beside && !self.memory_in_images {
            let host = Arc::clone(&self.host);
            self.timings
                .measure("all pages are there", host.memory_complete())
                .await?;
        }
        self.tell(event).await
    }

    /// Restores everything, up to the last stage before a task runs.
    async fn hold(&mut self) -> Result<(), StepError> {
        self.note(Phase::Hold);
        let host = Arc::clone(&self.host);
        let began = Instant::now();
        let secure = async {
            let secured = host.secure().await;
            (secured, began.elapsed())
        };
        let (held, (secured, secure_took)) =
            tokio::join!(self.timings.measure("restore", host.restore_held()), secure);
        self.timings.record("verified and durable", began, secure_took);
        let held = held?;
        self.record_stages(held.stages());
        self.held = Some(held);
        Ok(secured?)
    }

    /// The container is this host's now, and `resuming` is on record: after this nobody restores it again.
    async fn resume(&mut self, mut held: Box<dyn HeldRestore>) -> Result<(), StepError> {
        let go_at = self.go_at.unwrap_or_else(Instant::now);
        let host = Arc::clone(&self.host);
        self.timings.measure("release", held.release()).await?;
        // Not before: what a socket acknowledges now can no longer be lost with a restore that is done again.
        let released = Instant::now();
        let plug = async {
            let plugged = host.plug_network().await;
            (plugged, released.elapsed())
        };
        let ((plugged, plug_took), stages) = tokio::join!(plug, held.running());
        let stages = stages?;
        self.go_to_running = go_at.elapsed();
        self.timings.record("network on", released, plug_took);
        self.record_stages(&stages);
        self.note_plugged(plugged);
        Ok(())
    }

    /// The container runs, which cannot be taken back. The host goes on trying; a person is told.
    fn note_plugged(&mut self, plugged: Result<(), HostError>) {
        if let Err(error) = plugged {
            let error = chain(&error);
            tracing::error!(migration_id = %self.migration, error, "the container runs here, but is not on its network: nobody reaches it; this is tried again");
            self.warnings
                .push(off_its_network(&self.reserve.destination, &error));
        }
    }

    fn record_stages(&mut self, stages: &[Stage]) {
        for stage in stages {
            self.timings.record(&stage.name, stage.start, stage.duration);
        }
    }

    /// Those that `Ready` has not told yet.
    fn resume_spans(&self) -> Vec<Span> {
        self.timings
            .spans()
            .iter()
            .filter(|span| span.phase() >= Phase::Resume)
            .cloned()
            .collect()
    }

    fn note(&mut self, phase: Phase) {
        self.timings.enter(phase);
        tracing::info!(migration_id = %self.migration, role = "destination", phase = crate::phase::name(phase), elapsed_ms = self.timings.elapsed_us() / 1000, "phase");
        self.host.observe(Event::Phase(phase));
    }

    fn failure(&self, cause: StepError) -> Failure {
        Failure {
            phase: self.timings.phase(),
            cause,
        }
    }
}

/// What a person is told of a container that nobody reaches.
fn off_its_network(host: &str, error: &str) -> String {
    format!(
        "the container runs at {host}, but is not on its network there: {error}; {host} goes on trying until it is, and its \
         log says when"
    )
}

/// One stream of trees and all streams of memory, in whichever order they arrive, to their ends.
async fn receive_all(
    host: Arc<dyn DestinationHost>,
    keeper: Arc<dyn PageKeeper>,
    page_streams: u32,
    ended: mpsc::Sender<u32>,
) -> Result<Vec<TreeReport>, StepError> {
    let mut tasks = JoinSet::new();
    let mut seen = BTreeSet::new();
    for _ in 0..=page_streams {
        let AcceptedStream {
            page_stream: number,
            mut stream,
        } = host.accept_stream().await?;
        if number > page_streams || !seen.insert(number) {
            return Err(TransportError::Stream(number).into());
        }
        let (sink, keeper, ended) = (host.sink(), Arc::clone(&keeper), ended.clone());
        tasks.spawn(async move {
            let received = match number {
                0 => receive_trees(&mut stream, sink).await.map(Received::Trees),
                _ => receive_pages(&mut stream, keeper, ended)
                    .await
                    .map(|report| Received::Pages(number, Box::new(report))),
            };
            (received, stream)
        });
    }
    drop(ended);
    let (mut trees, mut pages) = (Vec::new(), BTreeMap::new());
    while let Some(task) = tasks.join_next().await {
        // The source cuts all streams when it finds one closed. So none is closed before its reason is known, else that of one
        // that was cut might be taken for it.
        let (received, _open) = task.map_err(|_| TransportError::Worker)?;
        match received? {
            Received::Trees(received) => trees = received,
            Received::Pages(number, report) => drop(pages.insert(number, *report)),
        }
    }
    let pages: Vec<PagesReport> = pages.into_values().collect();
    trees.push(PagesReport::as_tree(&pages));
    Ok(trees)
}

enum Received {
    Trees(Vec<TreeReport>),
    Pages(u32, Box<PagesReport>),
}

/// A sink that tells of each pre-dump that has arrived.
struct RoundsTold {
    sink: Arc<dyn TreeSink>,
    ended: mpsc::Sender<u32>,
}

impl RoundsTold {
    fn new(sink: Arc<dyn TreeSink>, ended: mpsc::Sender<u32>) -> Self {
        Self { sink, ended }
    }
}

impl TreeSink for RoundsTold {
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError> {
        self.sink.open(name)
    }

    fn close(&self, report: &TreeReport) -> Result<(), HostError> {
        self.sink.close(report)?;
        if let TreeName::Round(round) = report.name {
            // Nobody listens when the role has ended.
            let _ = self.ended.blocking_send(round);
        }
        Ok(())
    }
}

/// Rounds as the streams of memory end them.
struct StoredRounds {
    endings: mpsc::Receiver<u32>,
    streams: u32,
    /// How many streams have ended the round.
    ended: BTreeMap<u32, u32>,
}

impl StoredRounds {
    fn new(endings: mpsc::Receiver<u32>, streams: u32) -> Self {
        Self {
            endings,
            streams,
            ended: BTreeMap::new(),
        }
    }

    /// The next round that every stream has ended; never, when no more can come. Cancel-safe.
    async fn next(&mut self) -> u32 {
        while let Some(round) = self.endings.recv().await {
            let ended = self.ended.entry(round).or_default();
            *ended += 1;
            if *ended == self.streams {
                self.ended.remove(&round);
                return round;
            }
        }
        std::future::pending().await
    }
}

fn finished(
    result: Result<Result<Vec<TreeReport>, StepError>, tokio::task::JoinError>,
) -> Result<Vec<TreeReport>, StepError> {
    result.map_err(|_| StepError::Transport(TransportError::Worker))?
}

/// A role that ends early must not leave a receiver behind that still writes.
struct AbortOnDrop(Receiving);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes a migration up again of which nothing is left but the journal and what was received. `steps` is the journal, and
/// `taken` says whether what is here of the container is another migration's ([`DestinationHandoff::recover`]).
pub async fn run_from_journal(
    migration: MigrationId,
    host: Arc<dyn DestinationHost>,
    reserve: Reserve,
    steps: &[DestinationStep],
    taken: bool,
) -> DestinationReport {
    let silent = Conversation::new(migration, Box::new(crate::control::Silence));
    let mut role = Destination::new(migration, host, silent);
    let arbiter = role.host.has_arbiter();
    let (handoff, effects) = DestinationHandoff::recover(reserve.next_epoch, steps, taken, arbiter);
    role.handoff = handoff;
    role.reserve = reserve;
    role.note(Phase::Commit);
    let setback = role.carry_out_all(effects).await.err();
    let end = role.follow_through(setback).await;
    role.report(end)
}
