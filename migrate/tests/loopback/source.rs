//! A source that has real trees and a simulated container.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tranship_migrate::error::HostError;
use tranship_migrate::handoff::SourceStep;
use tranship_migrate::host::{
    ByteStream, CommitError, DestinationSays, DumpedImages, Event, MemoryMode, MemoryReader, SourceHost,
};
use tranship_migrate::trees::{Tree, TreeName};
use tranship_proto::v1::{Reserve, Standby};

use super::memory::SimulatedMemory;
use super::world::Shared;

/// What the source asks the destination for.
pub fn reservation() -> Reserve {
    Reserve {
        destination: "there".to_owned(),
        next_epoch: 8,
        ..Reserve::default()
    }
}

pub struct SimulatedSource {
    pub world: Shared,
    pub dir: PathBuf,
    pub streams: Mutex<VecDeque<tokio::io::DuplexStream>>,
}

#[async_trait]
impl SourceHost for SimulatedSource {
    async fn describe(&self) -> Result<Reserve, HostError> {
        self.world.enter("describe")?;
        Ok(Reserve {
            memory_bytes: self.world.with(|world| world.memory_bytes),
            ..reservation()
        })
    }

    async fn record(&self, step: SourceStep) -> Result<(), HostError> {
        self.world.with(|world| world.source_journal.push(step));
        self.world.enter("source record")?;
        match step {
            SourceStep::GivingUp => self.world.enter("record giving_up"),
            _ => Ok(()),
        }
    }

    async fn commit(&self, _digest: [u8; 32]) -> Result<(), CommitError> {
        self.world.enter("commit").map_err(CommitError::NotRecorded)?;
        self.world.enter("commit fsync").map_err(CommitError::Unknown)?;
        self.world
            .with(|world| world.source_journal.push(SourceStep::Committed));
        Ok(())
    }

    fn has_arbiter(&self) -> bool {
        false
    }

    async fn abandon(&self) -> Result<bool, HostError> {
        Err(HostError::new("ask the arbiter", "there is none"))
    }

    async fn own(&self, _epoch: u64) -> Result<(), HostError> {
        self.world.enter("own")
    }

    async fn memory_mode(&self) -> MemoryMode {
        if self.world.with(|world| world.pre_dump) {
            MemoryMode::PreDump("told to".to_owned())
        } else if self.world.with(|world| world.stop_and_copy) {
            MemoryMode::StopAndCopy("told to".to_owned())
        } else {
            MemoryMode::Live
        }
    }

    async fn track_memory(&self) -> Result<Box<dyn MemoryReader>, HostError> {
        self.world.enter("track memory")?;
        Ok(Box::new(SimulatedMemory::new(self.world.clone())))
    }

    async fn pre_dump(&self, round: u32) -> Result<Tree, HostError> {
        self.world.enter("pre-dump")?;
        assert!(
            self.world.with(|world| world.source_runs),
            "a pre-dump of what stands still"
        );
        let path = self.dir.join(format!("round-{round}"));
        std::fs::create_dir(&path).map_err(|error| HostError::new("pre-dump", error))?;
        // Each holds half of what the one before did.
        let pages = vec![7; (8 << 20) >> round];
        std::fs::write(path.join("pages-1.img"), pages).map_err(|error| HostError::new("pre-dump", error))?;
        tokio::time::sleep(Duration::from_millis(400 >> round)).await;
        let name = TreeName::Round(round);
        Ok(Tree { name, path })
    }

    async fn fixed_cost(&self) -> Option<Duration> {
        None
    }

    async fn copied_bytes_per_s(&self) -> u64 {
        100 << 20
    }

    async fn slow_down(&self, percent: Option<u8>) -> Result<(), HostError> {
        self.world.with(|world| world.slowed = percent.is_some());
        Ok(())
    }

    async fn open_stream(&self) -> Result<Box<dyn ByteStream>, HostError> {
        self.world.enter("open stream")?;
        let stream = self.streams.lock().unwrap().pop_front();
        Ok(Box::new(
            stream.ok_or_else(|| HostError::new("open stream", "taken"))?,
        ))
    }

    async fn layer(&self, name: &TreeName) -> Result<Tree, HostError> {
        self.world.enter("layer")?;
        Ok(Tree {
            name: name.clone(),
            path: self.dir.join("layer"),
        })
    }

    async fn standby(&self) -> Result<Standby, HostError> {
        self.world.enter("standby")?;
        Ok(Standby {
            descriptors: vec!["/dev/null".to_owned()],
            memory_in_images: false,
        })
    }

    async fn prepare_dump(&self) -> Result<MemoryMode, HostError> {
        self.world.enter("prepare dump")?;
        Ok(if self.world.with(|world| world.stop_and_copy_late) {
            MemoryMode::StopAndCopy("found out late".to_owned())
        } else {
            self.memory_mode().await
        })
    }

    async fn freeze(&self) -> Result<(), HostError> {
        self.world.with(|world| world.source_runs = false);
        self.world.enter("freeze")
    }

    async fn settle_network(&self) -> Result<(), HostError> {
        self.world
            .with(|world| assert!(world.source_runs, "nobody is left to settle"));
        self.world.enter("settle network")
    }

    async fn cut_network(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            world.source_on_network = false;
        });
        self.world.enter("cut network")
    }

    async fn gather_arrivals(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(!world.source_on_network, "gathered before the cut");
            assert!(world.calls.contains(&"hold network"), "gathered too early");
        });
        self.world.enter("gather arrivals")
    }

    async fn dump(&self) -> Result<DumpedImages, HostError> {
        self.world.enter("dump")?;
        Ok(DumpedImages {
            path: self.dir.join("images"),
            stages: Vec::new(),
        })
    }

    async fn finish_dump(&self) -> Result<(), HostError> {
        self.world.enter("finish dump")
    }

    async fn frozen_trees(&self) -> Result<Vec<Tree>, HostError> {
        self.world.enter("frozen trees")?;
        let volume = TreeName::Volume("data".parse().unwrap());
        Ok(vec![
            Tree {
                name: TreeName::Rootfs,
                path: self.dir.join("rootfs"),
            },
            Tree {
                name: volume,
                path: self.dir.join("volume"),
            },
        ])
    }

    async fn mend_network(&self) -> Result<(), HostError> {
        self.world.with(|world| world.source_on_network = true);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(
                !world.source_journal.contains(&SourceStep::Committed),
                "thawed after the commit"
            );
            world.source_runs = true;
        });
        Ok(())
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        Ok(())
    }

    async fn remove_copy(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(
                world.destination_runs,
                "the copy was removed before the destination ran"
            );
            world.copy_removed = true;
        });
        Ok(())
    }

    async fn ask_destination(&self) -> Result<DestinationSays, HostError> {
        Ok(self.world.with(|world| {
            if world.destination_runs {
                DestinationSays::Runs
            } else if world.destination_dropped {
                DestinationSays::Gone
            } else {
                DestinationSays::Waits
            }
        }))
    }

    fn observe(&self, _event: Event<'_>) {}
}
