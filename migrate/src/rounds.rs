//! The source's side of memory: rounds of pages that were written, sent while the container runs, and the last ones while
//! it stands still.
//!
//! A reader finds and reads pages on a thread of its own; [`PageSenders`] carry them away. A round has ended when the
//! destination has stored all of it, so that what a round took is what the blackout is predicted from.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tranship_checkpoint::memory::{PageBatch, PageSink, SinkClosed};
use tranship_proto::v1::{Progress, Round};

use crate::convergence::Facts;
use crate::error::{HostError, StepError};
use crate::host::{MemoryReader, ReadError, RoundFacts};
use crate::timings::micros;
use crate::transport::{PageSenders, RoundSink, TransportError};
use crate::trees::TreeReport;

/// A round that sends less than this says nothing about throughput: it is over before the connection is busy.
const TELLING_BYTES: u64 = 8 << 20;

/// Throughput as long as no round has shown it, in bytes a second: half of what two busy cores reach over loopback.
const ASSUMED_BYTES_PER_S: u64 = 500_000_000;

/// Which pages a round is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Those written since the round before, while the container runs.
    Running,
    /// The same, and all pages are listed, so that this takes less time when the container stands still.
    Listing,
    /// Those written since, while it stands still.
    Frozen,
    /// What is missing of all it has in the end.
    Last,
}

/// The memory of a container on its way.
pub struct Memory {
    reader: Option<Box<dyn MemoryReader>>,
    senders: PageSenders,
    sent: Arc<AtomicU64>,
    rounds: Vec<Round>,
    bytes_per_s: u64,
    scanned_at: Instant,
    facts: Option<Facts>,
}

impl Memory {
    /// Nothing has been sent yet.
    #[must_use]
    pub fn new(reader: Box<dyn MemoryReader>, senders: PageSenders) -> Self {
        Self {
            reader: Some(reader),
            senders,
            sent: Arc::default(),
            rounds: Vec::new(),
            bytes_per_s: ASSUMED_BYTES_PER_S,
            scanned_at: Instant::now(),
            facts: None,
        }
    }

    /// Reads one round and hands it to the streams. What it sent is on its way when this returns, not there.
    ///
    /// # Errors
    /// The memory cannot be read, or a stream has failed.
    pub async fn read(&mut self, pass: Pass) -> Result<Round, StepError> {
        let number = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        let Some(mut reader) = self.reader.take() else {
            return Err(HostError::new("read the container's memory", "an earlier attempt failed").into());
        };
        let mut sink = Counted {
            sink: self.senders.sink(number),
            sent: Arc::clone(&self.sent),
        };
        self.scanned_at = Instant::now();
        let reading = tokio::task::spawn_blocking(move || {
            let facts = match pass {
                Pass::Running => reader.round(&mut sink),
                Pass::Listing => reader.listing_round(&mut sink),
                Pass::Frozen => reader.frozen_round(&mut sink),
                Pass::Last => reader.last_round(&mut sink),
            };
            (reader, facts)
        });
        let (reader, facts) = reading.await.map_err(|_| TransportError::Worker)?;
        self.reader = Some(reader);
        let facts = match facts {
            Ok(facts) => facts,
            Err(ReadError::Closed) => return Err(self.senders.failure().await.into()),
            Err(ReadError::Host(error)) => return Err(error.into()),
        };
        let round = described(number, &facts, pass);
        self.rounds.push(round);
        Ok(round)
    }

    /// Marks the end of the round that was read last; the destination answers when it has stored it.
    ///
    /// # Errors
    /// A stream has failed.
    pub async fn end_round(&mut self) -> Result<u32, StepError> {
        let number = self.rounds.last().map_or(0, |round| round.number);
        self.senders.end_round(number).await?;
        Ok(number)
    }

    /// The destination has stored the round that was read last, so long after it began.
    pub fn stored(&mut self, took: Duration) -> Option<Round> {
        let round = self.rounds.last_mut()?;
        round.duration_us = micros(took);
        if round.bytes >= TELLING_BYTES {
            self.bytes_per_s = per_second(round.bytes, took);
        }
        Some(*round)
    }

    /// Looks at what a round would send now.
    ///
    /// # Errors
    /// The memory cannot be looked at.
    pub async fn look(&mut self, elapsed: Duration, fixed: Duration) -> Result<Facts, StepError> {
        let Some(mut reader) = self.reader.take() else {
            return Err(HostError::new("read the container's memory", "an earlier attempt failed").into());
        };
        let looking = tokio::task::spawn_blocking(move || {
            let pending = reader.pending_bytes();
            (reader, pending)
        });
        let (reader, pending) = looking.await.map_err(|_| TransportError::Worker)?;
        self.reader = Some(reader);
        let remaining_bytes = pending?;
        let facts = Facts {
            elapsed,
            remaining_bytes,
            dirty_bytes_per_s: per_second(remaining_bytes, self.scanned_at.elapsed()),
            bytes_per_s: self.bytes_per_s,
            fixed,
        };
        self.facts = Some(facts);
        Ok(facts)
    }

    /// Where things stand, for whoever watches.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let round = u32::try_from(self.rounds.len()).unwrap_or(u32::MAX);
        Progress {
            round,
            dirty_bytes_per_s: self.facts.map_or(0, |facts| facts.dirty_bytes_per_s),
            sent_bytes: self.sent.load(Ordering::Relaxed),
            throughput_bytes_per_s: self.bytes_per_s,
            remaining_bytes: self.facts.map_or(0, |facts| facts.remaining_bytes),
            predicted_blackout_us: self.facts.map_or(0, |facts| micros(facts.predicted())),
            eta_ms: self.facts.map_or(0, |facts| {
                u64::try_from(facts.memory().as_millis()).unwrap_or(u64::MAX)
            }),
        }
    }

    /// The same while a round is read, for another task.
    #[must_use]
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// The rounds so far.
    #[must_use]
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// Ends the streams. The reader is given back, because to let go of it takes time: the container's memory is gone
    /// through once more.
    ///
    /// # Errors
    /// A stream has failed.
    pub async fn finish(self) -> Result<Finished, StepError> {
        Ok(Finished {
            report: self.senders.finish().await?,
            rounds: self.rounds,
            reader: self.reader,
        })
    }
}

/// What is left of a container's memory when all of it was sent.
pub struct Finished {
    /// All streams.
    pub report: TreeReport,
    /// The rounds.
    pub rounds: Vec<Round>,
    /// To be dropped where nothing waits for it.
    pub reader: Option<Box<dyn MemoryReader>>,
}

pub(crate) fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

fn described(number: u32, facts: &RoundFacts, pass: Pass) -> Round {
    Round {
        number,
        pages: facts.pages,
        zero_pages: facts.zero_pages,
        bytes: facts.bytes,
        scan_us: micros(facts.scan),
        read_us: micros(facts.read),
        duration_us: 0,
        frozen: matches!(pass, Pass::Frozen | Pass::Last),
    }
}

/// Counts what goes through.
struct Counted {
    sink: RoundSink,
    sent: Arc<AtomicU64>,
}

impl PageSink for Counted {
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed> {
        let bytes = batch.data.len() as u64;
        self.sink.take(batch)?;
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}
