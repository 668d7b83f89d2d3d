//! What the relay process and the daemon say to each other: JSON, one message a line, at most [`MAX_LINE`] bytes.
//!
//! ```text
//! relay  -> daemon   request        runc has asked; CRIU has not been told
//! daemon -> relay    go | abort
//! relay  -> daemon   barrier        CRIU waits at a stage; runc has already agreed
//! daemon -> relay    go | abort     (a restore has two barriers, a dump one)
//! relay  -> daemon   released       restored tasks run from now on, whatever happens to anybody else
//! relay  -> daemon   finished       CRIU has ended, well or not
//! ```
//! The end of the daemon's side of the connection counts as `abort`.

use serde::{Deserialize, Serialize};

/// Longest line either side accepts: a message holds at most a dozen stages and one line of CRIU's log.
pub const MAX_LINE: usize = 64 * 1024;

/// Name of an empty file beside the relay's socket: the relay makes it before it lets restored tasks run. A daemon that
/// starts again knows by its absence that none of them has.
pub const RELEASED_NAME: &str = "released";

/// Beside the relay's socket: the journal of what CRIU changes in tasks during a dump.
pub const JOURNAL_NAME: &str = "undo";

/// Names of the variables that tell a relay process what it is part of.
pub mod environment {
    /// Path of the daemon's socket. Without it the relay only passes on.
    pub const SOCKET: &str = "TRANSHIP_RELAY_SOCKET";
    /// `dump` or `restore`: requests of the other kind are passed on untouched.
    pub const OPERATION: &str = "TRANSHIP_RELAY_OPERATION";
    /// Path of the real CRIU.
    pub const CRIU: &str = "TRANSHIP_CRIU";
    /// `state-only` for a dump without the content of memory. See [`super::Memory`].
    pub const MEMORY: &str = "TRANSHIP_RELAY_MEMORY";
    /// Set for a restore whose lazy pages a filler brings.
    pub const LAZY_PAGES: &str = "TRANSHIP_LAZY_PAGES";
    /// The cgroup of the container that is dumped, to be frozen before CRIU is gone.
    pub const CGROUP: &str = "TRANSHIP_RELAY_CGROUP";
    /// Set by the relay for CRIU, and so for what CRIU starts: the dump's journal, by which they are found.
    pub const DUMP: &str = "TRANSHIP_DUMP";
    /// CRIU's log level, for an operator who looks for a reason.
    pub const LOG_LEVEL: &str = "TRANSHIP_CRIU_LOG_LEVEL";
}

/// Name of a directory beside the relay's socket: a file of it, named like a process of the host, takes the place of that
/// process's `smaps` in a dump of state alone.
pub const AREAS_NAME: &str = "areas";

/// What a relay is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// `runc checkpoint`.
    Dump,
    /// `runc restore`.
    Restore,
}

impl Operation {
    /// The word in [`environment::OPERATION`].
    pub fn word(self) -> &'static str {
        match self {
            Self::Dump => "dump",
            Self::Restore => "restore",
        }
    }

    /// The operation of a word.
    pub fn of_word(word: &str) -> Option<Self> {
        [Self::Dump, Self::Restore]
            .into_iter()
            .find(|operation| operation.word() == word)
    }
}

/// What the images of a dump hold of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memory {
    /// Every page.
    #[default]
    Full,
    /// Where memory is and what it is, but of private memory only what CRIU never leaves out (the vDSO, rings of
    /// asynchronous I/O). Shared memory is there with its content.
    StateOnly,
}

impl Memory {
    /// The word in [`environment::MEMORY`].
    pub fn word(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::StateOnly => "state-only",
        }
    }

    /// The meaning of a word; what is unknown is a full dump, which is always right.
    pub fn of_word(word: &str) -> Self {
        if word == Self::StateOnly.word() {
            Self::StateOnly
        } else {
            Self::Full
        }
    }
}

/// The stages at which CRIU is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BarrierStage {
    /// Dump: all images are written, the tasks are stopped by ptrace. Released, the tasks go on or stay frozen with
    /// their cgroup; aborted, the same, and the dump counts as failed.
    PostDump,
    /// Restore: the root task and its empty network namespace exist, no socket yet. The time to plumb the network.
    SetupNamespaces,
    /// Restore: everything exists, no task has run, TCP sockets are silent. Aborted, CRIU kills what it made.
    PostRestore,
}

impl BarrierStage {
    /// CRIU's own word.
    pub fn word(self) -> &'static str {
        match self {
            Self::PostDump => "post-dump",
            Self::SetupNamespaces => "setup-namespaces",
            Self::PostRestore => "post-restore",
        }
    }

    /// The barrier that CRIU's stage `script` is for an operation, if it is one.
    pub fn of_script(operation: Operation, script: &str) -> Option<Self> {
        let stages = match operation {
            Operation::Dump => &[Self::PostDump][..],
            Operation::Restore => &[Self::SetupNamespaces, Self::PostRestore],
        };
        stages.iter().copied().find(|stage| stage.word() == script)
    }
}

/// When CRIU reached a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// CRIU's name of the stage, or `request`, `started`, `ended`.
    pub stage: String,
    /// `CLOCK_MONOTONIC`, microseconds: comparable with [`crate::monotonic_us`].
    pub at_us: u64,
}

/// runc has asked for the operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSeen {
    /// What it has asked for.
    pub operation: Operation,
    /// The root of the tree to dump; `None` for a restore.
    pub pid: Option<i32>,
    /// The relay's own process.
    pub relay_pid: i32,
    /// CRIU's process.
    pub criu_pid: i32,
    /// The relay's thread that holds a CRIU that ends until the tree is frozen, where there is one.
    pub guard: Option<i32>,
    /// What a dump's images will hold. [`Memory::Full`] although state alone was asked for where the library that hides
    /// pages could not be loaded into this CRIU. Known before anything is frozen.
    pub memory: Memory,
}

/// CRIU waits at a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier {
    /// Which one.
    pub stage: BarrierStage,
    /// The root task as the host sees it.
    pub pid: i32,
    /// What a dump's images hold.
    pub memory: Memory,
    /// Of how many processes CRIU has taken the areas from files in [`AREAS_NAME`].
    pub areas_taken: u32,
    /// All stages so far.
    pub stages: Vec<StageTime>,
}

/// CRIU has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// CRIU's own verdict on the operation.
    pub success: bool,
    /// The errno it gave, if any.
    pub errno: Option<i32>,
    /// The first line it logged as an error. Set by harmless lines too: judge by `success`.
    pub message: Option<String>,
    /// How its process ended, in words.
    pub exit: String,
    /// All stages.
    pub stages: Vec<StageTime>,
}

/// From the relay to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromRelay {
    /// See [`RequestSeen`].
    Request(RequestSeen),
    /// See [`Barrier`].
    Barrier(Barrier),
    /// CRIU has been told to let restored tasks run, and [`RELEASED_NAME`] is there.
    Released,
    /// See [`Finished`].
    Finished(Finished),
}

impl FromRelay {
    /// What CRIU has come to.
    pub fn stage(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Barrier(barrier) => barrier.stage.word(),
            Self::Released => "released",
            Self::Finished(_) => "finished",
        }
    }
}

/// From the daemon to the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Go on.
    Go,
    /// Answer no.
    Abort,
}

/// A message as its line.
pub fn line<T: Serialize>(message: &T) -> Result<Vec<u8>, serde_json::Error> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::{BarrierStage, Decision, FromRelay, Memory, Operation, RequestSeen, line};

    #[test]
    fn a_message_is_one_line() {
        let seen = RequestSeen {
            operation: Operation::Dump,
            pid: Some(7),
            relay_pid: 8,
            criu_pid: 9,
            guard: Some(10),
            memory: Memory::StateOnly,
        };
        let message = FromRelay::Request(seen);
        let bytes = line(&message).unwrap();
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<FromRelay>(&bytes).unwrap(), message);
        assert_eq!(line(&Decision::Abort).unwrap(), b"\"abort\"\n");
    }

    #[test]
    fn a_stage_is_a_barrier_of_its_own_operation_only() {
        assert_eq!(
            BarrierStage::of_script(Operation::Dump, "post-dump"),
            Some(BarrierStage::PostDump)
        );
        assert_eq!(BarrierStage::of_script(Operation::Restore, "post-dump"), None);
        assert_eq!(BarrierStage::of_script(Operation::Restore, "pre-resume"), None);
        assert_eq!(Operation::of_word("restore"), Some(Operation::Restore));
        assert_eq!(Operation::of_word(""), None);
    }

    #[test]
    fn only_the_whole_word_leaves_memory_out() {
        for memory in [Memory::Full, Memory::StateOnly] {
            assert_eq!(Memory::of_word(memory.word()), memory);
        }
        assert_eq!(Memory::of_word("state"), Memory::Full);
    }
}
