//! The part of the source's role that is about memory: rounds until the freeze, and what is left after it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Phase, RoundStored, Standby};

use super::{Reserved, Source};
use crate::control::unexpected;
use crate::convergence::{Convergence, Decision};
use crate::deadlines::{REPLY, STALL, SYNC};
use crate::error::{ControlError, HostError, StepError};
use crate::host::{ByteStream, DumpedImages, Event, MemoryMode};
use crate::rounds::{Finished, Memory, Pass};
use crate::transport::{Pace, PageSenders, TransportError};

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
        self.round(Pass::Running).await
    }

    /// Memory in rounds until the rest is small enough for the blackout. What else can be done before the freeze is done
    /// here, at last.
    pub(super) async fn rounds(&mut self, reserved: &mut Reserved) -> Result<(), StepError> {
        self.enter(Phase::Rounds)?;
        let mut convergence = Convergence::new(self.plan.wishes);
        let mut prepared = false;
        loop {
            self.enter(Phase::Rounds)?;
            let decision = self.decide(&mut convergence).await?;
            match decision {
                Decision::Freeze if prepared => return Ok(()),
                Decision::Freeze => {
                    self.round(Pass::Listing).await?;
                    self.prepare().await?;
                    prepared = true;
                    if self.chain.is_some() {
                        // The dump that was prepared follows on the last round: there can be no more.
                        return Ok(());
                    }
                }
                Decision::Round if self.chain.is_some() => self.pre_dump(reserved).await?,
                Decision::Round => self.round(Pass::Running).await?,
                Decision::Slow(percent) => {
                    self.slow_down(percent).await?;
                    self.round(Pass::Running).await?;
                }
                Decision::GiveUp(why) => return Err(why.into()),
            }
        }
    }

    async fn decide(&mut self, convergence: &mut Convergence) -> Result<Decision, StepError> {
        let elapsed = Duration::from_micros(self.timings.elapsed_us());
        if let Some(decision) = self.decide_chain(convergence, elapsed) {
            return Ok(decision);
        }
        let Some(memory) = &mut self.memory else {
            return Ok(Decision::Freeze);
        };
        let facts = memory.look(elapsed, self.fixed).await?;
        let decision = convergence.decide(&facts);
        self.stop.explain(convergence.when_time_is_up(&facts));
        tracing::debug!(migration_id = %self.migration, remaining_bytes = facts.remaining_bytes, predicted_ms = facts.predicted().as_millis(), ?decision, "between rounds");
        self.host.observe(Event::Progress(&memory.progress()));
        Ok(decision)
    }

    /// One round, until the destination has stored it.
    async fn round(&mut self, pass: Pass) -> Result<(), StepError> {
        let Some(mut memory) = self.memory.take() else {
            return Ok(());
        };
        let ended = self.round_of(&mut memory, pass).await;
        self.memory = Some(memory);
        ended
    }

    async fn round_of(&mut self, memory: &mut Memory, pass: Pass) -> Result<(), StepError> {
        let began = Instant::now();
        self.read_watched(memory, pass).await?;
        // What was read before waits for room in the streams.
        let number = tokio::select! {
            ended = memory.end_round() => ended?,
            why = self.stop.wanted() => return Err(why),
        };
        match self.hear("round stored", SYNC).await? {
            Body::RoundStored(RoundStored { round }) if round == number => {}
            other => return Err(unexpected("round stored", &other)),
        }
        let took = began.elapsed();
        self.timings.record(&format!("round {number}"), began, took);
        if let Some(round) = memory.stored(took) {
            self.host.observe(Event::Round(&round));
        }
        Ok(())
    }

    async fn read_watched(&mut self, memory: &mut Memory, pass: Pass) -> Result<(), StepError> {
        let (mut progress, sent) = (memory.progress(), memory.counter());
        let mut ticks = tokio::time::interval(PROGRESS);
        let reading = memory.read(pass);
        tokio::pin!(reading);
        loop {
            tokio::select! {
                read = &mut reading => return read.map(drop),
                why = self.stop.wanted() => return Err(why),
                // Nothing is due meanwhile, but the destination may be gone long before a stream notices.
                heard = self.conversation.hear("the end of a round", STALL) => match heard {
                    Err(StepError::Control(ControlError::Deadline { .. })) => {}
                    Err(error) => return Err(error),
                    Ok(body) => return Err(unexpected("nothing", &body)),
                },
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
        let mode = self
            .timings
            .measure("prepare the dump", host.prepare_dump())
            .await?;
        self.standing_by("destination prepares").await?;
        match mode {
            MemoryMode::StopAndCopy(_) if self.memory.is_some() => self.stop_and_copy(mode).await,
            _ => Ok(()),
        }
    }

    async fn standing_by(&mut self, name: &str) -> Result<(), StepError> {
        let began = Instant::now();
        match self.hear("standby", REPLY).await? {
            Body::Standby(_) => {}
            other => return Err(unexpected("standby", &other)),
        }
        self.timings.record(name, began, began.elapsed());
        Ok(())
    }

    /// The dump will hold the memory. What was sent of it is of no use then, and nobody follows it any more.
    async fn stop_and_copy(&mut self, mode: MemoryMode) -> Result<(), StepError> {
        tracing::warn!(migration_id = %self.migration, memory = %mode, "the memory moves in another way than was meant");
        self.host.observe(Event::MemoryMode(&mode));
        self.memory_mode = mode;
        if let Some(why) = self.out_of_reach().await {
            return Err(why.into());
        }
        self.full_speed().await?;
        self.end_memory().await?;
        let followed = self.followed.take();
        let let_go = tokio::task::spawn_blocking(move || drop(followed));
        let_go.await.map_err(|_| TransportError::Worker)?;
        let standby = Standby {
            memory_in_images: true,
            ..self.host.standby().await?
        };
        self.conversation.say(Body::Standby(standby)).await?;
        self.standing_by("destination prepares again").await
    }

    async fn slow_down(&mut self, percent: u8) -> Result<(), HostError> {
        let host = Arc::clone(&self.host);
        // Also when it fails: then it may be half done.
        self.slowed = true;
        tracing::info!(migration_id = %self.migration, percent, "the container is slowed down: it writes memory faster than it can be sent");
        let name = format!("slow down to {percent} %");
        self.timings.measure(&name, host.slow_down(Some(percent))).await
    }

    /// One that is slowed down gets its CPU time back only when its tasks are told to stop: they need some to do so, and
    /// CRIU's code in them more. Earlier it would write memory that must be sent while it stands still.
    pub(super) async fn freeze_at_full_speed(&mut self) -> Result<(), HostError> {
        let (host, began) = (Arc::clone(&self.host), Instant::now());
        let (frozen, sped_up) = tokio::join!(timed(host.freeze()), self.full_speed());
        self.timings.record("freezer", began, frozen.1);
        frozen.0.and(sped_up)
    }

    /// Gives back the CPU time that was taken away.
    pub(super) async fn full_speed(&mut self) -> Result<(), HostError> {
        if self.slowed {
            let host = Arc::clone(&self.host);
            self.timings.measure("full speed", host.slow_down(None)).await?;
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
