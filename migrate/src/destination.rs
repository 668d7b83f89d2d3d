//! The destination's role.
//!
//! Until the source's commit the destination owns nothing: whatever fails ends with everything dropped here. Once it
//! has said `ready` it cannot know by itself whether the source has committed, so when the connection is lost it asks
//! the source's journal, for as long as it takes, and holds the restored tasks meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tranship_proto::ids::MigrationId;
use tranship_proto::limits::MAX_PAGE_STREAMS;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{
    Failed, Holding, MigrationRole, Phase, Prepared, Ready, Reserve, Reserved, RoundStored, Running, Seeded,
    Span, Standby,
};

use crate::control::{Conversation, unexpected};
use crate::deadlines::{ASK_AGAIN, IMAGES, SEED_IDLE, STALL};
use crate::error::{Failure, HostError, StepError, chain};
use crate::handoff::{DestinationStep, Verdict};
use crate::host::{AcceptedStream, DestinationHost, Event, HeldRestore, Stage};
use crate::timings::{Timings, micros};
use crate::transport::{PageKeeper, PagesReport, TransportError, receive_pages, receive_trees};
use crate::trees::{TreeName, TreeReport, checkpoint_digest};

/// How a migration ended, seen from the destination.
#[derive(Debug)]
pub enum DestinationEnd {
    /// The container runs here.
    Runs,
    /// Everything was dropped, unless an undo failed.
    Dropped {
        /// What failed, or that the source gave up.
        failure: Failure,
        /// What could not be removed; empty when all was.
        undo: Vec<HostError>,
    },
    /// The source has committed, but the container could not be brought to run. It is not restored again.
    Lost(Failure),
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
}

/// The destination's role in one migration.
pub struct Destination {
    migration: MigrationId,
    host: Arc<dyn DestinationHost>,
    conversation: Conversation,
    timings: Timings,
    trees: Vec<TreeReport>,
    next_epoch: u64,
}

/// Ends of rounds that wait to be told. Rounds follow one another, so there is at most one for each stream.
const ROUNDS_IN_FLIGHT: usize = MAX_PAGE_STREAMS as usize;

type Receiving = JoinHandle<Result<Vec<TreeReport>, StepError>>;

impl Destination {
    /// The role, before anything was done.
    #[must_use]
    pub fn new(migration: MigrationId, host: Arc<dyn DestinationHost>, conversation: Conversation) -> Self {
        let timings = Timings::begin(MigrationRole::Destination);
        Self {
            migration,
            host,
            conversation,
            timings,
            trees: Vec::new(),
            next_epoch: 0,
        }
    }

    /// Plays the role to its end.
    pub async fn run(mut self, reserve: Reserve) -> DestinationReport {
        let end = match self.up_to_ready(&reserve).await {
            Ok((held, digest)) => self.after_ready(held, digest).await,
            Err(cause) => self.drop_all(cause).await,
        };
        DestinationReport {
            end,
            spans: self.timings.spans().to_vec(),
            trees: self.trees,
            total_us: self.timings.elapsed_us(),
        }
    }

    async fn up_to_ready(
        &mut self,
        reserve: &Reserve,
    ) -> Result<(Box<dyn HeldRestore>, [u8; 32]), StepError> {
        self.reserve(reserve).await?;
        if reserve.page_streams > MAX_PAGE_STREAMS {
            return Err(TransportError::TooManyStreams(reserve.page_streams).into());
        }
        let (receiving, mut rounds) = self.start_receiving(reserve.page_streams).await?;
        let mut receiving = AbortOnDrop(receiving);
        let said = self.until_drained(&mut receiving.0, &mut rounds).await?;
        let digest = self.prepare(&mut receiving.0, &said).await?;
        let held = self.hold().await?;
        Ok((held, digest))
    }

    async fn reserve(&mut self, reserve: &Reserve) -> Result<(), StepError> {
        self.note(Phase::Reserve);
        self.next_epoch = reserve.next_epoch;
        let host = Arc::clone(&self.host);
        let reservation = self.timings.measure("reserve", host.reserve(reserve)).await?;
        self.host.record(DestinationStep::Reserved).await?;
        let reserved = Reserved {
            data_token: reservation.data_token,
            layers_missing: reservation.layers_missing,
        };
        self.conversation.say(Body::Reserved(reserved)).await?;
        Ok(())
    }

    async fn start_receiving(&mut self, page_streams: u32) -> Result<(Receiving, StoredRounds), StepError> {
        let host = Arc::clone(&self.host);
        let (ended, endings) = mpsc::channel(ROUNDS_IN_FLIGHT);
        let rounds = StoredRounds::new(endings, page_streams);
        if page_streams == 0 {
            let receiving = tokio::spawn(async move {
                let mut accepted = host.accept_stream().await?;
                Ok(receive_trees(&mut accepted.stream, host.sink()).await?)
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

    async fn prepare(&mut self, receiving: &mut Receiving, said: &[u8]) -> Result<[u8; 32], StepError> {
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
        if said != digest {
            return Err(StepError::Digest);
        }
        if self.trees.iter().any(|tree| tree.name == TreeName::Memory) {
            let host = Arc::clone(&self.host);
            self.timings
                .measure("all pages are there", host.memory_complete())
                .await?;
        }
        self.host.record(DestinationStep::Prepared).await?;
        self.conversation
            .say(Body::Prepared(Prepared {
                digest: digest.to_vec(),
            }))
            .await?;
        Ok(digest)
    }

    async fn hold(&mut self) -> Result<Box<dyn HeldRestore>, StepError> {
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
        if let Err(error) = secured {
            held.abandon().await?;
            return Err(error.into());
        }
        let ready = async {
            self.host.record(DestinationStep::Ready).await?;
            self.conversation
                .say(Body::Ready(Ready {
                    spans: self.timings.spans().to_vec(),
                }))
                .await?;
            Ok(())
        };
        match ready.await {
            Ok(()) => Ok(held),
            // The source has not heard `ready`, so it cannot have committed.
            Err(cause) => {
                held.abandon().await?;
                Err(cause)
            }
        }
    }

    async fn after_ready(&mut self, held: Box<dyn HeldRestore>, digest: [u8; 32]) -> DestinationEnd {
        match self.decision(&digest).await {
            Ok(()) => match self.resume(held).await {
                Ok(()) => DestinationEnd::Runs,
                Err(cause) => self.lost(cause).await,
            },
            Err(cause) => {
                let abandoned = held.abandon().await;
                let end = self.drop_all(cause).await;
                with_undo(end, abandoned.err())
            }
        }
    }

    /// Waits for Go. Returns an error only when the source certainly has not committed and will not.
    async fn decision(&mut self, digest: &[u8; 32]) -> Result<(), StepError> {
        self.note(Phase::Commit);
        match self.conversation.hear("go", IMAGES).await {
            Ok(Body::Go(go)) if go.epoch == self.next_epoch && go.digest == digest => return Ok(()),
            Err(gave_up @ StepError::Source(_)) => return Err(gave_up),
            Ok(other) => {
                tracing::error!(migration_id = %self.migration, got = crate::control::name(&other), "not the go that was due; asking the source");
            }
            Err(error) => {
                tracing::warn!(migration_id = %self.migration, error = %chain(&error), "in doubt whether the source has committed; asking it");
            }
        }
        self.ask_until_decided().await
    }

    async fn ask_until_decided(&mut self) -> Result<(), StepError> {
        loop {
            match self.host.ask_source().await {
                Ok(Verdict::Committed) => return Ok(()),
                Ok(Verdict::Abandoned) => {
                    return Err(StepError::Source(
                        "its journal says that it did not commit".to_owned(),
                    ));
                }
                Ok(Verdict::Undecided) => {}
                Err(error) => {
                    tracing::debug!(migration_id = %self.migration, error = %chain(&error), "the source does not answer");
                }
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The container is this host's now. The record comes before the tasks run: after it nobody restores it again.
    async fn resume(&mut self, mut held: Box<dyn HeldRestore>) -> Result<(), StepError> {
        let go_at = Instant::now();
        self.note(Phase::Resume);
        let host = Arc::clone(&self.host);
        self.timings
            .measure("resuming record", host.record(DestinationStep::Resuming))
            .await?;
        self.timings.measure("release", held.release()).await?;
        // Not before: what a socket acknowledges now can no longer be lost with a restore that is done again.
        let released = Instant::now();
        let plug = async {
            let plugged = host.plug_network().await;
            (plugged, released.elapsed())
        };
        let ((plugged, plug_took), stages) = tokio::join!(plug, held.running());
        let stages = stages?;
        let go_to_running = go_at.elapsed();
        self.timings.record("network on", released, plug_took);
        self.record_stages(&stages);
        if let Err(error) = plugged {
            tracing::error!(migration_id = %self.migration, error = %chain(&error), "the container runs here, but is not on its network: nobody reaches it; move it to another host, which connects it again");
        }
        self.adopt(go_at, go_to_running).await
    }

    async fn adopt(&mut self, go_at: Instant, go_to_running: Duration) -> Result<(), StepError> {
        let host = Arc::clone(&self.host);
        self.timings.measure("adopt", host.adopt()).await?;
        host.record(DestinationStep::Running).await?;
        let running = Running {
            spans: self.resume_spans(),
            go_to_running_us: micros(go_to_running),
            go_to_answer_us: micros(go_at.elapsed()),
        };
        if let Err(error) = self.conversation.say(Body::Running(running)).await {
            tracing::warn!(migration_id = %self.migration, error = %chain(&error), "the source was not told; it will ask");
        }
        self.note(Phase::Clean);
        if let Err(error) = host.drop_staging().await {
            tracing::error!(migration_id = %self.migration, error = %chain(&error), "staging could not be removed");
        }
        Ok(())
    }

    async fn lost(&mut self, cause: StepError) -> DestinationEnd {
        let failure = self.failure(cause);
        tracing::error!(migration_id = %self.migration, error = %chain(&failure), "the container was handed over but does not run");
        self.tell_failed(&failure).await;
        DestinationEnd::Lost(failure)
    }

    async fn drop_all(&mut self, cause: StepError) -> DestinationEnd {
        let failure = self.failure(cause);
        let dropped = self.host.drop_all().await;
        let recorded = self.host.record(DestinationStep::Dropped).await;
        self.tell_failed(&failure).await;
        DestinationEnd::Dropped {
            failure,
            undo: dropped.err().into_iter().chain(recorded.err()).collect(),
        }
    }

    async fn tell_failed(&mut self, failure: &Failure) {
        let failed = Failed {
            phase: failure.phase.into(),
            error: chain(&failure.cause),
        };
        if let Err(error) = self.conversation.say(Body::Failed(failed)).await {
            tracing::debug!(migration_id = %self.migration, error = %chain(&error), "the source could not be told");
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
                0 => Received::Trees(receive_trees(&mut stream, sink).await?),
                _ => {
                    let report = receive_pages(&mut stream, keeper, ended).await?;
                    Received::Pages(number, Box::new(report))
                }
            };
            Ok::<_, TransportError>(received)
        });
    }
    drop(ended);
    let (mut trees, mut pages) = (Vec::new(), BTreeMap::new());
    while let Some(task) = tasks.join_next().await {
        match task.map_err(|_| TransportError::Worker)?? {
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

fn with_undo(end: DestinationEnd, failed: Option<HostError>) -> DestinationEnd {
    match (end, failed) {
        (DestinationEnd::Dropped { failure, mut undo }, Some(error)) => {
            undo.push(error);
            DestinationEnd::Dropped { failure, undo }
        }
        (end, _) => end,
    }
}

/// A role that ends early must not leave a receiver behind that still writes.
struct AbortOnDrop(Receiving);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Takes a migration up again that was ready when the daemon before ended, and the restored tasks with it. The images
/// are still here: they are restored again if, and only if, the source has committed.
pub async fn run_from_ready(
    migration: MigrationId,
    host: Arc<dyn DestinationHost>,
    reserve: &Reserve,
) -> DestinationEnd {
    let silent = Conversation::new(migration, Box::new(crate::control::Silence));
    let mut role = Destination::new(migration, host, silent);
    role.next_epoch = reserve.next_epoch;
    role.note(Phase::Commit);
    if let Err(cause) = role.ask_until_decided().await {
        return role.drop_all(cause).await;
    }
    let held = match role.host.restore_held().await {
        Ok(held) => held,
        Err(error) => return role.lost(error.into()).await,
    };
    match role.resume(held).await {
        Ok(()) => DestinationEnd::Runs,
        Err(cause) => role.lost(cause).await,
    }
}
