//! The source's role.
//!
//! Until the commit the source owns the container, and whatever fails ends with it running here. The commit is one
//! durable record in this host's journal. From then on the destination owns it: the copy here is never thawed again,
//! whatever happens, and is removed only when the destination says that its own runs.
//!
//! What this role does about that is said by a machine, [`SourceHandoff`]: [`Source::tell`] tells it what has happened and does
//! what it says. The phases below only bring about what it is told.

mod memory;
mod ownership;
mod pre_dump;
mod stop;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Cut, Freezing, MigrationRole, Phase, Ready, Reserve, Round, Seeded, Span};

use crate::chain::Chain;
use crate::control::{Conversation, unexpected};
use crate::convergence::{ASSUMED_FIXED, StopAndCopy, Unreachable, Wishes};
use crate::deadlines::{IMAGES, REPLY, SYNC, WORDS};
use crate::error::{ControlError, Failure, HostError, StepError};
use crate::handoff::{Message, SourceEvent, SourceHandoff};
use crate::host::{ByteStream, Event, MemoryMode, MemoryReader, Reservation, SourceHost};
use crate::rounds::Memory;
use crate::timings::Timings;
use crate::transport::{TransportError, send_end, send_hello, send_tree};
use crate::trees::{Tree, TreeName, TreeReport, checkpoint_digest};
use stop::Stop;

/// How a migration ended, seen from the source.
#[derive(Debug)]
pub enum SourceEnd {
    /// The destination runs the container.
    Done {
        /// What of the copy here could not be removed; empty when all was.
        left: Vec<HostError>,
    },
    /// It failed before the container was frozen. Nothing changed, unless an undo failed.
    Failed {
        /// What failed.
        failure: Failure,
        /// What could not be undone; empty when all was.
        undo: Vec<HostError>,
    },
    /// It failed while the container stood still. It runs here again, unless an undo failed.
    RolledBack {
        /// What failed.
        failure: Failure,
        /// What could not be undone; empty when all was.
        undo: Vec<HostError>,
    },
    /// The commit was attempted, and whether the destination runs the container is not known here. The copy stays
    /// frozen.
    Unknown(Failure),
}

/// What a person asked for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// When to freeze, and when to give up.
    pub wishes: Wishes,
    /// Streams of memory to open, at least one.
    pub page_streams: u32,
    /// Most bytes of memory a second; 0 is no limit.
    pub max_bandwidth: u64,
}

/// A migration's end and what was measured on the way.
#[derive(Debug)]
pub struct SourceReport {
    /// How it ended.
    pub end: SourceEnd,
    /// Stretches of both roles.
    pub spans: Vec<Span>,
    /// What was sent.
    pub trees: Vec<TreeReport>,
    /// Rounds of memory.
    pub rounds: Vec<Round>,
    /// How the memory was moved.
    pub memory_mode: MemoryMode,
    /// From the freeze to the first instruction at the destination, in microseconds; 0 unless it is done.
    pub blackout_us: u64,
    /// The whole migration, in microseconds.
    pub total_us: u64,
    /// What the destination says a person should know of the container that runs there.
    pub warnings: Vec<String>,
}

/// The source's role in one migration.
pub struct Source {
    migration: MigrationId,
    host: Arc<dyn SourceHost>,
    conversation: Conversation,
    stop: Stop,
    plan: Plan,
    /// The blackout with nothing to send.
    fixed: Duration,
    /// What the container had in the beginning.
    memory_bytes: u64,
    memory_mode: MemoryMode,
    memory: Option<Memory>,
    /// Where memory goes as a chain of images.
    chain: Option<Chain>,
    rounds: Vec<Round>,
    slowed: bool,
    timings: Timings,
    trees: Vec<TreeReport>,
    peer_spans: Vec<Span>,
    /// What has followed the memory, until the container is gone or runs again.
    followed: Option<Box<dyn MemoryReader>>,
    frozen_at: Option<Instant>,
    /// When this host learned of what it gives up for.
    failed_at: Option<Instant>,
    blackout_us: u64,
    handoff: SourceHandoff,
    /// What the destination is asked for, until it is.
    asked: Option<Reserve>,
    go_at: Option<Instant>,
    /// Why it does not go on as it should; the last of several reasons.
    failure: Option<Failure>,
    /// What could not be undone.
    undo: Vec<HostError>,
    /// What of the copy could not be removed.
    left: Vec<HostError>,
    /// What is not as it should be at the destination, though the container runs.
    warnings: Vec<String>,
    /// The destination has said after the commit that it cannot run the container, or that it does not know of it.
    hopeless: bool,
}

/// What the destination has promised, and the stream to it.
struct Reserved {
    reservation: Reservation,
    stream: Box<dyn ByteStream>,
    page_streams: Vec<Box<dyn ByteStream>>,
    next_tree: u16,
}

/// What kept a phase from its end, and what the machine is told about it.
struct Setback {
    event: SourceEvent,
    cause: StepError,
}

impl<E: Into<StepError>> From<E> for Setback {
    fn from(error: E) -> Self {
        let cause = error.into();
        let event = match &cause {
            StepError::Cancelled => SourceEvent::Cancelled,
            StepError::Destination { given_back: true, .. } => SourceEvent::Heard(Message::GivenBack),
            StepError::Destination { .. } => SourceEvent::Heard(Message::Failed),
            StepError::Control(ControlError::Deadline { .. }) => SourceEvent::Overdue,
            StepError::Control(ControlError::Lost { .. } | ControlError::Failed(_)) => SourceEvent::Lost,
            _ => SourceEvent::Failed,
        };
        Self { event, cause }
    }
}

impl Source {
    /// The role, before anything was done. `cancelled` turns true when a person wants it to stop.
    #[must_use]
    pub fn new(
        migration: MigrationId,
        host: Arc<dyn SourceHost>,
        conversation: Conversation,
        plan: Plan,
        cancelled: watch::Receiver<bool>,
    ) -> Self {
        let handoff = SourceHandoff::under(host.has_arbiter());
        Self {
            migration,
            host,
            conversation,
            stop: Stop::new(cancelled, &plan.wishes),
            plan,
            fixed: ASSUMED_FIXED,
            memory_bytes: 0,
            memory_mode: MemoryMode::StopAndCopy("nothing was asked yet".to_owned()),
            memory: None,
            chain: None,
            rounds: Vec::new(),
            slowed: false,
            timings: Timings::begin(MigrationRole::Source),
            trees: Vec::new(),
            peer_spans: Vec::new(),
            followed: None,
            frozen_at: None,
            failed_at: None,
            blackout_us: 0,
            handoff,
            asked: None,
            go_at: None,
            failure: None,
            undo: Vec::new(),
            left: Vec::new(),
            warnings: Vec::new(),
            hopeless: false,
        }
    }

    /// Plays the role to its end.
    pub async fn run(mut self) -> SourceReport {
        let setback = self.up_to_commit().await.err();
        let end = self.follow_through(setback).await;
        if let Some(chain) = self.chain.take() {
            self.rounds = chain.into_rounds();
        }
        let followed = self.followed.take();
        tokio::task::spawn_blocking(move || drop(followed));
        let mut spans = self.timings.spans().to_vec();
        spans.append(&mut self.peer_spans);
        SourceReport {
            end,
            spans,
            trees: self.trees,
            rounds: self.rounds,
            memory_mode: self.memory_mode,
            blackout_us: self.blackout_us,
            total_us: self.timings.elapsed_us(),
            warnings: self.warnings,
        }
    }

    async fn up_to_commit(&mut self) -> Result<(), Setback> {
        let mut reserved = self.reserve().await?;
        self.seed(&mut reserved).await?;
        self.rounds(&mut reserved).await?;
        self.freeze().await?;
        self.drain(&mut reserved).await?;
        self.hold().await?;
        self.commit().await
    }

    async fn reserve(&mut self) -> Result<Reserved, Setback> {
        self.enter(Phase::Reserve)?;
        let host = Arc::clone(&self.host);
        let mut reserve = tokio::select! {
            described = self.timings.measure("describe", host.describe()) => described?,
            why = self.stop.wanted() => return Err(why.into()),
        };
        self.memory_mode = self.host.memory_mode().await;
        tracing::info!(migration_id = %self.migration, memory = %self.memory_mode, "how the memory moves");
        reserve.page_streams = match &self.memory_mode {
            MemoryMode::Live => self.plan.page_streams.max(1),
            MemoryMode::PreDump(_) | MemoryMode::StopAndCopy(_) => 0,
        };
        self.fixed = host.fixed_cost().await.unwrap_or(ASSUMED_FIXED);
        self.memory_bytes = reserve.memory_bytes;
        reserve.pre_dumps = matches!(self.memory_mode, MemoryMode::PreDump(_));
        if reserve.pre_dumps {
            self.begin_chain();
        }
        if let Some(why) = self.out_of_reach().await {
            return Err(why.into());
        }
        let page_streams = reserve.page_streams;
        let epoch = reserve.next_epoch;
        self.asked = Some(reserve);
        self.tell(SourceEvent::Begin { epoch }).await?;
        let reserved = match self.hear("reserved", REPLY).await? {
            Body::Reserved(reserved) => reserved,
            other => return Err(unexpected("reserved", &other).into()),
        };
        self.tell(SourceEvent::Heard(Message::Reserved)).await?;
        let reservation = Reservation {
            layers_missing: reserved.layers_missing,
            data_token: reserved.data_token,
        };
        let stream = self.open_stream(&reservation, 0).await?;
        let mut streams = Vec::new();
        for number in 1..=page_streams {
            streams.push(self.open_stream(&reservation, number).await?);
        }
        Ok(Reserved {
            reservation,
            stream,
            page_streams: streams,
            next_tree: 0,
        })
    }

    /// The reason why the wished-for blackout cannot be had from a container with so much memory, where there is one.
    async fn out_of_reach(&mut self) -> Option<Unreachable> {
        let (host, wishes) = (Arc::clone(&self.host), self.plan.wishes);
        match self.memory_mode {
            MemoryMode::Live | MemoryMode::PreDump(_) => wishes.hopeless(self.fixed),
            MemoryMode::StopAndCopy(_) => wishes.hopeless_copy(StopAndCopy {
                bytes: self.memory_bytes,
                bytes_per_s: host.copied_bytes_per_s().await,
                fixed: self.fixed,
            }),
        }
    }

    async fn open_stream(
        &mut self,
        reservation: &Reservation,
        page_stream: u32,
    ) -> Result<Box<dyn ByteStream>, StepError> {
        let opened = self.host.open_stream().await;
        let mut stream = opened.map_err(TransportError::Unopened)?;
        let hello = reservation.hello(self.migration.to_string(), page_stream);
        send_hello(&mut stream, &hello).await?;
        Ok(stream)
    }

    /// What can be sent while the container runs: layers of the image, which never change, and its memory for the first
    /// time.
    async fn seed(&mut self, reserved: &mut Reserved) -> Result<(), StepError> {
        self.enter(Phase::Seed)?;
        let began = Instant::now();
        for digest in reserved.reservation.layers_missing.clone() {
            let name = format!("layer:{digest}")
                .parse::<TreeName>()
                .map_err(|error| HostError::new("send a layer", error))?;
            let layer = self.host.layer(&name).await?;
            self.send(reserved, &layer).await?;
        }
        self.timings.record("layers", began, began.elapsed());
        self.pre_dump(reserved).await?;
        self.first_round(std::mem::take(&mut reserved.page_streams))
            .await?;
        self.conversation.say(Body::Seeded(Seeded {})).await?;
        match self.hear("seeded", SYNC).await? {
            Body::Seeded(_) => Ok(()),
            other => Err(unexpected("seeded", &other)),
        }
    }

    async fn freeze(&mut self) -> Result<(), Setback> {
        self.enter(Phase::Freeze)?;
        self.stop.forget_the_time();
        self.tell(SourceEvent::Freeze).await?;
        self.conversation.say(Body::Freezing(Freezing {})).await?;
        let host = Arc::clone(&self.host);
        self.timings.measure("settle", host.settle_network()).await?;
        self.tell(SourceEvent::StandsStill).await?;
        self.frozen_at = Some(Instant::now());
        self.freeze_at_full_speed().await?;
        self.timings.measure("network cut", host.cut_network()).await?;
        Ok(self.hand_over_arrivals().await?)
    }

    /// What is sent to the container waits at the destination from here on. What has come here since the cut goes with the
    /// images.
    async fn hand_over_arrivals(&mut self) -> Result<(), StepError> {
        let began = Instant::now();
        self.conversation.say(Body::Cut(Cut {})).await?;
        match self.hear("holding", REPLY).await? {
            Body::Holding(_) => {}
            other => return Err(unexpected("holding", &other)),
        }
        self.timings.record("destination holds", began, began.elapsed());
        Ok(self.host.gather_arrivals().await?)
    }

    async fn drain(&mut self, reserved: &mut Reserved) -> Result<(), Setback> {
        self.enter(Phase::Drain)?;
        let host = Arc::clone(&self.host);
        let images = self.dump().await?;
        for stage in &images.stages {
            self.timings.record(&stage.name, stage.start, stage.duration);
        }
        let mut trees = vec![Tree {
            name: TreeName::Images,
            path: images.path,
        }];
        trees.extend(host.frozen_trees().await?);
        for tree in &trees {
            self.enter(Phase::Drain)?;
            let began = Instant::now();
            self.send(reserved, tree).await?;
            self.timings
                .record(&format!("send {}", tree.name), began, began.elapsed());
        }
        send_end(&mut reserved.stream).await?;
        self.end_memory().await?;
        let digest = checkpoint_digest(&self.trees);
        self.tell(SourceEvent::AllSent { digest }).await?;
        let began = Instant::now();
        // The destination has all it needs, and nothing it does from here on needs CRIU to be gone.
        let leave = async {
            let left = host.finish_dump().await;
            (left, began.elapsed())
        };
        let ((left, leave_took), prepared) = tokio::join!(leave, self.hear("prepared", SYNC));
        self.timings.record("criu leaves", began, leave_took);
        left?;
        match prepared? {
            Body::Prepared(prepared) if prepared.digest == digest => {}
            Body::Prepared(_) => return Err(StepError::Digest.into()),
            other => return Err(unexpected("prepared", &other).into()),
        }
        self.timings.record("verified", began, began.elapsed());
        self.tell(SourceEvent::Heard(Message::Prepared { digest })).await
    }

    async fn hold(&mut self) -> Result<(), StepError> {
        self.enter(Phase::Hold)?;
        let began = Instant::now();
        match self.hear("ready", IMAGES).await? {
            Body::Ready(Ready { spans }) => self.peer_spans.extend(spans),
            other => return Err(unexpected("ready", &other)),
        }
        self.timings.record("restored and held", began, began.elapsed());
        Ok(())
    }

    /// The point of no return: the machine has the record written, and tells the destination to go.
    async fn commit(&mut self) -> Result<(), Setback> {
        self.enter(Phase::Commit)?;
        self.tell(SourceEvent::Heard(Message::Ready)).await
    }

    /// A broken stream is often only the shadow of something the destination has a better name for.
    async fn peers_own_words(&mut self, cause: StepError) -> StepError {
        if !matches!(cause, StepError::Transport(_)) {
            return cause;
        }
        match self.conversation.hear("a reason", WORDS).await {
            Err(theirs @ StepError::Destination { .. }) => theirs,
            _ => cause,
        }
    }

    async fn send(&mut self, reserved: &mut Reserved, tree: &Tree) -> Result<(), StepError> {
        let number = reserved.next_tree;
        let report = tokio::select! {
            report = send_tree(&mut reserved.stream, number, tree) => report?,
            why = self.stop.wanted() => return Err(why),
        };
        reserved.next_tree += 1;
        self.host.observe(Event::Tree(&report));
        self.trees.push(report);
        Ok(())
    }

    async fn hear(&mut self, waiting_for: &'static str, deadline: Duration) -> Result<Body, StepError> {
        tokio::select! {
            body = self.conversation.hear(waiting_for, deadline) => body,
            why = self.stop.wanted() => Err(why),
        }
    }

    /// Enters a phase that may still be cancelled.
    fn enter(&mut self, phase: Phase) -> Result<(), StepError> {
        if self.timings.phase() != phase {
            self.note(phase);
        }
        if self.stop.is_cancelled() {
            Err(StepError::Cancelled)
        } else {
            Ok(())
        }
    }

    fn note(&mut self, phase: Phase) {
        self.timings.enter(phase);
        tracing::info!(migration_id = %self.migration, role = "source", phase = crate::phase::name(phase), elapsed_ms = self.timings.elapsed_us() / 1000, "phase");
        self.host.observe(Event::Spans(self.timings.spans()));
        self.host.observe(Event::Phase(phase));
    }

    fn failure(&self, cause: impl Into<StepError>) -> Failure {
        Failure {
            phase: self.timings.phase(),
            cause: cause.into(),
        }
    }
}
