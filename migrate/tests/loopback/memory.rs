//! Memory of a simulated container: written between rounds, read by rounds, and kept at the destination.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tranship_checkpoint::memory::{PageBatch, PageRun, PageSink};
use tranship_migrate::error::HostError;
use tranship_migrate::host::{MemoryReader, ReadError, RoundFacts};
use tranship_migrate::transport::PageKeeper;
use tranship_proto::pages::{PAGE_BYTES, Pages};

use super::world::Shared;

/// Pages of the container.
const PAGES: u64 = 3000;

/// How many of them it writes between two rounds, at first; each time half as many.
const WRITTEN: u64 = 2000;

/// What both ends know of the memory.
#[derive(Default)]
pub struct Memories {
    /// The generation in each page, by address.
    source: BTreeMap<u64, u8>,
    destination: BTreeMap<u64, (u32, u8)>,
}

impl Memories {
    /// Whether the destination has what the source had at last.
    pub fn agree(&self) -> bool {
        let arrived = self
            .destination
            .iter()
            .map(|(address, (_, generation))| (*address, *generation));
        !self.source.is_empty() && self.source.clone().into_iter().eq(arrived)
    }
}

pub struct SimulatedMemory {
    world: Shared,
    round: u8,
    dirty: u64,
    started: bool,
}

impl SimulatedMemory {
    pub fn new(world: Shared) -> Self {
        Self {
            world,
            round: 0,
            dirty: PAGES,
            started: false,
        }
    }

    fn send(&mut self, call: &'static str, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        self.world.enter(call)?;
        self.round += 1;
        let (pages, generation) = (self.dirty, self.round);
        self.dirty = if self.started { pages / 2 } else { WRITTEN };
        self.started = true;
        self.world.with(|world| {
            for page in 0..pages {
                world.memories.source.insert(page * PAGE_BYTES, generation);
            }
        });
        let zero = PageRun {
            start: PAGES * PAGE_BYTES * 2,
            pages: 1,
            zero: true,
        };
        self.world
            .with(|world| world.memories.source.insert(zero.start, 0));
        for first in (0..pages).step_by(200) {
            let count = (pages - first).min(200);
            let run = PageRun {
                start: first * PAGE_BYTES,
                pages: u32::try_from(count).unwrap(),
                zero: false,
            };
            let data = vec![generation; usize::try_from(run.bytes()).unwrap()];
            let batch = PageBatch {
                process: 1,
                runs: vec![run, zero],
                data,
            };
            sink.take(batch).map_err(|_| ReadError::Closed)?;
        }
        Ok(RoundFacts {
            pages,
            bytes: pages * PAGE_BYTES,
            ..RoundFacts::default()
        })
    }
}

impl MemoryReader for SimulatedMemory {
    fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        assert!(
            self.world.with(|world| world.source_runs),
            "a round of a container that stands still"
        );
        self.send("round", sink)
    }

    fn listing_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        self.round(sink)
    }

    fn frozen_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        assert!(
            !self.world.with(|world| world.source_runs),
            "the last round of a container that runs"
        );
        self.send("frozen round", sink)
    }

    fn last_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundFacts, ReadError> {
        self.dirty = 1;
        self.send("last round", sink)
    }

    fn pending_bytes(&mut self) -> Result<u64, HostError> {
        self.world.enter("look at the memory")?;
        Ok(self.dirty * PAGE_BYTES)
    }
}

/// Where the destination keeps pages.
pub struct Keeper(pub Arc<Mutex<super::world::World>>);

impl PageKeeper for Keeper {
    fn put(&self, round: u32, pages: &Pages<'_>) -> Result<(), HostError> {
        Shared(Arc::clone(&self.0)).enter("keep pages")?;
        let mut world = self.0.lock().unwrap();
        let mut data = pages.data;
        for run in &pages.runs {
            for page in 0..u64::from(run.pages) {
                let generation = if run.zero { 0 } else { data[0] };
                if !run.zero {
                    assert!(data[..4096].iter().all(|byte| *byte == generation));
                    data = &data[4096..];
                }
                let kept = world
                    .memories
                    .destination
                    .entry(run.start + page * PAGE_BYTES)
                    .or_default();
                if round >= kept.0 {
                    *kept = (round, generation);
                }
            }
        }
        Ok(())
    }
}
