//! What the two simulated hosts of a test share.

use std::sync::{Arc, Mutex};

use tranship_migrate::convergence::Wishes;
use tranship_migrate::error::HostError;
use tranship_migrate::handoff::{DestinationStep, SourceStep};

use super::memory::Memories;

/// What both hosts share: who runs, what was journaled, and what is to fail.
#[derive(Default)]
pub struct World {
    pub source_runs: bool,
    pub source_on_network: bool,
    pub destination_holds: bool,
    pub destination_runs: bool,
    pub destination_on_network: bool,
    pub destination_dropped: bool,
    pub copy_removed: bool,
    pub source_journal: Vec<SourceStep>,
    pub destination_journal: Vec<DestinationStep>,
    pub stop_and_copy: bool,
    pub pre_dump: bool,
    /// It turns out only at the dump's preparation.
    pub stop_and_copy_late: bool,
    pub memory_in_images: bool,
    pub memory_bytes: u64,
    /// What a person asks for; nothing for 100 ms that nobody insists on.
    pub wishes: Option<Wishes>,
    pub memories: Memories,
    pub slowed: bool,
    pub secured: bool,
    pub fail: Option<&'static str>,
    /// Whoever closes a stream of the destination gets no further for a while.
    pub slow_to_close: bool,
    /// After so many times it does not fail any more.
    pub fail_times: usize,
    pub calls: Vec<&'static str>,
}

#[derive(Clone)]
pub struct Shared(pub Arc<Mutex<World>>);

impl Shared {
    pub fn enter(&self, call: &'static str) -> Result<(), HostError> {
        let mut world = self.0.lock().unwrap();
        world.calls.push(call);
        if world.fail == Some(call) && world.fail_times > 0 {
            world.fail_times -= 1;
            Err(HostError::new(call, "told to fail"))
        } else {
            Ok(())
        }
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}
