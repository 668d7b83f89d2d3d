//! The part of the source's role that is about memory: rounds until the freeze, and what is left after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Phase, RoundStored};

use super::{Source, is_set};
use crate::control::unexpected;
use crate::convergence::{ASSUMED_FIXED, Convergence, Decision};
use crate::deadlines::{REPLY, SYNC};
use crate::error::{HostError, StepError};
use crate::host::{ByteStream, DumpedImages, Event};
use crate::rounds::{Finished, Memory, Pass};
use crate::transport::{Pace, PageSenders};

/// Between two looks of whoever watches a long round.
const PROGRESS: Duration = Duration::from_millis(200);

impl Source {
    pub(super) async fn first_round(&mut self, streams: Vec<Box<dyn ByteStream>>) -> Result<(), StepError> {
        if streams.is_empty() {
            return Ok(());
        }
        let host = Arc::clone(&self.host);
        let reader = self
            .timings
            .measure("follow the memory", host.track_memory())
            .await?;
        let senders = PageSenders::start(streams, Pace::new(self.plan.max_bandwidth));
        self.memory = Some(Memory::new(reader, senders));
        self.round().await
    }

    /// Memory in rounds until the rest is small enough for the blackout. What else can be done before the freeze is done
    /// here, at last.
    pub(super) async fn rounds(&mut self) -> Result<(), StepError> {
        self.enter(Phase::Rounds)?;
        let host = Arc::clone(&self.host);
        let fixed = host.fixed_cost().await.unwrap_or(ASSUMED_FIXED);
        let mut convergence = Convergence::new(self.plan.wishes);
        let mut prepared = false;
        loop {
            self.enter(Phase::Rounds)?;
            let decision = self.decide(&mut convergence, fixed).await?;
            match decision {
                Decision::Freeze if prepared => return Ok(()),
                Decision::Freeze => {
                    self.prepare().await?;
                    prepared = true;
                }
                Decision::Round => self.round().await?,
                Decision::Slow(percent) => {
                    self.slowed = true;
                    host.slow_down(Some(percent)).await?;
                    self.round().await?;
                }
                Decision::GiveUp(why) => return Err(why.into()),
            }
        }
    }

    async fn decide(
        &mut self,
        convergence: &mut Convergence,
        fixed: Duration,
    ) -> Result<Decision, StepError> {
        let elapsed = Duration::from_micros(self.timings.elapsed_us());
        let Some(memory) = &mut self.memory else {
            return Ok(Decision::Freeze);
        };
        let facts = memory.look(elapsed, fixed).await?;
        let decision = convergence.decide(&facts);
        tracing::debug!(migration_id = %self.migration, remaining_bytes = facts.remaining_bytes, predicted_ms = facts.predicted().as_millis(), ?decision, "between rounds");
        self.host.observe(Event::Progress(&memory.progress()));
        Ok(decision)
    }

    /// One round, until the destination has stored it.
    async fn round(&mut self) -> Result<(), StepError> {
        let Some(mut memory) = self.memory.take() else {
            return Ok(());
        };
        let began = Instant::now();
        self.read_watched(&mut memory).await?;
        let number = memory.end_round().await?;
        match self.hear("round stored", SYNC).await? {
            Body::RoundStored(RoundStored { round }) if round == number => {}
            other => return Err(unexpected("round stored", &other)),
        }
        let took = began.elapsed();
        self.timings.record(&format!("round {number}"), began, took);
        if let Some(round) = memory.stored(took) {
            self.host.observe(Event::Round(&round));
        }
        self.memory = Some(memory);
        Ok(())
    }

    async fn read_watched(&mut self, memory: &mut Memory) -> Result<(), StepError> {
        let (mut progress, sent) = (memory.progress(), memory.counter());
        let mut ticks = tokio::time::interval(PROGRESS);
        let reading = memory.read(Pass::Running);
        tokio::pin!(reading);
        loop {
            tokio::select! {
                read = &mut reading => return read.map(drop),
                () = is_set(&mut self.cancelled) => return Err(StepError::Cancelled),
                _ = ticks.tick() => {
                    progress.sent_bytes = sent.load(Ordering::Relaxed);
                    self.host.observe(Event::Progress(&progress));
                }
            }
        }
    }

    /// Both hosts start what they need for the time in which the container stands still.
    async fn prepare(&mut self) -> Result<(), StepError> {
        let host = Arc::clone(&self.host);
        self.conversation
            .say(Body::Standby(host.standby().await?))
            .await?;
        self.timings
            .measure("prepare the dump", host.prepare_dump())
            .await?;
        let began = Instant::now();
        match self.hear("standby", REPLY).await? {
            Body::Standby(_) => {}
            other => return Err(unexpected("standby", &other)),
        }
        self.timings
            .record("destination prepares", began, began.elapsed());
        Ok(())
    }

    /// CRIU's code runs inside the container, and is not to be slowed down with it.
    pub(super) async fn full_speed(&mut self) -> Result<(), HostError> {
        if self.slowed {
            self.host.slow_down(None).await?;
            self.slowed = false;
        }
        Ok(())
    }

    /// The state by CRIU, and beside it the pages that were written last.
    pub(super) async fn dump(&mut self) -> Result<DumpedImages, StepError> {
        let host = Arc::clone(&self.host);
        let Some(memory) = &mut self.memory else {
            return Ok(self.timings.measure("dump", host.dump()).await?);
        };
        let began = Instant::now();
        let ((images, dumped), (round, read)) =
            tokio::join!(timed(host.dump()), timed(memory.read(Pass::Frozen)));
        self.timings.record("dump", began, dumped);
        self.timings.record("last written pages", began, read);
        let (images, _) = (images?, round?);
        let began = Instant::now();
        memory.read(Pass::Last).await?;
        self.timings.record("list of pages", began, began.elapsed());
        Ok(images)
    }

    pub(super) async fn end_memory(&mut self) -> Result<(), StepError> {
        let Some(memory) = self.memory.take() else {
            return Ok(());
        };
        let began = Instant::now();
        let Finished {
            report,
            rounds,
            reader,
        } = memory.finish().await?;
        self.timings.record("send memory", began, began.elapsed());
        self.host.observe(Event::Tree(&report));
        self.trees.push(report);
        self.rounds = rounds;
        self.followed = reader;
        Ok(())
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let result = work.await;
    (result, began.elapsed())
}
