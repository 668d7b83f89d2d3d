//! What the filler and the others say to each other.
//!
//! ```text
//! CRIU   -> filler   pid (4 bytes), then one byte with a descriptor; or minus the pid of a zombie; at last FINISHED
//! filler -> holder   keep N with a descriptor | release N | complete | aborted | failed      one JSON object a packet
//! holder -> filler   released N
//! filler -> daemon   listening | restored | complete | aborted | failed                      one JSON object a line
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What CRIU sends when every task is restored and is about to run: no pid can be this large.
const FINISHED: u32 = 0x5253_5446;

/// Largest pid that the kernel gives.
const MAX_PID: i32 = 1 << 22;

/// One step of what CRIU says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FromCriu {
    /// A descriptor of this process comes next.
    Process(u32),
    /// A process that has ended already: nothing follows.
    Zombie,
    /// Everything is restored.
    Finished,
}

impl FromCriu {
    /// What four bytes mean; nothing if they cannot be CRIU's.
    pub fn of(bytes: [u8; 4]) -> Option<Self> {
        if u32::from_ne_bytes(bytes) == FINISHED {
            return Some(Self::Finished);
        }
        match i32::from_ne_bytes(bytes) {
            pid @ 1..=MAX_PID => Some(Self::Process(pid.unsigned_abs())),
            pid if (-MAX_PID..0).contains(&pid) => Some(Self::Zombie),
            _ => None,
        }
    }
}

/// What the filler tells the holder of its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToHolder {
    /// The descriptor that comes with this is to be kept.
    Keep(u32),
    /// It may be closed: everything is there.
    Release(u32),
    /// The memory of the container is complete.
    Complete,
    /// The restore was given up before anything ran.
    Aborted,
    /// The memory cannot be completed, and the container must not go on.
    Failed(String),
}

/// What the holder tells the filler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromHolder {
    /// A descriptor is closed.
    Released(u32),
}

/// What the filler tells the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// A restore may begin.
    Listening,
    /// Everything is restored and about to run.
    Restored,
    /// The memory of the container is complete.
    Complete(Figures),
    /// The restore was given up before anything ran.
    Aborted,
    /// The memory cannot be completed; the holder ends the container.
    Failed(String),
}

/// What a filling took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Processes that were filled, forked ones included.
    pub processes: u64,
    /// Bytes copied before the container ran.
    pub hot_bytes: u64,
    /// Bytes copied afterwards, those of faults included.
    pub filled_bytes: u64,
    /// Bytes of the store that were given back before the end.
    pub given_back_bytes: u64,
    /// Faults answered with content.
    pub faults: u64,
    /// Faults answered with zeros.
    pub zero_faults: u64,
    /// Microseconds that the slowest answer to a fault took from being seen.
    pub slowest_fault_us: u64,
    /// Microseconds from CRIU's word that everything is restored until the memory was complete.
    pub fill_us: u64,
    /// Microseconds that loading store and images took.
    pub load_us: u64,
}

impl Figures {
    /// From CRIU's word that everything is restored until the memory was complete.
    #[must_use]
    pub fn fill_time(&self) -> Duration {
        Duration::from_micros(self.fill_us)
    }
}

#[cfg(test)]
mod tests {
    use super::FromCriu;

    #[test]
    fn four_bytes_of_criu_are_a_pid_a_zombie_or_the_end() {
        let of = |value: i32| FromCriu::of(value.to_ne_bytes());
        assert_eq!(of(1), Some(FromCriu::Process(1)));
        assert_eq!(of(-12), Some(FromCriu::Zombie));
        assert_eq!(of(0x5253_5446), Some(FromCriu::Finished));
        for impossible in [0, i32::MIN, i32::MAX, 1 << 23, -(1 << 23)] {
            assert_eq!(of(impossible), None, "{impossible}");
        }
    }
}
