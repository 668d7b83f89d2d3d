//! Hosts and connections with a fault point at each thing they do. Steps of the journal have theirs in [`Journal::append`].
//!
//! [`Journal::append`]: super::super::journal::Journal::append

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tranship_migrate::control::{Control, name};
use tranship_migrate::error::{ControlError, HostError};
use tranship_migrate::handoff::{
    DestinationSays, DestinationStep, Inspection, Resolution, SourceStep, Verdict,
};
use tranship_migrate::host::{
    AcceptedStream, ByteStream, CommitError, DestinationHost, DumpedImages, Event, HeldRestore, MemoryMode,
    MemoryReader, Reservation, ReserveError, SourceHost, Stage,
};
use tranship_migrate::transport::{PageKeeper, TreeSink};
use tranship_migrate::trees::{Tree, TreeName};
use tranship_proto::v1::{MigrateMessage, Reserve, Standby};

use super::Injected;
use super::points::at;

/// The source's side, point by point.
pub fn source<H: SourceHost + 'static>(host: Arc<H>) -> Arc<dyn SourceHost> {
    Arc::new(Source(host))
}

/// The destination's side, point by point.
pub fn destination<H: DestinationHost + 'static>(host: Arc<H>) -> Arc<dyn DestinationHost> {
    Arc::new(Destination(host))
}

/// A connection with a point at each message, sent and received.
pub fn conversation<C: Control + 'static>(role: &'static str, control: C) -> Box<dyn Control> {
    Box::new(Messages {
        role,
        control,
        received: None,
    })
}

fn failed(injected: Injected) -> HostError {
    HostError::new("do what a test does not want done", injected)
}

struct Source<H>(Arc<H>);

#[async_trait]
impl<H: SourceHost> SourceHost for Source<H> {
    async fn describe(&self) -> Result<Reserve, HostError> {
        at("source:describe", failed, self.0.describe()).await
    }

    async fn track_memory(&self) -> Result<Box<dyn MemoryReader>, HostError> {
        at("source:track-memory", failed, self.0.track_memory()).await
    }

    async fn pre_dump(&self, round: u32) -> Result<Tree, HostError> {
        at("source:pre-dump", failed, self.0.pre_dump(round)).await
    }

    async fn slow_down(&self, percent: Option<u8>) -> Result<(), HostError> {
        at("source:slow-down", failed, self.0.slow_down(percent)).await
    }

    async fn open_stream(&self) -> Result<Box<dyn ByteStream>, HostError> {
        at("source:open-stream", failed, self.0.open_stream()).await
    }

    async fn layer(&self, name: &TreeName) -> Result<Tree, HostError> {
        at("source:layer", failed, self.0.layer(name)).await
    }

    async fn standby(&self) -> Result<Standby, HostError> {
        at("source:standby", failed, self.0.standby()).await
    }

    async fn prepare_dump(&self) -> Result<MemoryMode, HostError> {
        at("source:prepare-dump", failed, self.0.prepare_dump()).await
    }

    async fn freeze(&self) -> Result<(), HostError> {
        at("source:freeze", failed, self.0.freeze()).await
    }

    async fn settle_network(&self) -> Result<(), HostError> {
        at("source:settle-network", failed, self.0.settle_network()).await
    }

    async fn cut_network(&self) -> Result<(), HostError> {
        at("source:cut-network", failed, self.0.cut_network()).await
    }

    async fn gather_arrivals(&self) -> Result<(), HostError> {
        at("source:gather-arrivals", failed, self.0.gather_arrivals()).await
    }

    async fn dump(&self) -> Result<DumpedImages, HostError> {
        at("source:dump", failed, self.0.dump()).await
    }

    async fn finish_dump(&self) -> Result<(), HostError> {
        at("source:finish-dump", failed, self.0.finish_dump()).await
    }

    async fn frozen_trees(&self) -> Result<Vec<Tree>, HostError> {
        at("source:frozen-trees", failed, self.0.frozen_trees()).await
    }

    async fn mend_network(&self) -> Result<(), HostError> {
        at("source:mend-network", failed, self.0.mend_network()).await
    }

    async fn thaw(&self) -> Result<(), HostError> {
        at("source:thaw", failed, self.0.thaw()).await
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        at("source:drop-staging", failed, self.0.drop_staging()).await
    }

    async fn remove_copy(&self) -> Result<(), HostError> {
        at("source:remove-copy", failed, self.0.remove_copy()).await
    }

    async fn ask_destination(&self) -> Result<DestinationSays, HostError> {
        at("source:ask-destination", failed, self.0.ask_destination()).await
    }

    async fn record(&self, step: SourceStep) -> Result<(), HostError> {
        self.0.record(step).await
    }

    async fn commit(&self, digest: [u8; 32]) -> Result<(), CommitError> {
        self.0.commit(digest).await
    }

    fn has_arbiter(&self) -> bool {
        self.0.has_arbiter()
    }

    async fn abandon(&self) -> Result<bool, HostError> {
        at("source:abandon", failed, self.0.abandon()).await
    }

    async fn own(&self, epoch: u64) -> Result<(), HostError> {
        at("source:own", failed, self.0.own(epoch)).await
    }

    async fn memory_mode(&self) -> MemoryMode {
        self.0.memory_mode().await
    }

    async fn fixed_cost(&self) -> Option<Duration> {
        self.0.fixed_cost().await
    }

    async fn copied_bytes_per_s(&self) -> u64 {
        self.0.copied_bytes_per_s().await
    }

    fn observe(&self, event: Event<'_>) {
        self.0.observe(event);
    }
}

struct Destination<H>(Arc<H>);

#[async_trait]
impl<H: DestinationHost> DestinationHost for Destination<H> {
    async fn reserve(&self, reserve: &Reserve) -> Result<Reservation, ReserveError> {
        let fail = |injected| ReserveError::Failed(failed(injected));
        at("destination:reserve", fail, self.0.reserve(reserve)).await
    }

    async fn restore_held(&self) -> Result<Box<dyn HeldRestore>, HostError> {
        let held = at("destination:restore-held", failed, self.0.restore_held()).await?;
        Ok(Box::new(Held(held)))
    }

    async fn accept_stream(&self) -> Result<AcceptedStream, HostError> {
        at("destination:accept-stream", failed, self.0.accept_stream()).await
    }

    async fn page_keeper(&self) -> Result<Arc<dyn PageKeeper>, HostError> {
        at("destination:page-keeper", failed, self.0.page_keeper()).await
    }

    async fn memory_complete(&self) -> Result<(), HostError> {
        at("destination:memory-complete", failed, self.0.memory_complete()).await
    }

    async fn layers_complete(&self) -> Result<(), HostError> {
        at("destination:layers-complete", failed, self.0.layers_complete()).await
    }

    async fn hold_network(&self) -> Result<(), HostError> {
        at("destination:hold-network", failed, self.0.hold_network()).await
    }

    async fn prepare_restore(&self, standby: &Standby) -> Result<(), HostError> {
        at(
            "destination:prepare-restore",
            failed,
            self.0.prepare_restore(standby),
        )
        .await
    }

    async fn secure(&self) -> Result<(), HostError> {
        at("destination:secure", failed, self.0.secure()).await
    }

    /// A host whose container cannot be plugged in goes on trying by itself, so one that is told to fail tries once more.
    async fn plug_network(&self) -> Result<(), HostError> {
        let plugged = at("destination:plug-network", failed, self.0.plug_network()).await;
        if plugged.is_err() {
            self.0.plug_network().await?;
        }
        plugged
    }

    async fn adopt(&self) -> Result<(), HostError> {
        at("destination:adopt", failed, self.0.adopt()).await
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        at("destination:drop-staging", failed, self.0.drop_staging()).await
    }

    async fn drop_all(&self) -> Result<(), HostError> {
        at("destination:drop-all", failed, self.0.drop_all()).await
    }

    async fn inspect(&self) -> Result<Inspection, HostError> {
        at("destination:inspect", failed, self.0.inspect()).await
    }

    async fn ask_source(&self) -> Result<Verdict, HostError> {
        at("destination:ask-source", failed, self.0.ask_source()).await
    }

    fn has_arbiter(&self) -> bool {
        self.0.has_arbiter()
    }

    async fn claim(&self) -> Result<Verdict, HostError> {
        at("destination:claim", failed, self.0.claim()).await
    }

    async fn resolved(&self) -> Resolution {
        self.0.resolved().await
    }

    async fn record(&self, step: DestinationStep) -> Result<(), HostError> {
        self.0.record(step).await
    }

    fn sink(&self) -> Arc<dyn TreeSink> {
        self.0.sink()
    }

    fn observe(&self, event: Event<'_>) {
        self.0.observe(event);
    }
}

struct Held(Box<dyn HeldRestore>);

#[async_trait]
impl HeldRestore for Held {
    fn stages(&self) -> &[Stage] {
        self.0.stages()
    }

    async fn release(&mut self) -> Result<(), HostError> {
        at("destination:release", failed, self.0.release()).await
    }

    async fn running(self: Box<Self>) -> Result<Vec<Stage>, HostError> {
        at("destination:running", failed, self.0.running()).await
    }

    async fn abandon(self: Box<Self>) -> Result<(), HostError> {
        at("destination:abandon", failed, self.0.abandon()).await
    }
}

struct Messages<C> {
    role: &'static str,
    control: C,
    /// What came and was not taken: whoever waits for it may do something else while the point is held.
    received: Option<MigrateMessage>,
}

impl<C> Messages<C> {
    fn point(&self, verb: &str, message: &MigrateMessage) -> String {
        let word = message.body.as_ref().map_or("nothing", name);
        format!("{}:{verb}-{}", self.role, word.replace(' ', "-"))
    }
}

fn lost(injected: Injected) -> ControlError {
    ControlError::Failed(Box::new(injected))
}

#[async_trait]
impl<C: Control> Control for Messages<C> {
    async fn send(&mut self, message: MigrateMessage) -> Result<(), ControlError> {
        let point = self.point("send", &message);
        at(point, lost, self.control.send(message)).await
    }

    async fn receive(&mut self) -> Result<Option<MigrateMessage>, ControlError> {
        if self.received.is_none() {
            self.received = self.control.receive().await?;
        }
        let Some(message) = &self.received else {
            return Ok(None);
        };
        let point = self.point("receive", message);
        let passed = at(point, lost, async { Ok(()) }).await;
        let message = self.received.take();
        passed.map(|()| message)
    }
}
